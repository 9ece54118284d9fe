"""`python -m eval quality`: is the feature's norm a measure of the image's quality?

Sets of the same faces in different quality, the sharpest first. The method takes the norm for the quality (QGFace, eq. 1); this
says how far that holds for an encoder: how well the norm tells a face of another set from one of the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

from eval.commands.common import (
    Context,
    Encoder,
    Reporting,
    Results,
    add_batch_argument,
    add_checkpoint_argument,
    add_json_argument,
    add_precision_argument,
    plot_folder,
    write_json,
)  # fmt: skip
from eval.embedding import embed_images
from eval.present.plots import new_figure, save_figure
from eval.present.tables import NOT_MEASURED
from eval.roc import roc_curve
from eval.verification import load_bin
from utils import dist
from utils.errors import UserError

NAME = "quality"
HELP = "norms of sharp and of degraded sets: does the norm tell the quality?"

_COLUMNS = {
    "images": "images", "norm": "norm", "±": "norm_std", "below the sharpest (AUC, %)": "auc",
    "below its own sharp twin (%)": "below_twin", "u": "quality", "u ≤ b (%)": "low_quality_share",
}  # fmt: skip
_RATES = ("auc", "below_twin", "low_quality_share")
_BINS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument("--bins", nargs="+", required=True, metavar="FILE", help="the sharpest set first")
    parser.add_argument("--plots", metavar="DIR", help="draw the histograms (PNG and SVG) here; default: RUN/eval")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, context: Context) -> None:
    bins = [Path(path) for path in arguments.bins]
    names = [path.stem for path in bins]
    if len(set(names)) != len(names):
        raise UserError(f"--bins {' '.join(arguments.bins)}: two files of one name; their figures would be confused")
    encoder = context.open_encoder(arguments.checkpoint)
    norms: dict[str, np.ndarray] = {}
    for name, path in zip(names, bins, strict=True):
        encoded, _ = load_bin(path)
        embed = Reporting(encoder.embed, name, len(encoded))
        norms[name] = np.linalg.norm(embed_images(embed, encoded, arguments.batch_size, flip=False, describe=name), axis=1)
        if not np.isfinite(norms[name]).all():
            raise UserError(f"{encoder.label}: features of {name} are not finite; check the checkpoint")

    def show() -> Results:
        results = compare_norms(norms, encoder)
        print(_table(encoder, results))
        if folder := plot_folder(arguments):
            print("plots:", ", ".join(map(str, _plot(encoder, norms, folder / "norms"))))
        return results

    write_json(arguments, dist.on_first_rank(show))


def compare_norms(norms: Mapping[str, np.ndarray], encoder: Encoder) -> Results:
    """For each set: mean and deviation of the norms; beside the first set, the probability that a face of this one has the
    smaller norm (`auc`; 1/2: the norm knows nothing, 1: all), and, where both have as many images, the share of images whose
    norm is below that of the same image there (`below_twin`); where the encoder knows its statistics, the mean of u (eq. 1),
    and the share of images with u <= b."""
    first = next(iter(norms.values()))
    results: Results = {}
    for name, found in norms.items():
        results[name] = {"images": float(len(found)), "norm": float(found.mean()), "norm_std": float(found.std())}
        if found is not first:
            sharp = np.repeat([True, False], [len(first), len(found)])
            results[name]["auc"] = roc_curve(np.concatenate([first, found]), sharp).auc
            if len(found) == len(first):
                results[name]["below_twin"] = float((found < first).mean())
        if encoder.quality is not None:
            u = encoder.quality(found)
            results[name]["quality"] = float(u.mean())
            if encoder.threshold is not None:
                results[name]["low_quality_share"] = float((u <= encoder.threshold).mean())
    return results


def _table(encoder: Encoder, results: Results) -> PrettyTable:
    table = PrettyTable([encoder.label, *_COLUMNS], align="r")
    table.align[encoder.label] = "l"
    for name, figures in results.items():
        cells = []
        for key in _COLUMNS.values():
            value = figures.get(key)
            text = NOT_MEASURED if value is None else f"{value:.0f}" if key == "images" else f"{value:.3f}"
            cells.append(f"{100 * value:.1f}" if key in _RATES and value is not None else text)
        table.add_row([name, *cells])
    return table


def _plot(encoder: Encoder, norms: Mapping[str, np.ndarray], path: Path) -> list[Path]:
    figure, axes = new_figure(f"Norms of {encoder.label}", "norm of the feature", "images")
    together = np.concatenate(list(norms.values()))
    edges = np.linspace(together.min(), max(together.max(), together.min() + 1e-6), _BINS + 1)
    for name, found in norms.items():
        axes.hist(found, bins=list(edges), histtype="stepfilled", alpha=0.35, label=name)
    axes.legend(frameon=False)
    return save_figure(figure, path)
