"""Runs the project's commands as a user would, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.shared_files import ROOT


def run(*command: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished process of a command run from the project's root, on one thread and without GPUs."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def train(*arguments: str, ranks: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`train.py`, plain (ranks=0) or under torchrun."""
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run(*launcher, "train.py", *arguments, timeout=timeout)


def metrics(output: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl that describe training steps."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]
