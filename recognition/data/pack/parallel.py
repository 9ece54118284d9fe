"""Work for several processes, in order, with a progress bar, and with no more results waiting than are needed.

A worker that dies is an error, not a hang; a parent that dies takes its workers with it.
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

from utils.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
INTERRUPTED = 128  # plus the signal's number is the exit code, as shells have it
_END = object()
_LISTEN = 0.2  # seconds between looks at the signals
_AHEAD = 3  # tasks in flight a worker: one at work, one waiting, one done


def cores() -> int:
    """Cores that this process may use; where the system does not say, those it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=cores(), help="processes (as many as there are cores: %(default)s)")


def progress_bar(unit: str) -> Progress:
    """A bar on stderr; on something that is no terminal only its last state is written."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip


@contextlib.contextmanager
def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, title: str, total: int, unit: str = "images",
    advance: Callable[[Result], int] = lambda result: 1, shared: object = None,
) -> Iterator[Iterator[Result]]:  # fmt: skip
    """Gives `map(work, items)`, made by `workers` processes, which have ended when the block ends, however it ends.

    work: pickles (a function of a module, or a `partial` of one). Its exceptions come out of the iterator.
    advance: how many of `total` units a result is, for the bar.
    shared: what `shared_object()` gives in the workers; it is inherited, not copied, whatever its size.
    `UserError`: fewer than one worker; a worker was killed (most often by a lack of memory).
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be 1 or more")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # ends OpenCV's threads, if it has any: a forked process would wait for them for ever
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (shared,))
    _waiting_for.append(executor)
    executor.submit(os.getpid)  # starts all processes now, before the bar's thread, which may hold a lock at any time
    cv2.setNumThreads(threads)
    with progress_bar(unit) as progress:
        task = progress.add_task(title, total=total)
        try:
            yield _results(executor, work, items, _AHEAD * workers, lambda result: progress.advance(task, advance(result)))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            _waiting_for.remove(executor)
    _leave_if_interrupted()


def _wait(future: Future[Result]) -> Result:
    while True:
        _leave_if_interrupted()
        if future in wait([future], _LISTEN).done:
            return future.result()


def _results(
    executor: ProcessPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int,
    show: Callable[[Result], None],
) -> Iterator[Result]:  # fmt: skip
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    more = True
    try:
        while more or waiting:
            while more and len(waiting) < ahead:
                item = next(rest, _END)
                more = item is not _END
                if more:
                    waiting.append(executor.submit(work, item))  # type: ignore[arg-type]
            if waiting:
                result = _wait(waiting.popleft())
                show(result)
                yield result
    except BrokenProcessPool as error:
        _leave_if_interrupted()
        raise UserError("a worker process was killed, most often for lack of memory; try again with fewer --workers") from error


def chunks(count: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive parts of range(count), each of at most `size`."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


_interruptions: list[int] = []  # signals that came
_waiting_for: list[ProcessPoolExecutor] = []  # pools at work


def stop_on_signals() -> None:
    """SIGINT and SIGTERM leave by `SystemExit` with a shell's exit code, so that drafts are removed on the way out."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """While a pool is at work, the signal is only noted: raised at any place, it could leave one of the pool's locks shut."""
    _interruptions.append(number)
    if not _waiting_for:
        _leave_if_interrupted()


def _leave_if_interrupted() -> None:
    if _interruptions:
        print("interrupted; nothing was kept", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED + _interruptions[0])


_shared: list[object] = []


def shared_object() -> Any:
    """In a worker: what `in_order` was given as `shared`."""
    return _shared[0]


def _start_worker(shared: object) -> None:
    _shared[:] = [shared]
    cv2.setNumThreads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends the workers in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child process"
    parent.join()
    os._exit(1)
