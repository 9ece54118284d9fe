"""What the diagnostics (recognition/monitor/diagnostics.py) cost beside the steps of a training run.

    python benchmarks/diagnostics.py                    # some minutes on two cores
    python benchmarks/diagnostics.py --quick            # under a minute
    python benchmarks/diagnostics.py --json figures.json

One process trains on images of noise: encoder, both losses, a full queue, optimiser, all that a run does but loading. A look
is everything that happens every `diagnose_every` steps: a copy of the batch's images, its second pass through the encoder,
comparison with the queue, metrics.jsonl, TensorBoard and pair_differences.json with a long history. A line is what happens every
`frequent` steps: the step's figures read, console, metrics.jsonl, TensorBoard. Pictures (figures 2 and 5 of the paper for
TensorBoard) come once in ten looks at most. They take turns; figures are the processor's time (on a GPU, the clock's, after
waiting for the device), each the median.

The bar: all of it takes at most 1 % of the steps' time by the defaults of configs/base.py. Exits 0 only where it holds in every
setting.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script: it finds the packages beside its own folder

from recognition import build  # noqa: E402
from recognition.data.prefetch import DeviceBatch  # noqa: E402
from recognition.encoders.build import build_encoder  # noqa: E402
from recognition.encoders.embedder import autocast_type  # noqa: E402
from recognition.monitor.diagnostics import LOOKS_A_PICTURE, Diagnostics, _Kept  # noqa: E402
from recognition.monitor.progress import Progress  # noqa: E402
from recognition.monitor.queue_drift import Drift  # noqa: E402
from recognition.optimiser import LossScale, build_optimiser  # noqa: E402
from recognition.step import TrainStep  # noqa: E402
from utils import dist  # noqa: E402
from utils.config import Config, from_base  # noqa: E402

BAR = 0.01
HISTORY = 2000  # points in pair_differences.json already


@dataclass(frozen=True)
class Setting:
    network: str
    classes: int
    images: int


QUICK = [Setting("tiny", 430, 24)]
FULL = [*QUICK, Setting("tiny", 8631, 96), Setting("r18", 8631, 16)]
ON_GPU = [Setting("r34", 8631, 128), Setting("r50", 100_000, 128)]


def seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(setting: Setting, looks: int, world: dist.World, folder: Path) -> dict[str, float]:
    """Medians of the time of a step, a look, a line and the pictures, in seconds."""
    config = from_base(
        network=setting.network, num_classes=setting.classes, batch_size=setting.images, queue_size=setting.classes,
        lr=1e-3, precision="auto" if world.device.type == "cuda" else "fp32", output=str(folder), diagnose_every=1,
    )  # fmt: skip
    train, diagnostics = _prepare(setting, config, world)
    joint = train.joint
    took: dict[str, list[float]] = {"step": [], "look": [], "line": [], "pictures": []}
    with Progress(folder, True, looks, 0) as progress, open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        for number in range(looks + 1):
            batch = _batch(setting, number, world.device)
            looked_at = _Kept(number, batch.images_VBHWC, batch.labels_B, None)
            fresh_VGD = torch.rand(*batch.images_VBHWC.shape[:2], config.embedding_size, device=world.device)
            begin = seconds(world.device)
            result = train([batch])
            middle = seconds(world.device)
            copied = batch.images_VBHWC.clone()
            kept = DeviceBatch(copied, batch.labels_B, batch.indices_B, ())
            diagnostics.after_step(HISTORY + number, kept, progress, train.settle)
            looked = seconds(world.device)
            assert not train.settle(), "no step is skipped"
            progress.steps(number + 1, 0.0, setting.images, {**result.figures(joint.quality), "lr": config.lr})
            told = seconds(world.device)
            diagnostics._draw(number, looked_at, fresh_VGD, progress)
            drawn = seconds(world.device)
            if number:  # the first one warms up
                for name, time_taken in (
                    ("step", middle - begin), ("look", looked - middle), ("line", told - looked), ("pictures", drawn - told)
                ):  # fmt: skip
                    took[name].append(time_taken)
    lines = (folder / "metrics.jsonl").read_text()
    assert lines.count("threshold_norm") == looks + 1, "every look has been one"
    return {name: statistics.median(values) for name, values in took.items()}


def _prepare(setting: Setting, config: Config, world: dist.World) -> tuple[TrainStep, Diagnostics]:
    """A step with a full queue, and diagnostics with a long history."""
    autocast = autocast_type(config.precision, world.device)
    encoder = build_encoder(config).to(world.device).train()
    joint = build.build_joint_loss(config, world)
    optimiser = build_optimiser(config, encoder, joint.classifier)
    parallel = torch.nn.parallel.DistributedDataParallel(encoder, gradient_as_bucket_view=True)
    train = TrainStep(parallel, joint, optimiser, LossScale(False, world.device), autocast, 0.0, world.device, lambda why: None)
    diagnostics = Diagnostics(config, encoder, joint, autocast, world, 0, HISTORY)
    assert diagnostics._file is not None
    for step in range(HISTORY):
        for kind in ("proxy, as stored", "proxy, compensated"):
            diagnostics._file.add(kind, step, 8, Drift(0.123456789, 0.987654321, 0.99))
    _fill(joint, setting, world.device)
    return train, diagnostics


def _fill(joint, setting: Setting, device: torch.device) -> None:
    """A full queue."""
    generator = torch.Generator().manual_seed(1)
    for start in range(0, setting.classes, 8192):
        count = min(8192, setting.classes - start)
        labels = torch.randint(0, setting.classes, (count,), generator=generator)
        joint.queue.enqueue(torch.randn(count, 512, generator=generator).to(device), labels, joint.classifier.rows_of)


def _batch(setting: Setting, number: int, device: torch.device) -> DeviceBatch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (2, setting.images, 112, 112, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, setting.classes, (setting.images,), generator=generator)
    return DeviceBatch(images.to(device), labels, labels.numpy(), ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: one small setting")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    arguments = parser.parse_args()
    world = dist.start(60)
    settings = ON_GPU if world.device.type == "cuda" else QUICK if arguments.quick else FULL
    defaults, document, good = from_base(), [], True
    every = {"look": defaults.diagnose_every, "line": defaults.frequent, "pictures": LOOKS_A_PICTURE * defaults.diagnose_every}
    for setting in settings:
        with tempfile.TemporaryDirectory() as folder:
            took = measure(setting, 5 if arguments.quick else 9, world, Path(folder))
        share = sum(took[what] / steps for what, steps in every.items()) / took["step"]
        holds = share <= BAR
        good &= holds
        document.append({**vars(setting), **took, "every": every, "share": share})
        parts = ", ".join(
            f"{what} {took[what]:.3f} s every {steps} ({took[what] / steps / took['step']:.2%})" for what, steps in every.items()
        )
        print(
            f"{setting.network}, {setting.classes:,} classes, {setting.images} pairs a step: step {took['step']:.3f} s; {parts}; "
            f"together {share:.2%} (bar {BAR:.0%}) {'ok' if holds else 'MISSED'}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    dist.stop()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
