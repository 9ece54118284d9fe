"""`python -m eval scface`: surveillance cameras at three distances."""

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
from eval.present.benchmark_plots import plot_cmc, plot_similarities
from eval.present.benchmark_tables import rate_table
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval
from eval.protocols.identification import Search
from eval.protocols.scface import DISTANCES, METRES, ScFace, distance_metrics, find_scface
from utils import dist

NAME = "scface"
HELP = "SCface: rank 1 at 4.2, 2.6 and 1.0 m against the frontal gallery, and histograms of similarity (figure 6)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the folder with 001_frontal.jpg, 001_cam1_1.jpg …")
    parser.add_argument("--baseline", metavar="RUN", help="a second encoder, drawn beside the first in the histograms")


def run(arguments: argparse.Namespace, context: Context) -> None:
    baseline = context.open_encoder(arguments.baseline) if arguments.baseline else None
    encoder = context.open_encoder(arguments.checkpoint)
    write_json(arguments, evaluate(arguments, encoder, Path(arguments.data_root), baseline))


def evaluate(arguments: argparse.Namespace, encoder: Encoder, root: Path, baseline: Encoder | None = None) -> Results:
    """Embeds on all ranks; searches, prints and draws on rank 0. `scface_d1` … -> metrics (`baseline_scface_d1` … besides)."""
    data = find_scface(root)
    encoders = [encoder] if baseline is None else [encoder, baseline]
    features = [_embed(arguments, data, each) for each in encoders]

    def judge() -> Results:
        searches = [data.evaluate(rows) for rows in features]
        labels = _distinct_labels(encoders)
        intervals = [_intervals(found, arguments.bootstrap) for found in searches]
        _print(dict(zip(labels, searches, strict=True)), dict(zip(labels, intervals, strict=True)), data)
        folder = plot_folder(arguments)
        if folder:
            curves = {f"{name} ({METRES[d]} m)": searches[0][name] for d, name in DISTANCES.items() if name in searches[0]}
            written = plot_cmc(curves, folder / "cmc_scface", "SCface, identification by distance")
            written += plot_similarities(dict(zip(labels, searches, strict=True)), folder / "similarity_scface")
            print("plots:", ", ".join(map(str, written)))
        results: Results = {}
        for prefix, found, bounds in zip(("", "baseline_"), searches, intervals, strict=False):
            for name, each in found.items():
                results[f"{prefix}{NAME}_{name}"] = distance_metrics(each)
                if name in bounds:
                    results[f"{prefix}{NAME}_{name}"] |= as_metrics({"rank1": bounds[name]})
        return results

    return dist.on_first_rank(judge)


def _intervals(found: dict[str, Search], resamples: int) -> Intervals:
    """Distance -> interval of its rank 1, where intervals are asked for."""
    return {name: rank_interval([each], 1, resamples) for name, each in found.items()} if resamples else {}


def _distinct_labels(encoders: list[Encoder]) -> list[str]:
    labels = [encoder.label for encoder in encoders]
    return labels if len(set(labels)) == len(labels) else [labels[0], f"{labels[1]}, baseline"]


def _embed(arguments: argparse.Namespace, data: ScFace, encoder: Encoder) -> np.ndarray:
    def embed() -> np.ndarray:
        reporting = Reporting(encoder.embed, "SCface", 2 * len(data.images))
        return embed_items(reporting, data.load, len(data.images), arguments.batch_size, torch.add, "SCface")

    sources = [*data.images, *sorted(data.root.rglob("all.txt"))]
    return cached(feature_cache(arguments, encoder), NAME, lambda: fingerprint(sources), embed)


def _print(searches: dict[str, dict[str, Search]], intervals: dict[str, Intervals], data: ScFace) -> None:
    columns = {f"{name} ({METRES[distance]} m)": name for distance, name in DISTANCES.items()}
    rows = {label: {name: each.rank_rate(1) for name, each in found.items()} for label, found in searches.items()}
    names = dict(zip(columns, (paper.SC1, paper.SC2, paper.SC3), strict=True))
    people, probes = int((data.distances == 0).sum()), int((data.distances > 0).sum())
    print(f"SCface: {probes:,} probes, a gallery of {people:,} people")
    print(rate_table("SCface, rank 1 (%)", columns, rows, paper.rows(["IV"], [paper.SC1]), names, intervals))
    for label, found in searches.items():
        for name, each in found.items():
            metrics = distance_metrics(each)
            print(f"{label}, {name}: matched similarity {metrics['matched']:.3f}, most similar other "
                  f"{metrics['unmatched']:.3f}, gain {metrics['gain']:+.3f}")  # fmt: skip
