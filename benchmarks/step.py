"""A whole training step: images a second, the encoder's share of what the device can multiply, and where the time goes.

    python -m benchmarks.step                                   # compile, channels_last and number formats of a small encoder
    python -m benchmarks.step --quick
    python -m benchmarks.step --networks r50 r100 --classes 500000 --batch-size 256 --workers 8      # one GPU
    torchrun --nproc_per_node=8 -m benchmarks.step --networks r100 --classes 2000000                  # as many as there are
    python -m benchmarks.step --networks r50 --profile profile.txt                                    # what limits a step

Real records through the real loader, both views, the joint loss with its queue, SGD: what train.py does. Three things are timed:
steps fed by the loader; the same steps on a batch that is on the device already; the encoder's forward and backward passes alone
(with its all-reduce). Their differences are the loader's and the head's shares. MFU is the encoder's arithmetic (2 operations a
multiplication, three passes) over that of a large matrix product measured here in the same number format. There is no bar:
figures depend on the machine. Steps are queued without waiting, so that times are those of a run. Faces: --rec, or drawn ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from prettytable import PrettyTable
from torch import nn

import backbones
from recognition import build
from recognition.data.demo_faces import make_demo_set
from recognition.data.prefetch import DeviceBatch, Prefetcher
from recognition.encoders.build import build_encoder
from recognition.encoders.embedder import autocast_type, to_input
from recognition.optimiser import LossScale, build_optimiser
from recognition.step import TrainStep
from utils import dist
from utils.config import Config, from_base
from utils.dist import World
from utils.errors import exit_on_user_error


@dataclass(frozen=True)
class Figures:
    """Seconds a step (fed, on a batch at hand, encoder alone) and what follows from them, for one rank."""

    fed: float
    at_hand: float
    encoder: float
    images: int  # of the world, a step
    operations: float  # of the encoder on this rank, a step
    peak: float  # operations a second of a large matrix product
    memory_gb: float  # largest use of the GPU; 0 on the CPU

    def row(self) -> dict[str, float]:
        return {
            "images/s": self.images / self.fed,
            "ms a step": 1e3 * self.fed,
            "loader %": 100 * max(0.0, 1 - self.at_hand / self.fed),
            "encoder %": 100 * self.encoder / self.fed,
            "head and optimiser %": 100 * max(0.0, self.at_hand - self.encoder) / self.fed,
            "MFU of the step %": 100 * self.operations / self.fed / self.peak,
            "MFU of the encoder %": 100 * self.operations / self.encoder / self.peak,
            "GPU GB": self.memory_gb,
        }


def measure(config: Config, steps: int, world: World, profile: Path | None) -> Figures:
    dataset = build.open_dataset(config)
    config = build.settle(config, dataset, world)
    loader = build.build_loader(config, dataset, world)
    prefetcher = Prefetcher(world.device, loader.slots, keep=True)
    autocast = autocast_type(config.precision, world.device)
    encoder = build_encoder(config).to(world.device).train()
    joint = build.build_joint_loss(config, world)
    optimiser = build_optimiser(config, encoder, joint.classifier)
    module = torch.compile(encoder) if config.compile else encoder
    devices = [world.device] if world.device.type == "cuda" else None
    parallel = nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
    scale = LossScale(autocast == torch.float16, world.device)
    train = TrainStep(parallel, joint, optimiser, scale, autocast, 0.0, world.device, lambda why: None)
    batches = chain.from_iterable(prefetcher(loader.epoch(epoch)) for epoch in range(1 << 20))
    batch = next(batches)

    def alone() -> None:
        inputs = to_input(batch.images_VBHWC.flatten(0, 1), world.device)
        with torch.autocast(world.device.type, dtype=autocast, enabled=autocast is not None):
            features = parallel(inputs)
        features.float().sum().backward()
        optimiser.zero_grad(set_to_none=True)

    timed = _Timer(world.device, steps)
    figures = Figures(
        fed=timed(lambda: train([next(batches)])),
        at_hand=timed(lambda: train([batch])),
        encoder=timed(alone),
        images=config.batch_size * world.size,
        operations=3 * 2 * backbones.flops(encoder) * config.views * config.batch_size,
        peak=_peak(world.device, autocast or torch.float32),
        memory_gb=torch.cuda.max_memory_allocated() / 1e9 if world.device.type == "cuda" else 0.0,
    )
    if profile is not None:
        _profile(train, batch, profile, world)
    train.settle()
    prefetcher.close()
    loader.close()
    return figures


class _Timer:
    """Seconds of a call, the mean of several that are queued without waiting for each other, after two that warm up."""

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


def _peak(device: torch.device, number: torch.dtype) -> float:
    """Operations a second of a large product of matrices, the best of several."""
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(side, side, device=device, dtype=number) for _ in range(2))
    timed = _Timer(device, 3)
    return 2 * side**3 / min(timed(lambda: left @ right) for _ in range(3))


def _profile(train: TrainStep, batch: DeviceBatch, path: Path, world: World) -> None:
    """Three steps of all ranks; rank 0's operators, by time, into a file."""
    on_gpu = world.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            train([batch])
    if not world.is_first:
        return
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    path.write_text(profiler.key_averages().table(sort_by=by, row_limit=40) + "\n")
    print(f"profile: {path}")


