"""What has finished exits with 0, what has failed with its code, whatever threads the process groups have."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from recognition.signals import StopSignals
from tests.commands import run
from tests.exits import native_threads, run_ranks
from tests.plug import CONFIG, Run
from tests.world import run_world
from utils import dist
from utils.hang import Watch

ABORTED = "terminate called without an active exception"


def _leave_the_group() -> dict[str, list]:
    """Leaves the process group while a reference cycle holds a DistributedDataParallel, and so the group."""
    gc.disable()
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 8))
    model.itself = [model]
    model(torch.ones(2, 8)).sum().backward()
    groups = [weakref.ref(group) for group in (torch.distributed.group.WORLD, dist.host_group(), model)]
    dist.barrier()
    del model
    before = native_threads()
    dist.stop()
    return {
        "before": before,
        "after": native_threads(),
        "python": [thread.name for thread in threading.enumerate()],
        "groups": [group() is not None for group in groups],
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_no_thread_and_no_group_survives_leaving(ranks):
    for seen in run_world(ranks, _leave_the_group):
        assert len([name for name in seen["before"] if "gloo" in name]) >= 2  # otherwise the test would prove nothing
        assert len(seen["after"]) == 1 and seen["python"] == ["MainThread"], seen
        assert seen["groups"] == [False, False, False]


# The group's thread is the last to hold the tensor of the last collective, and takes half a second to free it. If the thread
# survives until the interpreter shuts down, the process aborts. On a busy machine this can happen to any last collective.
SLOW_TO_FREE = """
import time, torch
from utils import process_group

class SlowToFree:
    def __del__(self):
        time.sleep(0.5)

def stop(stop=process_group.stop):
    if rank == 0:
        time.sleep(0.2)  # so that the other ranks drop the tensor before it is sent
    tensor = torch.zeros(1)
    tensor.slow = SlowToFree()
    torch.distributed.all_reduce(tensor, async_op=True)
    del tensor
    stop()

process_group.stop = stop
"""
KEEPS_THE_GROUP = """
import torch
from utils import process_group

def stop(stop=process_group.stop):
    sys.group = torch.distributed.group.WORLD
    stop()

process_group.stop = stop
"""
COMMAND = """
import {module} as command
from tests.exits import native_threads
sys.argv = ["command", *{arguments}]
dist.run_command(command.main)
print("threads: " + str(native_threads()) + chr(10), end="", flush=True)  # one write: the ranks share the stream
"""


def _train_code(demo_set: Path, output: Path, *arguments: str) -> str:
    settings = [CONFIG, f"rec={demo_set}", f"output={output}", "num_workers=0", *arguments]
    return SLOW_TO_FREE + COMMAND.format(module="train", arguments=settings)


def _assert_clean(text: str, ranks: int) -> None:
    lines = [line for line in text.splitlines() if line.startswith("threads:")]
    assert len(lines) == ranks and all(line.count("'") == 2 for line in lines), text
    assert ABORTED not in text


def test_a_group_that_survives_aborts_the_process():
    """What the tests below look for would be seen."""
    for _ in range(5):  # which rank aborts, and whether one does, depends on the scheduler
        exits = run_ranks(2, KEEPS_THE_GROUP + SLOW_TO_FREE + "dist.run_command(dist.start)")
        if -signal.SIGABRT in exits.codes:
            break
    assert -signal.SIGABRT in exits.codes, exits  # the C++ library or Python aborts, each with words of its own


@pytest.mark.parametrize(("ranks", "setting"), [(1, ""), (2, ""), (3, "async_save=True"), (4, "shuffle_window=50")])
def test_a_finished_training_run_exits_with_0(demo_set, tmp_path, ranks, setting):
    arguments = ("max_steps=2", "save_every=1", "val_targets=['demo_lq']", *filter(None, [setting]))
    exits = run_ranks(ranks, _train_code(demo_set, tmp_path / "run", *arguments))
    assert exits.codes == [0] * ranks and (tmp_path / "run" / "results.json").exists(), exits.text[-3000:]
    _assert_clean(exits.text, ranks)


def test_a_run_that_a_signal_stops_exits_with_0(demo_set, tmp_path):
    signal_at_step_2 = """
