"""`python -m eval scface`: surveillance cameras at three distances."""

from __future__ import annotations

import argparse
from pathlib import Path

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
from eval.present.plots import draw_cmc, draw_similarities
from eval.present.tables import Table, rate_table
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval
from eval.protocols.identification import Search
from eval.protocols.scface import DISTANCES, LANDMARKS, METRES, ScFace, distance_metrics, find_scface
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.images import LeftOut

NAME = "scface"
SETS = tuple(f"{NAME}_{distance}" for distance in DISTANCES.values())
HELP = "SCface: rank 1 at 4.2, 2.6 and 1.0 m against the frontal gallery, and histograms of similarity (figure 6)"

Searches = dict[str, dict[str, Search]]
"""Encoder -> distance (d1 … d3) -> search."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the folder with 001_frontal.jpg, 001_cam1_1.jpg …")
    parser.add_argument("--baseline", metavar="RUN", help="a second encoder to compare with, also in the histograms")


def run(arguments: argparse.Namespace, world: World) -> None:
    baseline = open_encoder(arguments, world, arguments.baseline) if arguments.baseline else None
    encoder, figures = open_encoder(arguments, world), Figures(arguments)
    evaluate(arguments, encoder, prepare(Path(arguments.data_root)), figures, baseline)
    figures.finish()


def prepare(root: Path) -> ScFace:
    """Find, decode and align all images. Raises UserError if some are missing or damaged."""
    left_out = LeftOut(LANDMARKS)
    data = find_scface(root, left_out)
    dist.on_first_rank(lambda: left_out.warn(root))
    check_images(len(data.images), data.load)
    return data


def evaluate(
    arguments: argparse.Namespace, encoder: LoadedEncoder, data: ScFace, figures: Figures, baseline: LoadedEncoder | None = None
) -> None:
    """Embed on all ranks; search, print and draw on rank 0.

    Adds `scface_d1` … -> metrics, and `baseline_scface_d1` … if there is a baseline.
    """
    images = image_set(data)
    encoders = {encoder.label: encoder}
    if baseline is not None:
        encoders[baseline.label if baseline.label != encoder.label else f"{baseline.label}, baseline"] = baseline
    features = {label: embed(each, images, arguments.batch_size, cache=arguments.cache) for label, each in encoders.items()}

    def judge() -> Results:
        return _judge(arguments, data, {label: data.evaluate(rows) for label, rows in features.items()})

    figures.add(dist.on_first_rank(judge))


def image_set(data: ScFace) -> ImageSet:
    """SCface's photographs, to embed; `all.txt` has the landmarks of those that are not aligned."""
    return ImageSet(NAME, len(data.images), data.load, [*data.images, *sorted(data.root.rglob(LANDMARKS))])


def _judge(arguments: argparse.Namespace, data: ScFace, searches: Searches) -> Results:
    intervals: dict[str, Intervals] = {}
    results: Results = {}
    gains = []
    for prefix, (label, found) in zip(("", "baseline_"), searches.items(), strict=False):
        intervals[label] = {}
        for name, each in found.items():
            metrics = distance_metrics(each)
            if arguments.bootstrap:
                intervals[label][name] = rank_interval([each], 1, arguments.bootstrap)
                metrics |= as_metrics({"rank1": intervals[label][name]})
            results[f"{prefix}{NAME}_{name}"] = metrics
            gains.append(
                f"{label}, {name}: similarity {metrics['matched']:.3f} with the own mugshot, {metrics['unmatched']:.3f} with the "
                f"most similar other, gain {metrics['gain']:+.3f}"
            )
    people, probes = int((data.distances == 0).sum()), int((data.distances > 0).sum())
    print(f"SCface: {probes:,} probes, a gallery of {people:,} people")
    if missing := data.missing_probes():
        print(f"{len(missing):,} more probes are missing, such as {missing[0]}; they count as failures")
    print(_table(searches, intervals, [] if arguments.no_paper else paper.rows(["IV"], [paper.SC1])))
    print("\n".join(gains))
    if folder := plot_folder(arguments):
        first = next(iter(searches.values()))
        curves = {f"{name} ({METRES[d]} m)": first[name] for d, name in DISTANCES.items() if name in first}
        figures = {
            "cmc_scface": draw_cmc(curves, "SCface, identification by distance"),
            "similarity_scface": draw_similarities(searches),
        }
        save_plots(folder, figures)
    return results


def _table(searches: Searches, intervals: dict[str, Intervals], paper_rows: list[tuple[str, paper.Row]]) -> Table:
    columns = {f"{name} ({METRES[distance]} m)": name for distance, name in DISTANCES.items()}
    published = dict(zip(columns, (paper.SC1, paper.SC2, paper.SC3), strict=True))
    rows = {label: {name: each.rank_rate(1) for name, each in found.items()} for label, found in searches.items()}
    return rate_table("SCface, rank 1 (%)", columns, rows, paper_rows, published, intervals)
