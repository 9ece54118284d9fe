"""`python -m eval tinyface`: low-resolution faces in a large gallery."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

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
from eval.embedding import embed_items
from eval.feature_cache import cached, fingerprint
from eval.present import paper
from eval.present.benchmark_plots import plot_cmc
from eval.present.benchmark_tables import rate_table
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval
from eval.protocols.identification import search_metrics
from eval.protocols.tinyface import RANKS, find_tinyface
from utils import dist

NAME = "tinyface"
HELP = "TinyFace: closed-set identification, ranks 1, 5 and 20, among matches and distractors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the folder with aligned_pad_0.1_pad_high/")


def run(arguments: argparse.Namespace, context: Context) -> None:
    write_json(arguments, evaluate(arguments, context.open_encoder(arguments.checkpoint), Path(arguments.data_root)))


def evaluate(arguments: argparse.Namespace, encoder: Encoder, root: Path) -> Results:
    """Embeds on all ranks; searches, prints and draws on rank 0. `{"tinyface": metrics}`."""
    data = find_tinyface(root)

    def embed() -> np.ndarray:
        reporting = Reporting(encoder.embed, "TinyFace", 2 * len(data.images))
        return embed_items(reporting, data.load, len(data.images), arguments.batch_size, torch.add, "TinyFace")

    features = cached(feature_cache(arguments, encoder), NAME, lambda: fingerprint(data.images), embed)

    def judge() -> Results:
        found = data.evaluate(features)
        metrics = {**search_metrics(found, RANKS), "gallery": len(data.images) - data.probes}
        columns = {f"rank {rank}": f"rank{rank}" for rank in RANKS}
        intervals: Intervals = {}
        if arguments.bootstrap:
            intervals = {f"rank{rank}": rank_interval([found], rank, arguments.bootstrap) for rank in RANKS}
        beside = paper.rows(["V"], [paper.TINYFACE])
        print(f"TinyFace: {data.probes:,} probes, {metrics['gallery']:,} in the gallery")
        rows, kept = {encoder.label: metrics}, {encoder.label: intervals}
        print(rate_table("TinyFace (%)", columns, rows, beside, {"rank 1": paper.TINYFACE}, kept))
        folder = plot_folder(arguments)
        if folder:
            written = plot_cmc({encoder.label: found}, folder / "cmc_tinyface", "TinyFace, closed-set identification")
            print("plots:", ", ".join(map(str, written)))
        return {NAME: metrics | as_metrics(intervals)}

    return dist.on_first_rank(judge)
