"""Faults around a run: full disks, dead workers, hanging ranks, non-finite numbers, jumping clocks, a second run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition.checkpoints import store
from recognition.data.batch import BatchMaker, BatchSpec
from recognition.data.dataset import FaceDataset
from tests.plug import Run, assert_same_run, tensors
from utils.config import from_base

STEPS = 7
SETTINGS = (f"max_steps={STEPS}", "save_every=3")


@pytest.fixture(scope="module")
def undisturbed(demo_set, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    Run(demo_set, output, *SETTINGS, ranks=2).succeed()
    return output


def _children(process: int) -> list[int]:
    return [int(pid) for path in Path(f"/proc/{process}/task").glob("*/children") for pid in path.read_text().split()]


# -------------------------------------------------------------------------------------------------- processes


def test_a_killed_loader_worker_ends_the_run_with_the_reason(demo_set, undisturbed, tmp_path):
    run = Run(demo_set, tmp_path / "run", *SETTINGS, "num_workers=1", ranks=2)
    run.wait_for_step(1)  # a worker is two batches ahead
    rank = run.processes[1].pid
    assert rank is not None
    os.kill(_children(rank)[0], signal.SIGKILL)
    codes = run.wait(60)
    assert codes[1] == 1 and 0 not in codes and "Traceback" not in run.text
    assert "a loader worker" in run.text and "exit code -9" in run.text and "lower num_workers" in run.text
    Run(demo_set, tmp_path / "run", *SETTINGS, ranks=2).succeed()
    assert_same_run(tmp_path / "run", undisturbed, STEPS)


def test_a_hanging_rank_is_named_within_the_time_limit(demo_set, undisturbed, tmp_path):
    """It is stopped, as by a debugger or a dead disk. The other rank does not wait longer than the limit."""
    run = Run(demo_set, tmp_path / "run", *SETTINGS, "timeout_minutes=0.15", ranks=2)
    run.wait_for_step(4)
    began = time.monotonic()
    run.signal(signal.SIGSTOP, 1)
    run.processes[0].join(60)
    waited = time.monotonic() - began
    run.signal(signal.SIGKILL, 1)
    run.wait(10)
    assert run.processes[0].exitcode == 1 and 9 <= waited < 40, waited
    assert "rank 1 did not arrive within 9 s (timeout_minutes)" in run.text
    Run(demo_set, tmp_path / "run", *SETTINGS, ranks=2).succeed()
    assert_same_run(tmp_path / "run", undisturbed, STEPS)


HANGS_AT_STEP_4 = """
import time
from recognition.step import TrainStep
step, count = TrainStep.__call__, [0]
def a_disk_that_never_answers():
    time.sleep(1000)
def slow(self, *arguments):
    count[0] += 1
    if rank == 1 and count[0] == 4:
        a_disk_that_never_answers()
    return step(self, *arguments)
TrainStep.__call__ = slow
"""


def test_a_rank_that_hangs_shows_where(demo_set, tmp_path):
    run = Run(demo_set, tmp_path / "run", *SETTINGS, "timeout_minutes=0.15", ranks=2, before=HANGS_AT_STEP_4)
    assert run.wait(90) == [1, 1]
    assert "rank 1 did not arrive" in run.text, run.text
    assert "a_disk_that_never_answers" in run.text


FAILS_WHILE_OTHERS_ARE_AWAITED = """
import time, torch
from recognition.step import TrainStep
step, count = TrainStep.__call__, [0]
def failing(self, *arguments):
    count[0] += 1
    if count[0] == 3:
        if rank == 0:
            time.sleep(1000)
        torch.distributed.all_reduce(torch.zeros(1), async_op=True)  # as DDP does in the backward pass
        raise RuntimeError("a fault of ours")
    return step(self, *arguments)
