"""`python -m eval verify`: pairs of photographs, ten folds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.commands.common import (
    Results,
    add_benchmark_arguments,
    bin_sets,
    embed,
    open_encoder,
    plot_folder,
    save_plots,
    write_json,
)
from eval.present.plots import draw_roc
from eval.present.tables import verification_table
from eval.protocols.bootstrap import Intervals, accuracy_interval, as_metrics, tar_interval
from eval.roc import Roc
from eval.verification import judge_set
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
    write_json(arguments, evaluate(arguments, open_encoder(arguments, world), arguments.bins))


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, bins: Sequence[str | Path]) -> Results:
    """Embed on all ranks; judge, print and draw on rank 0. Set name -> `TenFold.metrics()`, and confidence intervals."""
    features = {}
    for images, issame in bin_sets(bins):
        features[images.name] = embed(encoder, images, arguments.batch_size, cache=arguments.cache), issame
    return dist.on_first_rank(lambda: _judge(arguments, features))


def _judge(arguments: argparse.Namespace, features: dict[str, tuple[np.ndarray, np.ndarray]]) -> Results:
    results: Results = {}
    intervals: dict[str, Intervals] = {}
    curves: dict[str, Roc] = {}
    for name, (rows, issame) in features.items():
        found = judge_set(name, rows, issame)
        results[name], curves[name] = found.metrics(), found.roc
        if arguments.bootstrap:
            intervals[name] = {
                "accuracy": accuracy_interval(found, arguments.bootstrap),
                "tar@far=1e-3": tar_interval(found.roc, _FAR, arguments.bootstrap),
            }
            results[name] |= as_metrics(intervals[name])
    print(verification_table(results, intervals))
    if folder := plot_folder(arguments):
        save_plots(folder, {"roc_verification": draw_roc(curves, far=_FAR)})
    return results
