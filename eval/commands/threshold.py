"""`python -m eval threshold`: the threshold to deploy for a false match rate (FMR), and what it costs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eval.commands.common import (
    Figures,
    Results,
    add_encoder_arguments,
    add_json_argument,
    bin_sets,
    embed,
    open_encoder,
)
from eval.commands.verify import add_set_arguments, embed_with_norms, labelled_set, prepare
from eval.operating import OperatingPoint, operating_metrics, operating_point, rate_label, require_measurable, wilson_interval
from eval.present.tables import Table, percent
from eval.protocols.all_pairs import count_different, count_pairs
from eval.roc import roc_curve
from eval.verification import cosine_of, load_bin, pair_distances
from recognition.encoders.load import LoadedEncoder
from recognition.encoders.thresholds import deploy
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "threshold"
HELP = "the threshold for a false match rate, and the false non-match rate that it costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder_arguments(parser, positional=True)
    add_set_arguments(parser)
    parser.add_argument("--fmr", type=float, required=True, help="the false match rate to keep, such as 1e-4")
    parser.add_argument("--deploy", action="store_true", help="make it the run's threshold, for `compare` and `export`")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    run_folder = Path(arguments.checkpoint)
    if arguments.deploy and not (run_folder / "checkpoints").is_dir():
        raise UserError(f"--deploy: {run_folder} is not a run's folder; give the threshold to `compare --threshold`")
    encoder = open_encoder(arguments, world)
    judge = (_all_pairs if arguments.all_pairs else _bins)(arguments, encoder)

    def show() -> Results:
        point, costs = judge()
        if not np.isfinite(point.threshold):
            raise UserError(f"{encoder.label}: only rejecting all pairs keeps FMR {rate_label(arguments.fmr)}; train it further")
        print(_table(encoder.label, costs))
        print(_describe(point))
        if arguments.deploy:
            written = deploy(run_folder, point.threshold, arguments.fmr, point.fnmr, ", ".join(costs), encoder.module)
            print(f"deployed: {written}; `eval compare` and `eval export` use it from now on")
        return costs | {NAME: {**operating_metrics([(point.target, point)]), "fmr": point.fmr, "fnmr": point.fnmr}}

    figures = Figures(arguments)
    figures.add(dist.on_first_rank(show))
    figures.finish()


Judge = Callable[[], tuple[OperatingPoint, Results]]
"""Finds the operating point, and each set's error rates there; called on rank 0."""


def _bins(arguments: argparse.Namespace, encoder: LoadedEncoder) -> Judge:
    bins = prepare(arguments.bins)
    kinds = [load_bin(path)[1] for path in bins.values()]
    require_measurable(arguments.fmr, sum(int((~issame).sum()) for issame in kinds), " ".join(bins))
    scores = {}
    for images, issame in bin_sets(bins.values()):
        rows = embed(encoder, images, arguments.batch_size, cache=arguments.cache)
        scores[images.name] = (-pair_distances(rows), issame)

    def judge() -> tuple[OperatingPoint, Results]:
        pooled = roc_curve(*(np.concatenate(parts) for parts in zip(*scores.values(), strict=True)))
        point = operating_point(pooled, arguments.fmr, cosine_of)
        return point, {name: _rates(*found, point.threshold) for name, found in scores.items()}

    return judge


def _all_pairs(arguments: argparse.Namespace, encoder: LoadedEncoder) -> Judge:
    images, labels = labelled_set(arguments.all_pairs)
    name, different = images.name.removesuffix("_pairs"), count_different(labels)
    require_measurable(arguments.fmr, different, arguments.all_pairs)
    features, norms = embed_with_norms(arguments, encoder, images)

    def judge() -> tuple[OperatingPoint, Results]:
        found = count_pairs(features, labels, norms, name)
        (point,) = found.points_at([arguments.fmr])
        rates = {"fmr": point.fmr, "fnmr": point.fnmr, "fnmr low": point.interval[0], "fnmr high": point.interval[1]}
        return point, {name: rates | {"same_pairs": found.roc.same_pairs, "different_pairs": different}}

    return judge


def _rates(scores: np.ndarray, issame: np.ndarray, threshold: float) -> dict[str, float]:
    """One set's error rates at a cosine threshold, with the FNMR's interval. scores: negative squared distances [P]."""
    accepted = 1 + scores / 2 >= threshold
    same, misses = int(issame.sum()), int((issame & ~accepted).sum())
    low, high = wilson_interval(misses / same, same)
    rates = {"fmr": float(accepted[~issame].mean()), "fnmr": misses / same, "fnmr low": low, "fnmr high": high}
    return rates | {"same_pairs": same, "different_pairs": len(issame) - same}


def _table(label: str, costs: Results) -> Table:
    rows = [
        [
            name,
            *(f"{rates[kind]:,.0f}" for kind in ("same_pairs", "different_pairs")),
            f"{100 * rates['fmr']:.4g}",
            percent(rates["fnmr"], (rates["fnmr low"], rates["fnmr high"])),
        ]
        for name, rates in costs.items()
    ]
    return Table([label, "same pairs", "different pairs", "FMR (%)", "FNMR (%) [95 %]"], rows)


def _describe(point: OperatingPoint) -> str:
    cosine = point.threshold
    return (
        f"accept if the cosine of f(x) + f(mirrored x) is at least {cosine:.6f} (squared distance of the normalised sums at most "
        f"{2 - 2 * cosine:.6f})\nFMR at most {rate_label(point.target)} ({100 * point.fmr:.4g} % measured), "
        f"FNMR {percent(point.fnmr, point.interval)} %"
    )
