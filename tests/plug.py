"""Real training runs for tests that signal, stop and kill ranks.

Ranks are forked from the server of tests/world.py and execute train.py with the environment that torchrun sets.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.commands import become, metrics
from tests.world import FORKED, rank_environment

CONFIG = "tests/tiny_config"
SEED = int(os.environ.get("PLUG_SEED", os.getpid()))  # of the random moments; printed if a test fails

_REPORTED = re.compile(r"^step +(\d+)/", re.MULTILINE)


class Run:
    """A started run. before: Python code that each rank executes first; it may use `rank`."""

    def __init__(self, demo_set: Path, output: Path, *arguments: str, ranks: int = 1, before: str = ""):
        self.output, self.log = output, demo_set.with_name(f"{time.monotonic_ns()}.log")
        given = (CONFIG, f"rec={demo_set}", f"output={output}", *arguments)
        self._from = self._lines()
        environments = rank_environment(ranks) if ranks > 1 else [{}]
        command, log = ("train.py", *given), str(self.log)
        self.processes = [FORKED.Process(target=become, args=(command, one, log, log, before)) for one in environments]
        for process in self.processes:
            process.start()

    def _lines(self) -> int:
        path = self.output / "metrics.jsonl"
        return len(path.read_bytes().splitlines()) if path.is_file() else 0

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        """Wait until this run has reported `step` or a later one (a resumed run may start after it)."""
        self._wait_until(lambda: any(int(seen) >= step for seen in _REPORTED.findall(self.text)), f"step {step}", timeout)

    def wait_for_file(self, pattern: str, timeout: float = 120) -> None:
        """Wait until a path below the output folder matches."""
        self._wait_until(lambda: any(self.output.glob(pattern)), pattern, timeout)

    def _wait_until(self, condition, what: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert self.alive, f"the run ended before {what}:\n{self.text[-3000:]}"
            assert time.monotonic() < end, f"{what} did not come in {timeout} s:\n{self.text[-3000:]}"
            time.sleep(0.005)

    def signal(self, number: signal.Signals, rank: int = 0) -> None:
        process = self.processes[rank]
        assert process.pid is not None
        os.kill(process.pid, number)

    def wait(self, timeout: float = 180) -> list[int | None]:
        """The ranks' exit codes. Ranks that do not end are killed and fail the test."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hanging = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            process.kill()
            process.join()
        assert not hanging, f"ranks {hanging} did not end in {timeout} s:\n{self.text[-3000:]}"
        return [process.exitcode for process in self.processes]

    def succeed(self, timeout: float = 180) -> str:
        """Wait for exit code 0 of all ranks; return what they printed."""
        codes = self.wait(timeout)
        assert set(codes) == {0}, f"exit codes {codes}:\n{self.text[-3000:]}"
        return self.text


def pull_the_plug(run: Run, last_step: int, generator: random.Random) -> str:
    """Kill a random rank at a random moment soon after a step before `last_step`; return which and when."""
    step, rank, delay = generator.randrange(1, last_step), generator.randrange(len(run.processes)), generator.uniform(0, 0.4)
    run.wait_for_step(step)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):  # a fast machine may have finished: the next run then has nothing to do
        run.signal(signal.SIGKILL, rank)
    run.wait(60)
    return f"rank {rank} killed {delay:.2f} s after step {step} (PLUG_SEED={SEED})"


def tensors(checkpoint: Path) -> dict[tuple[str, str], torch.Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    return {(file.name, name): value for file in files for name, value in load_file(file).items()}


def series(output: Path) -> list[tuple[float, ...]]:
    """Step and reported figures that do not depend on time."""
    return [(line["step"], line["loss"], line["gradient_norm"], line["quality_mean"]) for line in metrics(output)]


def assert_same_run(actual: Path, expected: Path, step: int, what: str = "") -> None:
    """The tensors and counters of the checkpoint of `step` and all reported losses are equal, bit for bit."""
    one, two = (folder / "checkpoints" / f"step-{step:08d}" for folder in (actual, expected))
    state_one, state_two = (json.loads((folder / "state.json").read_text()) for folder in (one, two))
    assert state_one == state_two, what
    tensors_one, tensors_two = tensors(one), tensors(two)
    assert tensors_one.keys() == tensors_two.keys() and len(tensors_one) > 50, what
    assert [key for key in tensors_one if not torch.equal(tensors_one[key], tensors_two[key])] == [], what
    assert series(actual) == series(expected), what