TrainStep.__call__ = failing
"""


def test_a_rank_that_fails_ends_at_once(demo_set, tmp_path):
    """Without waiting for its pending collectives, so that the launcher learns of the fault."""
    run = Run(demo_set, tmp_path / "run", *SETTINGS, ranks=2, before=FAILS_WHILE_OTHERS_ARE_AWAITED)
    run.wait_for_step(1)
    run.processes[1].join(30)
    code = run.processes[1].exitcode
    run.signal(signal.SIGKILL, 0)
    run.wait(30)
    assert code == 1 and "a fault of ours" in run.text, run.text[-2000:]


# -------------------------------------------------------------------------------------------------- output folder


def test_a_second_run_on_the_same_output_is_refused(demo_set, tmp_path):
    first = Run(demo_set, tmp_path / "run", "num_epoch=100000", "save_every=100000")
    first.wait_for_step(2)
    second = Run(demo_set, tmp_path / "run", "num_epoch=100000")
    assert second.wait(60) == [2]
    assert "another run is writing there" in second.text and f"process {first.processes[0].pid} " in second.text
    assert first.alive
    first.signal(signal.SIGKILL)
    first.wait(10)
    third = Run(demo_set, tmp_path / "run", "max_steps=2")  # the killed run no longer holds the lock
    assert "error" not in third.succeed()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB: room for one checkpoint of 15 MB, not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_full(demo_set, small_disk):
    run = Run(demo_set, small_disk / "run", *SETTINGS)
    assert run.wait() == [2], run.text[-2000:]
    assert "step-00000006: cannot be written" in run.text and "No space left" in run.text
    assert store.newest(small_disk / "run") == small_disk / "run" / "checkpoints" / "step-00000003"


def test_a_disk_that_fills_up_between_two_checkpoints(demo_set, small_disk):
    """Here metrics and TensorBoard's files cannot be written, the latter by a thread."""
    before = "from utils import program; program.begin()"
    run = Run(demo_set, small_disk / "run", "num_epoch=1000", "save_every=4", "keep_last=1", before=before)
    run.wait_for_file("checkpoints/step-00000004")
    with contextlib.suppress(OSError), open(small_disk / "other", "wb", 0) as other:
        while True:
            other.write(bytes(4096))
    assert run.wait() == [2] and "Traceback" not in run.text, run.text[-2000:]
    assert re.search(r"^error: .*cannot be written \(No space left on device\); .* intact$", run.text, re.MULTILINE)
    assert store.newest(small_disk / "run") is not None


def test_a_disk_that_takes_no_writes(demo_set, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    run = Run(demo_set, small_disk / "run", *SETTINGS)
    assert run.wait() == [2] and "cannot be written (Read-only file system)" in run.text


WITHOUT_PRIVILEGES = """
import ctypes, os
if os.geteuid() == 0:  # drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root ignores permissions
    libc, header, sets = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110
    assert libc.capset(header, sets) == 0
"""


def test_a_folder_without_permission(demo_set, tmp_path):
    """At the start: one line. In the middle of a run: the previous checkpoint is intact."""
    output = tmp_path / "closed" / "run"
    output.parent.mkdir(mode=0o555)
    run = Run(demo_set, output, *SETTINGS, before=WITHOUT_PRIVILEGES)
    assert run.wait() == [2] and f"error: {output}: cannot be written (Permission denied)" in run.text
    output.parent.chmod(0o755)
    run = Run(demo_set, output, "max_steps=500", "save_every=3", before=WITHOUT_PRIVILEGES)
    run.wait_for_file("checkpoints/step-00000003")
    (output / "checkpoints").chmod(0o555)
    assert run.wait() == [2], run.text[-2000:]
    (output / "checkpoints").chmod(0o755)
    assert "cannot be written (Permission denied); the checkpoint before it is intact" in run.text, run.text[-500:]
    assert store.newest(output) is not None


# -------------------------------------------------------------------------------------------------- numbers

SPOILED = """
from recognition import build
build_encoder, count = build.build_encoder, [0]
def spoiled(config):
    encoder = build_encoder(config)
    def spoil(module, inputs, features):
        count[0] += module.training
        return features * float("nan") if module.training and rank == 1 and count[0] in {steps} else features
    def spoil_gradient(gradient):
        return gradient * float("nan") if rank == 1 and count[0] in {steps} else gradient
    if "{where}" == "features":
        encoder.register_forward_hook(spoil)
    else:
        encoder.register_forward_hook(lambda module, *_: count.__setitem__(0, count[0] + module.training))
        list(encoder.parameters())[0].register_hook(spoil_gradient)
    return encoder
build.build_encoder = spoiled
"""


@pytest.mark.parametrize("where", ["features", "gradients"])
def test_non_finite_numbers_on_one_rank_skip_the_step_on_all(demo_set, undisturbed, tmp_path, where):
    """After three applied steps and a skipped one, the state is that after three steps."""
    before = SPOILED.format(steps=[4], where=where)
    run = Run(demo_set, tmp_path / "run", "max_steps=4", "save_every=1", "keep_last=4", ranks=2, before=before)
    text = run.succeed()
    assert "step 4: skipped on all ranks" in text and f"{where} of rank" in text and "not finite" in text
    folder = tmp_path / "run" / "checkpoints"
    three, four = tensors(folder / "step-00000003"), tensors(folder / "step-00000004")
    assert len(three) > 50 and all(torch.equal(three[key], four[key]) for key in three)
    if where == "features":
        assert "features of rank 1 are not finite" in text


def test_a_checkpoint_right_after_a_skipped_step(demo_set, tmp_path):
    """The step is undone before the state is saved, even if nothing was reported in between."""
    settings, before = ("frequent=50", "save_every=4"), SPOILED.format(steps=[4], where="gradients")
    whole = Run(demo_set, tmp_path / "whole", "max_steps=7", *settings, ranks=2, before=before).succeed()
    Run(demo_set, tmp_path / "parts", "max_steps=4", *settings, ranks=2, before=before).succeed()
    Run(demo_set, tmp_path / "parts", "max_steps=7", *settings, ranks=2).succeed()
    assert "step 4: skipped on all ranks, gradients of rank" in whole
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 7)


