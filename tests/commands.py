"""Runs the project's commands as a user would, each in a process of its own.

These processes are forked from the server of tests/world.py, which has imported what the commands import: a command starts in
milliseconds instead of seconds. With `fresh=True`, a new interpreter starts, under torchrun if there are ranks.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch

from tests.shared_files import ROOT
from tests.world import FORKED, rank_environment

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*command: str, timeout: float = 240, fresh: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished process of a command run from the project's root, on one thread and without GPUs."""
    if not fresh and command[0] == sys.executable and (command[1] == "-m" or command[1].endswith(".py")):
        return _run_forked(command[1:], [environment], timeout)
    env = {**os.environ, **ENVIRONMENT, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def train(*arguments: str, ranks: int = 0, timeout: float = 240, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """`train.py`, plain (ranks=0) or on ranks as torchrun starts them."""
    if fresh:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
        return run(sys.executable, *torchrun, "train.py", *arguments, timeout=timeout, fresh=True)
    return _run_forked(("train.py", *arguments), rank_environment(ranks) if ranks else [{}], timeout)


def metrics(output: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl that describe training steps."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def become(command: tuple[str, ...], environment: dict[str, str], out: str, err: str, before: str = "") -> None:
    """Execute `python COMMAND` in this process. before: Python code that is executed first; it may use `rank`."""
    for descriptor, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT, **environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(":"))
    torch.set_num_threads(1)
    if before:
        exec(before, {"rank": int(environment.get("RANK", 0))})
    module = command[1] if command[0] == "-m" else ""
    sys.argv = list(command[1:] if module else command)
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


def _run_forked(command: tuple[str, ...], environments: list[dict[str, str]], timeout: float) -> subprocess.CompletedProcess[str]:
    """The command in one process per environment. A process that fails ends the others, as under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        processes = [FORKED.Process(target=become, args=(command, variables, out, err)) for variables in environments]
        for process in processes:
            process.start()
        end, code = time.monotonic() + timeout, 0
        while running := [process for process in processes if process.exitcode is None]:
            if not wait([process.sentinel for process in running], max(0.0, end - time.monotonic())):
                for process in running:
                    process.kill()
                raise subprocess.TimeoutExpired(command, timeout, Path(out).read_text(), Path(err).read_text())
            if not code and (failed := [process.exitcode for process in running if process.exitcode]):
                code = failed[0]
                for process in running:
                    process.terminate()
        return subprocess.CompletedProcess(command, code, Path(out).read_text(), Path(err).read_text())
