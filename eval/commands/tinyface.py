"""`python -m eval tinyface`: low-resolution faces in a large gallery."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from eval.commands.common import (
    ImageSet,
    Results,
    add_benchmark_arguments,
    embed,
    open_encoder,
    plot_folder,
    save_plots,
    write_json,
)
from eval.present import paper
from eval.present.plots import draw_cmc
from eval.present.tables import rate_table
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval
from eval.protocols.identification import search_metrics
from eval.protocols.tinyface import RANKS, TinyFace, find_tinyface
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World

NAME = "tinyface"
HELP = "TinyFace: closed-set identification at ranks 1, 5 and 20, gallery of matches and distractors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the folder with aligned_pad_0.1_pad_high/")


def run(arguments: argparse.Namespace, world: World) -> None:
    write_json(arguments, evaluate(arguments, open_encoder(arguments, world), Path(arguments.data_root)))


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, root: Path) -> Results:
    """Embed on all ranks; search, print and draw on rank 0. Returns `{"tinyface": metrics}`."""
    data = find_tinyface(root)
    images = ImageSet(NAME, len(data.images), data.load, data.images)
    features = embed(encoder, images, arguments.batch_size, cache=arguments.cache)
    return dist.on_first_rank(lambda: _judge(arguments, data, features, encoder.label))


def _judge(arguments: argparse.Namespace, data: TinyFace, features: np.ndarray, label: str) -> Results:
    found = data.evaluate(features)
    metrics = {**search_metrics(found, RANKS), "gallery": len(data.images) - data.probes}
    intervals: Intervals = {}
    if arguments.bootstrap:
        intervals = {f"rank{rank}": rank_interval([found], rank, arguments.bootstrap) for rank in RANKS}
    print(f"TinyFace: {data.probes:,} probes, {metrics['gallery']:,} in the gallery")
    columns = {f"rank {rank}": f"rank{rank}" for rank in RANKS}
    published = paper.rows(["V"], [paper.TINYFACE])
    print(rate_table("TinyFace (%)", columns, {label: metrics}, published, {"rank 1": paper.TINYFACE}, {label: intervals}))
    if folder := plot_folder(arguments):
        save_plots(folder, {"cmc_tinyface": draw_cmc({label: found}, "TinyFace, closed-set identification")})
    return {NAME: metrics | as_metrics(intervals)}
