"""A whole training step: images per second, model FLOPs utilisation (MFU), and where the time goes.

    python -m benchmarks.step                                   # a small encoder: compile, channels_last, precision
    python -m benchmarks.step --quick
    python -m benchmarks.step --networks r50 r100 --classes 500000 --batch-size 256 --workers 8      # one GPU
    torchrun --nproc_per_node=8 -m benchmarks.step --networks r100 --classes 2000000                  # eight GPUs
    python -m benchmarks.step --networks r50 --profile profile.txt                                    # what takes the time

Real records through the real loader, both views, the joint loss with its queue, SGD: what train.py does. Three things are timed:
steps fed by the loader; the same steps on a batch that is already on the device; the encoder's forward and backward passes alone
(with its all-reduce). Their differences are the shares of the loader and the head. MFU is the encoder's operations per second (2
per multiplication, three passes) divided by those of a large matrix product, measured here in the same number format. Steps are
queued without waiting, as in a run. There is no bar: the figures depend on the machine. Faces: --rec, or procedural ones.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from prettytable import PrettyTable

import backbones
from recognition import build
from recognition.data.demo_faces import make_demo_set
from recognition.data.prefetch import DeviceBatch
from recognition.planning.probe import Timer, real_steps
from recognition.step import TrainStep
from utils import dist
from utils.config import Config, from_base
from utils.dist import World


@dataclass(frozen=True)
class Figures:
    """Measurements on one rank; times in seconds per step."""

    fed: float  # with the loader
    at_hand: float  # on a batch that is already on the device
    encoder: float  # forward and backward passes of the encoder alone
    images: int  # of the world, per step
    operations: float  # of the encoder on this rank, per step
    peak: float  # operations per second of a large matrix product
    memory_gb: float  # peak GPU memory; 0 on the CPU

    def row(self) -> dict[str, float]:
        return {
            "images/s": self.images / self.fed,
            "ms/step": 1e3 * self.fed,
            "loader %": 100 * max(0.0, 1 - self.at_hand / self.fed),
            "encoder %": 100 * self.encoder / self.fed,
            "head and optimiser %": 100 * max(0.0, self.at_hand - self.encoder) / self.fed,
            "MFU of the step %": 100 * self.operations / self.fed / self.peak,
            "MFU of the encoder %": 100 * self.operations / self.encoder / self.peak,
            "GPU GB": self.memory_gb,
        }


def measure(config: Config, steps: int, world: World, profile: Path | None) -> Figures:
    dataset = build.open_dataset(config)
    config = build.resolve_config(config, dataset, world.size)
    with real_steps(config, dataset, world) as (train, batches):
        batch, state = next(batches), train.state

        def alone() -> None:
            train.encode(train.encoder, batch.images_VBHWC).sum().backward()
            state.optimiser.zero_grad(set_to_none=True)

        timed = Timer(world.device, steps)
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        figures = Figures(
            fed=timed(lambda: train([next(batches)])),
            at_hand=timed(lambda: train([batch])),
            encoder=timed(alone),
            images=config.batch_size * world.size,
            operations=3 * 2 * backbones.multiply_adds(state.encoder) * config.views * config.batch_size,
            memory_gb=torch.cuda.max_memory_allocated() / 1e9 if world.device.type == "cuda" else 0.0,
            peak=_peak(world.device, train.autocast or torch.float32),
        )
        if profile is not None:
            _profile(train, batch, profile, world)
    return figures


def _peak(device: torch.device, number: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of three measurements."""
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(side, side, device=device, dtype=number) for _ in range(2))
    timed = Timer(device, 3)
    return 2 * side**3 / min(timed(lambda: left @ right) for _ in range(3))


def _profile(train: TrainStep, batch: DeviceBatch, path: Path, world: World) -> None:
    """Profile three steps; write rank 0's operators, sorted by time, to a file."""
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
    """Name -> changed settings: the given networks with the default settings, or a small one in every way."""
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
    parser.add_argument("--batch-size", type=int, default=0, help="images per rank (default 128 on GPUs, 48 on the CPU)")
    parser.add_argument("--steps", type=int, default=0, help="timed steps (default 30 on GPUs, 8 on the CPU)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes per rank")
    parser.add_argument("--head-precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--rec", default="", help="records to train on (default: procedural faces)")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write the operators of the last network's step, sorted by time"
    )
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
            dist.on_first_rank(
                lambda: make_demo_set(Path(rec), identities=64, images_per_identity=16, unseen=6, pairs=20, workers=2)
            )
        base = from_base(
            rec=rec, num_classes=arguments.classes, batch_size=arguments.batch_size or (128 if on_gpu else 48),
            num_workers=arguments.workers, head_precision=arguments.head_precision,
            lr=1e-3, quality_mean=22.0, quality_std=5.0, output="unused",
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
    dist.run_command(main)
