"""`python -m eval quality`: does the norm of a feature measure the quality of its image?

The input is the same faces in sets of different quality, the sharpest first. The method uses the norm as the quality (QGFace,
eq. 1); this command measures how well the norm separates the faces of each set from those of the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np

from eval.commands.common import (
    Figures,
    Results,
    add_batch_argument,
    add_checkpoint_argument,
    add_json_argument,
    add_precision_argument,
    bin_sets,
    embed,
    open_encoder,
    plot_folder,
    save_plots,
)
from eval.embedding import check_images
from eval.present.plots import draw_histograms
from eval.present.tables import NOT_MEASURED, Table
from eval.roc import roc_curve
from recognition.encoders.card import QualityScale
from utils import dist
from utils.dist import World

NAME = "quality"
HELP = "norms of sharp and of degraded sets: does the norm measure the quality?"

_COLUMNS = {
    "images": ("images", "{:.0f}"),
    "norm": ("norm", "{:.3f}"),
    "±": ("norm_std", "{:.3f}"),
    "below the sharpest (AUC)": ("auc", "{:.1%}"),
    "below its sharp twin": ("below_twin", "{:.1%}"),
    "u": ("quality", "{:.3f}"),
    "u ≤ b": ("low_quality_share", "{:.1%}"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument("--bins", nargs="+", required=True, metavar="FILE", help="verification sets, the sharpest first")
    parser.add_argument("--plots", metavar="DIR", help="write histograms (PNG and SVG) here; default: RUN/eval")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    encoder = open_encoder(arguments, world)
    for images, _ in bin_sets(arguments.bins):
        check_images(images.count, images.load)
    figures = Figures(arguments)
    norms: dict[str, np.ndarray] = {}
    for images, _ in bin_sets(arguments.bins):
        norms[images.name] = np.linalg.norm(embed(encoder, images, arguments.batch_size, merge_flip=None), axis=1)
    results = compare_norms(norms, encoder.card.quality)

    def show() -> None:
        print(_table(encoder.label, results))
        if folder := plot_folder(arguments):
            save_plots(folder, {"norms": draw_histograms(norms, "norm of the feature", f"Norms of {encoder.label}")})

    dist.on_first_rank(show)
    figures.add(results)
    figures.finish()


def compare_norms(norms: Mapping[str, np.ndarray], scale: QualityScale | None) -> Results:
    """Statistics of the norms of each set (name -> float [N]), compared with the first set.

    auc: the probability that a face of this set has a smaller norm than one of the first (1/2: the norm says nothing about the
    quality; 1: it separates the sets). below_twin: the share of images with a smaller norm than the same image of the first set;
    only if both have as many images. With `scale`, quality: the mean of u (eq. 1); low_quality_share: the share with u <= b.
    """
    first = next(iter(norms.values()))
    results: Results = {}
    for name, found in norms.items():
        results[name] = {"images": float(len(found)), "norm": float(found.mean()), "norm_std": float(found.std())}
        if found is not first:
            sharp = np.repeat([True, False], [len(first), len(found)])
            results[name]["auc"] = roc_curve(np.concatenate([first, found]), sharp).auc
            if len(found) == len(first):
                results[name]["below_twin"] = float((found < first).mean())
        if scale is not None:
            u = scale.u(found)
            results[name]["quality"] = float(u.mean())
            if scale.threshold is not None:
                results[name]["low_quality_share"] = float((u <= scale.threshold).mean())
    return results


def _table(label: str, results: Results) -> Table:
    rows = [
        [name, *(form.format(figures[key]) if key in figures else NOT_MEASURED for key, form in _COLUMNS.values())]
        for name, figures in results.items()
    ]
    return Table([label, *_COLUMNS], rows)
