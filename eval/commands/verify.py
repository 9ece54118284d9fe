"""`python -m eval verify`: pairs of photographs, ten folds."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.commands.common import (
    Context,
    Encoder,
    Reporting,
    Results,
    add_benchmark_arguments,
    feature_cache,
    plot_folder,
    write_json,
)  # fmt: skip
from eval.embedding import embed_images
from eval.feature_cache import cached, fingerprint
from eval.present import paper
from eval.present.benchmark_tables import rate_table
from eval.present.plots import plot_roc
from eval.protocols.bootstrap import Intervals, accuracy_interval, as_metrics, tar_interval
from eval.verification import TenFold, load_bin, ten_fold
from utils import dist
from utils.errors import UserError

NAME = "verify"
HELP = "verification on .bin sets (LFW, CFP-FP, AgeDB …): ten-fold accuracy, TAR, AUC, ROC"

FAR = 1e-3
_COLUMNS = {"accuracy": "accuracy", "± std": "std", "TAR@FAR=1e-3": "tar@far=1e-3", "AUC": "auc"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--bins", nargs="+", required=True, metavar="FILE", help="verification sets, such as lfw.bin cfp_fp.bin")


def run(arguments: argparse.Namespace, context: Context) -> None:
    write_json(arguments, evaluate(arguments, context.open_encoder(arguments.checkpoint), [Path(bin) for bin in arguments.bins]))


def evaluate(arguments: argparse.Namespace, encoder: Encoder, bins: list[Path]) -> Results:
    """Embeds on all ranks; judges, prints and draws on rank 0. Set name -> `TenFold.metrics()` (and intervals)."""
    names = [path.stem for path in bins]
    if len(set(names)) != len(names):
        raise UserError(f"--bins {' '.join(map(str, bins))}: two files of one name; their figures would be confused")
    cache, folds = feature_cache(arguments, encoder), {}
    embedded = {}
    for name, path in zip(names, bins, strict=True):
        images, issame = load_bin(path)
        embed = Reporting(encoder.embed, name, 2 * len(images))
        embedded[name] = (
            cached(
                cache,
                name,
                lambda path=path: fingerprint([path]),  # type: ignore[misc]
                lambda embed=embed, images=images, name=name: embed_images(embed, images, arguments.batch_size, describe=name),  # type: ignore[misc]
            ),
            issame,
        )

    def judge() -> Results:
        for name, (features, issame) in embedded.items():
            try:
                folds[name] = ten_fold(features, issame)
                folds[name].metrics()
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        return _report(arguments, folds)

    return dist.on_first_rank(judge)


def _report(arguments: argparse.Namespace, folds: dict[str, TenFold]) -> Results:
    results = {name: dict(result.metrics()) for name, result in folds.items()}
    intervals: dict[str, Intervals] = {}
    if arguments.bootstrap:
        for name, result in folds.items():
            intervals[name] = {
                "accuracy": accuracy_interval(result, arguments.bootstrap),
                "tar@far=1e-3": tar_interval(result.roc, FAR, arguments.bootstrap),
            }
            results[name] |= as_metrics(intervals[name])
    rows, beside = {}, []
    for name, metrics in results.items():
        rows[name] = metrics
        published = paper.hq_set(name)
        if published:
            for row, figures in paper.rows(["II"], [published]):
                if row.startswith("queue: proxy"):
                    beside.append((f"{name} (QGFace, {paper.PAPER}, table II)", {"accuracy": figures[published]}))
    print(rate_table("set (%)", _COLUMNS, rows, beside, {"accuracy": "accuracy"}, intervals))
    folder = plot_folder(arguments)
    if folder:
        written = plot_roc({name: result.roc for name, result in folds.items()}, folder / "roc_verification")
        print("plots:", ", ".join(map(str, written)))
    return results
