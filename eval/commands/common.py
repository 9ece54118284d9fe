"""What the subcommands of `python -m eval` share: the encoder they are given, common arguments, progress, output.

A subcommand is a module with `NAME`, `HELP`, `add_arguments(parser)` and `run(arguments, context)`; `eval/__main__.py` lists it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eval.embedding import Embed
from eval.feature_cache import FeatureCache
from eval.present.tables import write_results
from utils import dist
from utils.dist import World
from utils.errors import UserError

Results = dict[str, dict[str, float]]
"""Set name -> metric -> value: what is printed, written to --json and to a run's results.json."""

_SECONDS_BETWEEN_REPORTS = 5.0


@dataclass(frozen=True)
class Encoder:
    """An encoder as the benchmarks use it."""

    embed: Embed
    label: str  # what its rows are called in tables and plots
    key: str  # changes whenever its weights may have changed
    quality: Callable[[np.ndarray], np.ndarray] | None = None  # norms of raw features [N] -> u in 0..1, where a run knows it
    threshold: float | None = None  # b: a face with u <= b is of low quality


@dataclass(frozen=True)
class TrainingViews:
    """Some of a run's training images as its losses see them: uint8 RGB [n, 112, 112, 3] each, row by row a pair."""

    originals: np.ndarray
    augmented: np.ndarray


@dataclass(frozen=True)
class Context:
    """What a subcommand is handed besides its arguments."""

    world: World
    open_encoder: Callable[[str], Encoder]  # of a run or checkpoint folder, a file of weights, an exported file
    export: Callable[[str, str], str] | None = None  # (checkpoint, file to write) -> what was done, for people
    training_views: Callable[[str, int], TrainingViews] | None = None  # (run folder, number of images)


# -------------------------------------------------------------------------------------------------- arguments


_ENCODERS = "run folder, one of its checkpoints, released weights (.pt .pth .ckpt) or an exported encoder (.safetensors .onnx)"


def add_benchmark_arguments(parser: argparse.ArgumentParser, checkpoint_required: bool = True) -> None:
    """What every benchmark takes: the encoder, intervals, where the figures and plots go."""
    add_encoder_arguments(parser, checkpoint_required)
    parser.add_argument(
        "--bootstrap", type=positive, default=0, metavar="N", help="95%% confidence intervals from N resamplings, such as 1000"
    )
    add_json_argument(parser)
    parser.add_argument("--plots", metavar="DIR", help="write plots (PNG and SVG) here; default: RUN/eval")


def add_encoder_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """An encoder that embeds many images."""
    add_checkpoint_argument(parser, required)
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument(
        "--cache", metavar="DIR", help="keep features here, and use them again while checkpoint and images stay as they are"
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser, required: bool = True, described: str = _ENCODERS) -> None:
    parser.add_argument("--checkpoint", required=required, metavar="RUN", help=described)
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="of a file that does not say; default: by its family")
    parser.add_argument("--network", help="of released weights whose entries do not tell; a name of backbones/")


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"),
        help="numbers that the encoder computes in; default: the run's, else bf16 where the hardware has it",
    )  # fmt: skip


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=positive, default=128, help="images a rank embeds at a time (default 128)")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def feature_cache(arguments: argparse.Namespace, encoder: Encoder) -> FeatureCache | None:
    """The cache that `--cache` asks for, or None."""
    return FeatureCache(Path(arguments.cache), encoder.key) if arguments.cache else None


def plot_folder(arguments: argparse.Namespace) -> Path | None:
    """Where plots go: `--plots`, else a folder `eval` in the run, else nowhere."""
    if not hasattr(arguments, "plots"):
        return None
    if arguments.plots:
        return Path(arguments.plots)
    checkpoint = getattr(arguments, "checkpoint", None)
    return Path(checkpoint) / "eval" if checkpoint and Path(checkpoint).is_dir() else None


# -------------------------------------------------------------------------------------------------- output


def prepare_outputs(arguments: argparse.Namespace) -> None:
    """Makes the folders that `--json`, `--plots`, `--cache` and `--out` name, so that a mistake is told before hours of work.
    UserError where they cannot be made or written to."""
    given = {name: Path(getattr(arguments, name, None) or "") for name in ("json", "out", "cache")}
    folders = {f"--{name} {path}": path if name == "cache" else path.parent for name, path in given.items() if path.name}
    if plots := plot_folder(arguments):
        folders[f"--plots {plots}"] = plots
    for told, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UserError(f"{told}: cannot be written ({fault.strerror})") from fault
        if not os.access(folder, os.W_OK):
            raise UserError(f"{told}: cannot be written (no permission for {folder})")


def write_json(arguments: argparse.Namespace, results: Mapping[str, Mapping[str, float]]) -> None:
    """Writes the results to `--json`, if it was given; from rank 0."""
    if not arguments.json:
        return

    def write() -> None:
        write_results(arguments.json, results, label=f"--json {arguments.json}")
        print(f"figures: {arguments.json}")

    dist.on_first_rank(write)


class Reporting:
    """An `Embed` that says on stderr, on rank 0, how far it is, when that takes longer than a few seconds."""

    def __init__(self, embed: Embed, describe: str, images: int):
        rank, world = dist.rank_and_world()
        self.embed, self.describe, self.images, self.done = embed, describe, -(-images // world), 0
        self.loud = rank == 0
        self.started = self.reported = time.monotonic()

    def __call__(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        rows = self.embed(images_nHWC)
        self.done += len(images_nHWC)
        now = time.monotonic()
        if self.loud and now - self.reported > _SECONDS_BETWEEN_REPORTS:
            self.reported = now
            rate = self.done / (now - self.started)
            left = max(0.0, (self.images - self.done) / rate)
            print(
                f"{self.describe}: {self.done:,} of {self.images:,} images a rank, {rate:,.0f} a second, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        return rows
