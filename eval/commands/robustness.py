"""`python -m eval robustness`: what encoders lose as images get smaller, blurred, noisy, dark, rotated or misaligned."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.commands.common import (
    Figures,
    ImageSet,
    add_batch_argument,
    add_json_argument,
    add_precision_argument,
    bin_sets,
    embed,
    named_bins,
    open_encoder,
    plot_folder,
    positive,
    save_plots,
)
from eval.embedding import check_bins
from eval.present.robustness import Course, draw_robustness, robustness_table
from eval.verification import judge_set
from recognition.data.degrade import AXES
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "robustness"
HELP = "accuracy, TAR and norm against resolution, blur, noise, JPEG, brightness, rotation, misalignment; several encoders"

_DEGRADED = {"both": (0, 1), "second": (1,)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="RUN", help="a run, checkpoint or encoder file, as for the benchmarks")
    parser.add_argument("others", nargs="*", metavar="RUN", help="encoders to compare it with")
    parser.add_argument("--bins", nargs="+", required=True, metavar="FILE", help="verification sets of sharp faces")
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES), metavar="KIND", help=", ".join(AXES))
    parser.add_argument("--degrade", choices=tuple(_DEGRADED), default="both", help="faces of a pair to degrade (both)")
    parser.add_argument("--pairs", type=positive, default=0, metavar="N", help="use about N pairs, evenly spaced; default: all")
    parser.add_argument("--far", type=float, default=1e-2, help="false accept rate of the TAR (default 0.01)")
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument("--plots", metavar="DIR", help="write plots (PNG and SVG) here; default: eval in the first run")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    bins = named_bins(arguments.bins)
    check_bins(bins)
    sets = [_chosen(*each, arguments) for each in bin_sets(bins.values())]
    paths = [arguments.checkpoint, *arguments.others]
    names = [Path(path).resolve().name for path in paths]
    labels = names if len(set(names)) == len(names) else paths
    if len(set(labels)) != len(labels):
        raise UserError(f"{', '.join(labels)}: the same encoder twice; name each once")
    encoders = {label: open_encoder(arguments, world, path) for label, path in zip(labels, paths, strict=True)}
    figures, folder, tar = Figures(arguments), plot_folder(arguments), f"tar@far={arguments.far:g}"
    for images, issame in sets:
        courses = _measure(encoders, images, issame, arguments)
        for course in courses:
            for label, points in course.points.items():
                figures.add({f"{label}/{images.name}/{course.name}={level:g}": found for level, found in points.items()})
        dist.on_first_rank(partial(_show, folder, images.name, len(issame), courses, tar, arguments.degrade))
    figures.finish()


def _chosen(images: ImageSet, issame: np.ndarray, arguments: argparse.Namespace) -> tuple[ImageSet, np.ndarray]:
    """The set, or `--pairs` of its pairs. Raises UserError if its pairs cannot show a FAR of `--far`."""
    count = min(arguments.pairs or len(issame), len(issame))
    parts = []
    for kind in (True, False):  # evenly spaced among the pairs of each kind, whatever their order
        of_kind = np.flatnonzero(issame == kind)
        share = round(count * len(of_kind) / len(issame))
        parts.append(of_kind[np.arange(share) * len(of_kind) // max(share, 1)])
    kept = np.sort(np.concatenate(parts))
    issame = issame[kept]
    if not 0 < arguments.far < 1 or arguments.far * (~issame).sum() < 1:
        raise UserError(
            f"--far {arguments.far:g}: {images.name} has {(~issame).sum():,} different pairs; use a larger rate below 1"
        )
    rows = (2 * kept[:, None] + [0, 1]).flatten().tolist()
    return ImageSet(images.name, len(rows), lambda index: images.load(rows[index]), images.sources), issame


def _measure(
    encoders: dict[str, LoadedEncoder], images: ImageSet, issame: np.ndarray, arguments: argparse.Namespace
) -> list[Course]:
    """Embed each image at each level with each encoder, unchanged images once. On all ranks; all get the metrics."""

    def load(name: str, level: float, index: int) -> np.ndarray:
        image = images.load(index)
        return AXES[name](image, level, index) if index % 2 in _DEGRADED[arguments.degrade] else image

    def metrics(encoder: LoadedEncoder, name: str, level: float) -> dict[str, float]:
        described = f"{images.name}, {name} {level:g}"
        rows = embed(encoder, ImageSet(described, images.count, partial(load, name, level), []), arguments.batch_size, _both)
        return dist.on_first_rank(partial(_judge, described, rows, issame, arguments))

    courses = [Course(name, AXES[name].unit, AXES[name].unchanged, {}) for name in dict.fromkeys(arguments.axes)]
    for label, encoder in encoders.items():
        unchanged = metrics(encoder, courses[0].name, courses[0].unchanged)
        for course in courses:
            course.points[label] = {
                level: unchanged if level == course.unchanged else metrics(encoder, course.name, level)
                for level in AXES[course.name].levels
            }
    return courses


def _both(plain: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    return torch.cat([plain, flipped], dim=1)


def _judge(described: str, rows: np.ndarray, issame: np.ndarray, arguments: argparse.Namespace) -> dict[str, float]:
    plain, flipped = np.split(rows, 2, axis=1)
    found = judge_set(described, plain + flipped, issame)
    degraded = np.isin(np.arange(len(rows)) % 2, _DEGRADED[arguments.degrade])
    return {
        "accuracy": found.accuracy,
        "auc": found.auc,
        f"tar@far={arguments.far:g}": found.roc.tar_at_far(arguments.far),
        "norm": float(np.linalg.norm(plain[degraded], axis=1).mean()),
        "pairs": len(issame),
    }


def _show(folder: Path | None, name: str, pairs: int, courses: list[Course], tar: str, degraded: str) -> None:
    print(robustness_table(name, courses, tar))
    if folder:
        title = f"Robustness on {name} ({pairs:,} pairs, degraded: {degraded})"
        save_plots(folder, {f"robustness_{name}": draw_robustness(title, courses, tar)})