def test_too_many_skipped_steps_end_the_run_and_list_their_batches(demo_set, tmp_path):
    output = tmp_path / "run"
    before = SPOILED.format(steps=[3, 4, 5], where="features")
    run = Run(demo_set, output, "max_steps=9", "save_every=2", "max_skipped=3", ranks=2, before=before)
    assert run.wait() == [2, 2]
    assert "step 5: features of rank 1 are not finite, 3 steps in a row" in run.text and "step-00000004" in run.text
    document = json.loads((output / "not_finite.json").read_text())
    assert [[step["step"] for step in rank["steps"]] for rank in document["ranks"]] == [[3, 4, 5]] * 2
    dataset = FaceDataset(demo_set)
    for rank in document["ranks"]:
        config = from_base(batch_size=document["batch_size"], num_classes=13, seed=document["seed"])
        spec = BatchSpec.of(config, rank["rank"], world=2)
        for step in rank["steps"]:
            (listed,) = step["batches"]
            again = BatchMaker(dataset, spec).fill(step["epoch"], listed["number"], np.empty(spec.image_shape, np.uint8))
            assert again.indices_B.tolist() == listed["images"] and again.labels_B.tolist() == listed["labels"]
            assert [key for _, key in listed["records"]] == [image + 1 for image in listed["images"]]


# -------------------------------------------------------------------------------------------------- clocks

JUMPING_CLOCK = """
import random, time
real, jumps = time.time, random.Random(5)
time.time = lambda: real() + jumps.choice([-1, 1]) * jumps.uniform(0, 4e8)
"""


def test_a_clock_that_jumps_changes_nothing(demo_set, undisturbed, tmp_path):
    """By years, forwards and backwards: no additional checkpoint, no time-out, the same weights."""
    settings = (*SETTINGS, "save_minutes=30", "timeout_minutes=1", "keep_last=9")
    Run(demo_set, tmp_path / "run", *settings, ranks=2, before=JUMPING_CLOCK).succeed()
    steps = [folder.name for folder in store.complete_checkpoints(tmp_path / "run")]
    assert steps == ["step-00000007", "step-00000006", "step-00000003"]
    assert_same_run(tmp_path / "run", undisturbed, STEPS)
