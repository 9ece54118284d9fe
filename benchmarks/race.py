"""Contestants that take short turns, round after round, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from utils.errors import UserError

PEERS = Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True)
class Contestant:
    """rate: does some work and returns its rate. process_ids: the processes that do the work."""

    rate: Callable[[], float]
    process_ids: Sequence[int]


def race(contestants: Mapping[str, Contestant], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Each contestant's rates per round, by wall-clock time and by processor time. The order rotates, so that no contestant
    always follows the same one."""
    by_clock: dict[str, list[float]] = {name: [] for name in contestants}
    by_processor: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            contestant = contestants[name]
            before, begin = processor_seconds(*contestant.process_ids), time.perf_counter()
            rate = contestant.rate()
            work = rate * (time.perf_counter() - begin)
            by_clock[name].append(rate)
            by_processor[name].append(work / (processor_seconds(*contestant.process_ids) - before))
    return by_clock, by_processor


def processor_seconds(*process_ids: int) -> float:
    """Processor time of processes so far, all threads together (Linux derives the id of a process's clock from its own)."""
    return sum(time.clock_gettime(~process_id << 3 | 2) for process_id in process_ids)


class Forked:
    """A function in its own process, run on request."""

    def __init__(self, action: Callable[[], None]):
        self.connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=self._serve, args=(action, theirs), daemon=True)
        self._process.start()

    def _serve(self, action: Callable[[], None], connection) -> None:
        cv2.setNumThreads(1)
        while connection.recv():
            action()
            connection.send(True)

    @property
    def process_id(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def stop(self) -> None:
        self.connection.send(False)
        self._process.join()


class Peer:
    """A loader in another Python interpreter: reads a number of batches from stdin, writes seconds to stdout."""

    def __init__(self, python: str, script: str, *arguments: str):
        command = [python, str(PEERS / script), *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        if self._line() != "ready":
            raise UserError(f"{' '.join(command)} did not start: does that Python have the packages that {script} imports?")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def seconds(self, count: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._line())

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