import os, signal
from recognition.step import TrainStep
step, count = TrainStep.__call__, [0]
def stopped(self, *arguments):
    count[0] += 1
    if rank == 1 and count[0] == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *arguments)
TrainStep.__call__ = stopped
"""
    exits = run_ranks(2, signal_at_step_2 + _train_code(demo_set, tmp_path / "run", "num_epoch=1000"))
    assert exits.codes == [0, 0] and "is saved in" in exits.text, exits.text[-3000:]
    _assert_clean(exits.text, 2)


def test_a_finished_evaluation_exits_with_0(demo_set, tmp_path):
    Run(demo_set, tmp_path / "run", "max_steps=1").succeed()
    arguments = ["verify", "--checkpoint", str(tmp_path / "run"), "--bins", str(demo_set / "demo_lq.bin")]
    exits = run_ranks(3, SLOW_TO_FREE + COMMAND.format(module="eval.__main__", arguments=arguments))
    assert exits.codes == [0, 0, 0], exits.text[-3000:]
    _assert_clean(exits.text, 3)


FAILS = """
import os, time, torch
from pathlib import Path
from utils.errors import UserError

def wait_until_the_other_ranks_have_ended():
    children, end = Path(f"/proc/{{os.getppid()}}/task/{{os.getppid()}}/children"), time.monotonic() + 20
    while len(children.read_text().split()) > 1:
        if time.monotonic() > end:
            print("the other ranks are waiting for this one")
            break
        time.sleep(0.05)

def main():
    dist.start(2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    model(torch.ones(2, 8)).sum().backward()
    dist.barrier()
    if rank == 2:
        wait_until_the_other_ranks_have_ended()
    torch.distributed.all_reduce(torch.zeros(1), async_op=True)
    {failure}

dist.run_command(main)
"""


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        ('raise UserError("rec= is no folder")', 2, "error: rec= is no folder"),
        ('raise RuntimeError("a fault")', 1, "RuntimeError: a fault"),
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_fails_exits_with_its_code(ranks, failure, code, line):
    """The others do not wait for a rank that does not enter the collective that is under way."""
    exits = run_ranks(ranks, FAILS.format(failure=failure))
    assert exits.codes == [code] * ranks, exits.text
    assert "are waiting" not in exits.text and ABORTED not in exits.text, exits.text
    assert line in exits.text.splitlines() and ("Traceback" in exits.text) == (code == 1), exits.text


def test_stopping_the_watch_waits_for_its_thread():
    """Here the store takes half a second to answer."""
    asked = threading.Event()

    def publish(count: int) -> None:
        asked.set()
        time.sleep(0.5)

    watch = Watch(0, 0.4, publish, lambda: [0])
    watch.start()
    assert asked.wait(10)
    watch.stop()
    assert "watch" not in [thread.name for thread in threading.enumerate()]


class _SlowToEnd(StopSignals):
    def _listen(self) -> None:
        super()._listen()
        time.sleep(0.5)


def test_leaving_the_signals_waits_for_their_thread():
    with _SlowToEnd(verbose=False):
        assert "signals" in [thread.name for thread in threading.enumerate()]
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_no_function_of_pytorch_keeps_the_group():
    """In a new interpreter: DistributedDataParallel imports a module that uses the default group as a default argument."""
    code = """
import torch
from tests.exits import native_threads
from utils import process_group
torch.set_num_threads(1)
process_group.start()
torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
process_group.stop()
print(native_threads())
"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0 and done.stdout.count("'") == 2, (done.stdout, done.stderr)


def test_a_gpu_without_memory_is_one_line():
    """PyTorch's message, with its numbers, and what to do; no traceback."""
    program = """
import torch
from utils import dist
def main():
    dist.start()
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nMore advice")
dist.run_command(main)
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: the GPU's memory is full; lower batch_size") and "2.00 GiB" in done.stderr
