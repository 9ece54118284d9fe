"""Cost of the diagnostics (recognition/monitor/diagnostics.py), relative to the steps of a training run.

    python benchmarks/diagnostics.py                    # some minutes on two cores
    python benchmarks/diagnostics.py --quick            # under a minute
    python benchmarks/diagnostics.py --json figures.json

One process trains on noise images: encoder, both losses, a full queue, optimiser; all that a run does except loading. It measures

- a diagnosis, every `diagnose_every` steps: a copy of the batch's images, a second forward pass, comparison with the queue,
  metrics.jsonl, TensorBoard, and pair_differences.json with a long history;
- a line, every `frequent` steps: reading the step's figures, console, metrics.jsonl, TensorBoard;
- pictures for TensorBoard (figures 2 and 5 of the paper), once in ten diagnoses at most.

Each figure is the median of several measurements, in turn, of processor time (on a GPU: wall time after waiting for the device).

The bar: together at most 1 % of the steps' time with the defaults of configs/base.py. Exits with 0 if every setting meets it.
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
sys.path.insert(0, str(ROOT))  # run as a script: the packages are next to its folder

from recognition import build  # noqa: E402
from recognition.data.prefetch import DeviceBatch  # noqa: E402
from recognition.monitor.diagnostics import DIAGNOSES_PER_PICTURE, Diagnostics, _Kept  # noqa: E402
from recognition.monitor.progress import Progress  # noqa: E402
from recognition.monitor.queue_drift import Drift  # noqa: E402
from recognition.step import TrainStep  # noqa: E402
from utils import dist  # noqa: E402
from utils.config import Config, from_base  # noqa: E402
from utils.images import FACE_SIZE  # noqa: E402

BAR = 0.01
HISTORY = 2000  # points already in pair_differences.json


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


def measure(setting: Setting, repeats: int, world: dist.World, folder: Path) -> dict[str, float]:
    """Median times of a step, a diagnosis, a line and the pictures, in seconds."""
    config = from_base(
        network=setting.network, num_classes=setting.classes, batch_size=setting.images, queue_size=setting.classes,
        lr=1e-3, precision="auto" if world.device.type == "cuda" else "fp32", output=str(folder), diagnose_every=1,
    )  # fmt: skip
    took: dict[str, list[float]] = {"step": [], "diagnosis": [], "line": [], "pictures": []}
    progress = Progress(folder, True, repeats, 0)
    train, diagnostics = _prepare(setting, config, world, progress)
    with progress, open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        for number in range(repeats + 1):
            batch = _batch(setting, number, world.device)
            kept = _Kept(number, batch.images_VBHWC, batch.labels_B, None)
            fresh_VGD = torch.rand(*batch.images_VBHWC.shape[:2], config.embedding_size, device=world.device)
            begin = seconds(world.device)
            result = train([batch])
            trained = seconds(world.device)
            copy = DeviceBatch(batch.images_VBHWC.clone(), batch.labels_B, batch.indices_B, ())
            diagnostics.after_step(HISTORY + number, copy)
            diagnosed = seconds(world.device)
            assert not train.finish_step(), "no step is skipped"
            progress.steps(number + 1, 0.0, setting.images, {**result.figures(train.state.joint.quality), "lr": config.lr})
            printed = seconds(world.device)
            diagnostics._draw(number, kept, fresh_VGD)
            drawn = seconds(world.device)
            if number:  # the first one warms up
                times = (trained - begin, diagnosed - trained, printed - diagnosed, drawn - printed)
                for name, time_taken in zip(took, times, strict=True):
                    took[name].append(time_taken)
    lines = (folder / "metrics.jsonl").read_text()
    assert lines.count("threshold_norm") == repeats + 1, "one diagnosis per step"
    return {name: statistics.median(values) for name, values in took.items()}


def _prepare(setting: Setting, config: Config, world: dist.World, progress: Progress) -> tuple[TrainStep, Diagnostics]:
    """A step with a full queue, and diagnostics with a long history."""
    state = build.build_train_state(config, world)
    state.encoder.train()
    train = build.build_train_step(config, world, state, on_outcome=lambda skip_reason: None)
    diagnostics = Diagnostics(config, train, progress, steps_per_epoch=HISTORY, first_step=0)
    assert diagnostics._file is not None
    for step in range(HISTORY):
        for kind in ("proxy, as stored", "proxy, compensated"):
            diagnostics._file.add(kind, step, 8, Drift(0.123456789, 0.987654321, 0.99))
    _fill(state.joint, setting, world.device)
    return train, diagnostics


def _fill(joint, setting: Setting, device: torch.device) -> None:
    """Fill the queue."""
    generator = torch.Generator().manual_seed(1)
    for start in range(0, setting.classes, 8192):
        count = min(8192, setting.classes - start)
        labels = torch.randint(0, setting.classes, (count,), generator=generator)
        joint.queue.enqueue(torch.randn(count, 512, generator=generator).to(device), labels, joint.classifier.rows_of)


def _batch(setting: Setting, number: int, device: torch.device) -> DeviceBatch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (2, setting.images, FACE_SIZE, FACE_SIZE, 3), dtype=torch.uint8, generator=generator)
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
    every = {
        "diagnosis": defaults.diagnose_every,
        "line": defaults.frequent,
        "pictures": DIAGNOSES_PER_PICTURE * defaults.diagnose_every,
    }
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
            f"{setting.network}, {setting.classes:,} classes, {setting.images} pairs per step: step {took['step']:.3f} s; "
            f"{parts}; together {share:.2%} (bar {BAR:.0%}) {'ok' if holds else 'MISSED'}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    dist.stop()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
