"""A run that is killed, stopped or restarted ends with the same weights as an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.plug import CONFIG, SEED, Run, assert_same_run, pull_the_plug
from tests.shared_files import ROOT

STEPS = 11
SETTINGS = (f"max_steps={STEPS}", "save_every=3", "dropout=0.2")
FULL = os.environ.get("RELIABILITY") == "full"
EVERY = [(ranks, workers) for ranks in (1, 2, 4) for workers in (0, 2, 3)]
SOME = [(1, 2), (2, 3), (4, 0)]


@pytest.fixture(scope="module")
def undisturbed(demo_set, tmp_path_factory):
    """`undisturbed(ranks)` -> output folder of an undisturbed run."""
    done: dict[int, Path] = {}

    def folder(ranks: int) -> Path:
        if ranks not in done:
            done[ranks] = tmp_path_factory.mktemp("undisturbed") / "run"
            Run(demo_set, done[ranks], *SETTINGS, ranks=ranks).succeed()
        return done[ranks]

    return folder


@pytest.mark.parametrize(("ranks", "workers"), EVERY if FULL else SOME)
def test_killed_at_any_moment_and_restarted(demo_set, undisturbed, tmp_path, ranks, workers):
    expected = undisturbed(ranks)
    generator = random.Random(f"{SEED} {ranks} {workers}")
    arguments = (*SETTINGS, f"num_workers={workers}")
    killed = [
        pull_the_plug(Run(demo_set, tmp_path / "run", *arguments, ranks=ranks), STEPS - 1, generator)
        for _ in range(3 if FULL else 1)
    ]
    Run(demo_set, tmp_path / "run", *arguments, ranks=ranks).succeed()
    assert_same_run(tmp_path / "run", expected, STEPS, "; ".join(killed))


def _ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks that torchrun has started (not of loader workers, their children)."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("ranks", [1, 2, 4] if FULL else [2])
def test_torchrun_restarts_killed_ranks(demo_set, undisturbed, tmp_path, ranks):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "--max-restarts=3"]
    command += ["train.py", CONFIG, f"rec={demo_set}", f"output={output}", *SETTINGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(tmp_path / "log", "wb") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    generator = random.Random(f"{SEED} torchrun")
    rank, step = generator.randrange(ranks), generator.randrange(4, STEPS - 1)
    try:
        while f"step {step:>6}/" not in (tmp_path / "log").read_text():
            assert launcher.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.01)
        os.kill(_ranks_of(launcher.pid)[rank], signal.SIGKILL)
        code = launcher.wait(200)
    finally:
        launcher.kill()
    text = (tmp_path / "log").read_text()
    assert code == 0, text[-3000:]
    assert "resumed from" in text
    assert_same_run(output, undisturbed(ranks), STEPS, f"rank {rank} killed after step {step} (PLUG_SEED={SEED})")


@pytest.mark.parametrize(
    ("number", "ranks", "asked"), [(signal.SIGTERM, 2, 1), (signal.SIGINT, 1, 0), (signal.SIGHUP, 1, 0), (signal.SIGUSR1, 2, 0)]
)
def test_a_signal_saves_and_ends_the_run_which_can_be_resumed(demo_set, undisturbed, tmp_path, number, ranks, asked):
    """One rank receives the signal; all save after the same step, exit with 0 and print what to do; nothing is lost."""
    run = Run(demo_set, tmp_path / "run", f"max_steps={STEPS}", "save_every=0", "dropout=0.2", ranks=ranks)
    run.wait_for_step(2)
    run.signal(number, asked)
    text = run.succeed()
    assert f"{number.name}: step " in text and "is saved in" in text and "run the same command to resume" in text
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert len(saved) == 1 and 2 <= int(saved[0][5:]) < STEPS
    Run(demo_set, tmp_path / "run", *SETTINGS, ranks=ranks).succeed()
    assert_same_run(tmp_path / "run", undisturbed(ranks), STEPS)


def test_a_second_signal_ends_at_once(demo_set, tmp_path):
    """Even if the main thread waits for another rank and cannot handle signals."""
    run = Run(demo_set, tmp_path / "run", "max_steps=500", ranks=2)
    run.wait_for_step(1)
    run.signal(signal.SIGSTOP, 1)
    time.sleep(1)
    run.signal(signal.SIGTERM, 0)
    time.sleep(0.5)
    began = time.monotonic()
    run.signal(signal.SIGTERM, 0)
    run.processes[0].join(20)
    assert run.processes[0].exitcode == 128 + signal.SIGTERM and time.monotonic() - began < 5
    run.signal(signal.SIGKILL, 1)
    run.wait(30)
    assert "SIGTERM again: ending at once" in run.text


def test_written_in_the_background_the_run_is_the_same(demo_set, undisturbed, tmp_path):
    """Asynchronous checkpoints hold the state of their own step, not of a later one, and a killed run resumes from them."""
    arguments = (*SETTINGS, "async_save=True")
    run = Run(demo_set, tmp_path / "run", *arguments, ranks=2)
    run.wait_for_file("checkpoints/step-00000003")
    run.wait_for_step(6)
    run.signal(signal.SIGKILL, 1)
    run.wait(60)
    assert "resumed from" in Run(demo_set, tmp_path / "run", *arguments, ranks=2).succeed()
    assert_same_run(tmp_path / "run", undisturbed(2), STEPS)
