"""`python -m eval verify`: pairs of photographs, ten folds."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from eval.commands.common import (
    Figures,
    ImageSet,
    Results,
    add_benchmark_arguments,
    bin_sets,
    embed,
    named_bins,
    open_encoder,
    plot_folder,
    save_plots,
)
from eval.embedding import check_bins
from eval.present.plots import draw_roc
from eval.present.tables import verification_table
from eval.protocols.bootstrap import Intervals, accuracy_interval, as_metrics, tar_interval
from eval.verification import TenFold, judge_set
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World

NAME = "verify"
HELP = "verification on .bin sets (LFW, CFP-FP, AgeDB …): ten-fold accuracy, TAR, AUC, ROC"

_FAR = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--bins", nargs="+", required=True, metavar="FILE", help="verification sets, such as lfw.bin cfp_fp.bin")


def run(arguments: argparse.Namespace, world: World) -> None:
    encoder, figures = open_encoder(arguments, world), Figures(arguments)
    evaluate(arguments, encoder, prepare(arguments.bins), figures)
    figures.finish()


def prepare(paths: Iterable[str | Path]) -> dict[str, Path]:
    """Check the sets; name -> path. Raises UserError if a name occurs twice or a set cannot be used."""
    bins = named_bins(paths)
    check_bins(bins)
    return bins


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, bins: Mapping[str, Path], figures: Figures) -> None:
    """Embed and judge verification sets, as `evaluate_sets` does."""
    evaluate_sets(arguments, encoder, bin_sets(bins.values()), figures, "verification")


def evaluate_sets(
    arguments: argparse.Namespace,
    encoder: LoadedEncoder,
    sets: Iterable[tuple[ImageSet, np.ndarray]],
    figures: Figures,
    plot: str,
) -> None:
    """Embed on all ranks; judge, print and draw on rank 0. Adds set name -> `TenFold.metrics()`, and confidence intervals.

    sets: images, two per pair, and whether each pair shows the same person. plot: ends the names of the plots.
    """
    outcomes: dict[str, TenFold] = {}  # on rank 0
    intervals: dict[str, Intervals] = {}

    def judge(name: str, rows: np.ndarray, issame: np.ndarray) -> Results:
        found = judge_set(name, rows, issame)
        if arguments.bootstrap:
            intervals[name] = {
                "accuracy": accuracy_interval(found, arguments.bootstrap),
                "tar@far=1e-3": tar_interval(found.roc, _FAR, arguments.bootstrap),
            }
        outcomes[name] = found
        return {name: found.metrics() | as_metrics(intervals.get(name, {}))}

    try:
        for images, issame in sets:
            rows = embed(encoder, images, arguments.batch_size, cache=arguments.cache)
            figures.add(dist.on_first_rank(partial(judge, images.name, rows, issame)))
    finally:
        if outcomes:  # also those before a failure
            finished = {name: figures.results[name] for name in outcomes if name in figures.results}
            print(verification_table(finished, intervals, published=not arguments.no_paper))
    if outcomes and (folder := plot_folder(arguments)):
        save_plots(folder, {f"roc_{plot}": draw_roc({name: found.roc for name, found in outcomes.items()}, far=_FAR)})
