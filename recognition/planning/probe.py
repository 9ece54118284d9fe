"""A few real steps of a run that writes nothing: how long they take, and how much memory the process needs."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from recognition import build
from recognition.data.dataset import FaceDataset
from recognition.data.prefetch import DeviceBatch, Prefetcher
from recognition.encoders.teacher import build_teacher
from recognition.step import TrainStep
from utils.config import Config
from utils.dist import World

TIMED_STEPS = 5
_WARM_UP = 12  # steps on a GPU: DDP measures its first ten, and waits for them


class Timer:
    """Mean seconds of a call, over `calls` calls that are queued without waiting in between, after two to warm up."""

    def __init__(self, device: torch.device, calls: int):
        self.device, self.calls = device, calls

    def __call__(self, action: Callable[[], object]) -> float:
        for _ in range(2):
            action()
        self._wait()
        began = time.perf_counter()
        for _ in range(self.calls):
            action()
        self._wait()
        return (time.perf_counter() - began) / self.calls

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def real_steps(config: Config, dataset: FaceDataset, world: World) -> Iterator[tuple[TrainStep, Iterator[DeviceBatch]]]:
    """The training step and the batches of a run, from a resolved configuration; on a GPU, warmed up."""
    loader = build.build_loader(config, dataset, world)
    prefetcher = Prefetcher(world.device, loader.slots, keep=True)
    state = build.build_train_state(config, world)
    state.encoder.train()
    teacher = build_teacher(config, world.device)
    train = build.build_train_step(config, world, state, on_outcome=lambda skip_reason: None, teacher=teacher)
    batches = itertools.chain.from_iterable(prefetcher(loader.epoch(epoch)) for epoch in itertools.count())
    for _ in range(_WARM_UP if world.device.type == "cuda" else 0):
        train([next(batches)])
    yield train, batches
    train.finish_step()
    prefetcher.close()
    loader.close()


def probe(config: Config, dataset: FaceDataset, world: World) -> tuple[float, int, int]:
    """Seconds per step, and bytes of host memory that this process holds: at most, and after the steps."""
    with real_steps(config, dataset, world) as (train, batches):
        seconds = Timer(world.device, TIMED_STEPS)(lambda: train([next(batches) for _ in range(config.gradient_acc)]))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resident
