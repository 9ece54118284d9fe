"""Ordered work in several processes, with a progress bar and a limited number of waiting results.

A worker that dies is reported as an error; workers end when their parent does.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import Any, TypeVar

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from utils.errors import UserError, discard_output

Item = TypeVar("Item")
Result = TypeVar("Result")
_SIGNAL_EXIT = 128  # plus the signal's number: the exit code that shells use
_END = object()
_POLL_SECONDS = 0.2  # between checks for signals
_TASKS_PER_WORKER = 3  # in flight: one running, one waiting, one finished


def cores() -> int:
    """The number of cores that this process may use or, if the system does not tell, that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: one per core, %(default)s)")


@contextlib.contextmanager
def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    title: str,
    total: int,
    unit: str = "images",
    advance: Callable[[Result], int] = lambda result: 1,
    shared: object = None,
) -> Iterator[Iterator[Result]]:
    """Yield `map(work, items)`, computed by `workers` processes. When the block ends, they have ended too.

    work: a picklable function (of a module, or a `partial` of one). The iterator raises its exceptions.
    advance: how many of the `total` units a result counts for in the progress bar.
    shared: what `shared_object()` returns in the workers. They inherit it, so it is not copied.

    Raises UserError if `workers` is less than 1, or if a worker was killed (usually for lack of memory).
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be 1 or more")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # ends OpenCV's threads, if any: a forked process would wait for them forever
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (shared,))
    _active_pools.append(executor)
    try:
        executor.submit(os.getpid)  # starts all processes now, before the bar's thread, which may hold a lock at any time
    except OSError:
        for worker in multiprocessing.active_children():  # the executor does not end those that it has started
            worker.kill()
        _active_pools.remove(executor)
        raise
    cv2.setNumThreads(threads)
    with progress_bar(unit) as progress:
        task = progress.add_task(title, total=total)
        try:
            limit = _TASKS_PER_WORKER * workers
            yield _results(executor, work, items, limit, lambda result: progress.advance(task, advance(result)))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            _active_pools.remove(executor)
    _exit_if_signalled()


def chunks(count: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive parts of range(count), each of at most `size`."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def progress_bar(unit: str) -> Progress:
    """A progress bar on stderr, which is only shown on a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _results(
    executor: ProcessPoolExecutor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    limit: int,
    show: Callable[[Result], None],
) -> Iterator[Result]:
    """Yield the results in order, with at most `limit` tasks in flight. `show` is called with each result."""
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    more = True
    try:
        while more or waiting:
            while more and len(waiting) < limit:
                item = next(rest, _END)
                more = item is not _END
                if more:
                    waiting.append(executor.submit(work, item))  # type: ignore[arg-type]
            if waiting:
                result = _wait(waiting.popleft())
                show(result)
                yield result
    except BrokenProcessPool as error:
        _exit_if_signalled()
        raise UserError("a worker process was killed, usually for lack of memory; try again with fewer --workers") from error


def _wait(future: Future[Result]) -> Result:
    """The result of a task; leaves the program if a signal arrives while waiting."""
    while True:
        _exit_if_signalled()
        if future in wait([future], _POLL_SECONDS).done:
            return future.result()


# ------------------------------------------------------------------------------------------------ signals

_received_signals: list[int] = []
_active_pools: list[ProcessPoolExecutor] = []


def exit_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal raise `SystemExit` with a shell's exit code: unfinished output is removed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores it
            signal.signal(number, _handle_signal)


def _handle_signal(number: int, frame: FrameType | None) -> None:
    """While a pool is active, only note the signal: raising at an arbitrary place could leave one of its locks acquired.

    A second signal ends the program at once; its workers end with it.
    """
    if _received_signals:
        os._exit(_SIGNAL_EXIT + number)
    _received_signals.append(number)
    if not _active_pools:
        _exit_if_signalled()


def _exit_if_signalled() -> None:
    if _received_signals:
        discard_output()
        print("interrupted; nothing was kept", file=sys.stderr, flush=True)
        raise SystemExit(_SIGNAL_EXIT + _received_signals[0])


# ------------------------------------------------------------------------------------------------ in the workers

_shared: list[object] = []


def shared_object() -> Any:
    """In a worker: the `shared` argument of `in_order`."""
    return _shared[0]


def _start_worker(shared: object) -> None:
    _shared[:] = [shared]
    cv2.setNumThreads(1)  # the processes provide the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and ends the workers in an orderly way
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child process"
    parent.join()
    os._exit(1)
