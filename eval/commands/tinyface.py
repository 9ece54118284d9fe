"""`python -m eval tinyface`: low-resolution faces in a large gallery."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from eval.commands.common import (
    Figures,
    ImageSet,
    Results,
    add_benchmark_arguments,
    embed,
    open_encoder,
    plot_folder,
    save_plots,
)
from eval.embedding import check_images
from eval.present import paper
from eval.present.plots import draw_cmc
from eval.present.tables import rate_table
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval
from eval.protocols.identification import search_metrics
from eval.protocols.tinyface import RANKS, RELEASED_PROBES, TinyFace, find_tinyface
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.images import LeftOut

NAME = "tinyface"
SETS = (NAME,)
HELP = "TinyFace: closed-set identification at ranks 1, 5 and 20, gallery of matches and distractors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the folder with aligned_pad_0.1_pad_high/")


def run(arguments: argparse.Namespace, world: World) -> None:
    encoder, figures = open_encoder(arguments, world), Figures(arguments)
    evaluate(arguments, encoder, prepare(Path(arguments.data_root)), figures)
    figures.finish()


def prepare(root: Path) -> TinyFace:
    """Find and decode all images. Raises UserError if some are missing or damaged."""
    left_out = LeftOut()
    data = find_tinyface(root, left_out)
    dist.on_first_rank(lambda: left_out.warn(root))
    check_images(len(data.images), data.load)
    return data


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, data: TinyFace, figures: Figures) -> None:
    """Embed on all ranks; search, print and draw on rank 0. Adds `tinyface` -> metrics."""
    images = ImageSet(NAME, len(data.images), data.load, data.images)
    features = embed(encoder, images, arguments.batch_size, cache=arguments.cache)
    figures.add(dist.on_first_rank(lambda: _judge(arguments, data, features, encoder.label)))


def _judge(arguments: argparse.Namespace, data: TinyFace, features: np.ndarray, label: str) -> Results:
    found = data.evaluate(features)
    metrics = {**search_metrics(found, RANKS), "gallery": len(data.images) - data.probes}
    intervals: Intervals = {}
    if arguments.bootstrap:
        intervals = {f"rank{rank}": rank_interval([found], rank, arguments.bootstrap) for rank in RANKS}
    released = f" (of the release's {RELEASED_PROBES:,})" if data.probes != RELEASED_PROBES else ""
    print(f"TinyFace: {data.probes:,} probes{released}, {metrics['gallery']:,} in the gallery")
    if metrics["unmated_probes"]:
        print(f"{metrics['unmated_probes']:,} of the probes have no mate in the gallery; they count as failures")
    columns = {f"rank {rank}": f"rank{rank}" for rank in RANKS}
    published = [] if arguments.no_paper else paper.rows(["V"], [paper.TINYFACE])
    print(rate_table("TinyFace (%)", columns, {label: metrics}, published, {"rank 1": paper.TINYFACE}, {label: intervals}))
    if folder := plot_folder(arguments):
        save_plots(folder, {"cmc_tinyface": draw_cmc({label: found}, "TinyFace, closed-set identification")})
    return {NAME: metrics | as_metrics(intervals)}