def variants(arguments: argparse.Namespace, device: torch.device) -> dict[str, dict[str, Any]]:
    """Name -> changed settings: the given networks as they would be trained, or one small network in all ways."""
    if arguments.networks:
        return {name: {"network": name} for name in arguments.networks}
    plain = {"precision": "fp32", "channels_last": False, "compile": False}
    ways = {
        "fp32": plain,
        "fp32, channels_last": {**plain, "channels_last": True},
        "bf16": {**plain, "precision": "bf16"},
        "bf16, channels_last": {**plain, "precision": "bf16", "channels_last": True},
        "bf16, channels_last, compiled": {"precision": "bf16", "channels_last": True, "compile": True},
    }
    network = "r50" if device.type == "cuda" else "tiny"
    return {f"{network}, {way}": {**settings, "network": network} for way, settings in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer steps, not compiled")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="names of backbones/")
    parser.add_argument("--classes", type=int, default=8631)
    parser.add_argument("--batch-size", type=int, default=0, help="images a rank (default 128 on GPUs, 48 on the CPU)")
    parser.add_argument("--steps", type=int, default=0, help="timed (default 30 on GPUs, 8 on the CPU)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes a rank")
    parser.add_argument("--rec", default="", help="records to train on (default: procedural faces)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="operators of the last network's step, by time")
    arguments = parser.parse_args()
    world = dist.start(60)
    on_gpu = world.device.type == "cuda"
    steps = arguments.steps or (30 if on_gpu else 3 if arguments.quick else 8)
    ways = variants(arguments, world.device)
    if arguments.quick:
        ways = {name: way for name, way in ways.items() if not way.get("compile")}
    with tempfile.TemporaryDirectory() as folder:
        rec = arguments.rec or f"{dist.broadcast_object(folder)}/faces"
        if not arguments.rec:
            dist.on_first_rank(lambda: make_demo_set(Path(rec), 64, 16, unseen=6, pairs=20, workers=2))
        base = from_base(
            rec=rec, num_classes=arguments.classes, batch_size=arguments.batch_size or (128 if on_gpu else 48),
            num_workers=arguments.workers, lr=1e-3, quality_mean=22.0, quality_std=5.0, output="unused",
        )  # fmt: skip
        rows = {}
        for name, way in ways.items():
            figures = measure(replace(base, **way), steps, world, arguments.profile if name == list(ways)[-1] else None)
            rows[name] = {**figures.row(), "peak TFLOP/s": figures.peak / 1e12}
            if world.is_first:
                print(f"{name}: {rows[name]['images/s']:.0f} images/s", flush=True)
            dist.barrier()
    if world.is_first:
        _print(rows, world, base)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    dist.stop()


def _print(rows: dict[str, dict[str, float]], world: World, base: Config) -> None:
    columns = list(next(iter(rows.values())))
    table = PrettyTable(["step", *columns], align="r")
    table.align["step"] = "l"
    for name, row in rows.items():
        table.add_row([name, *(f"{row[column]:.1f}" if row[column] < 1000 else f"{row[column]:,.0f}" for column in columns)])
    device = torch.cuda.get_device_name() if world.device.type == "cuda" else "CPU"
    images = f"{world.size} x {base.batch_size} images, two views each"
    print(f"{images}, {base.num_classes:,} classes; {device}, torch {torch.__version__}")
    print(table.get_string())


if __name__ == "__main__":
    exit_on_user_error(main)
