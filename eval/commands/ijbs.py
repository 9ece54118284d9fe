"""`python -m eval ijbs`: IJB-S, people in surveillance videos.

Kalka et al., *IJB-S: IARPA Janus Surveillance Video Benchmark* (BTAS 2018).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.commands.common import (
    Figures,
    ImageSet,
    Results,
    add_benchmark_arguments,
    cached,
    embed,
    open_encoder,
    plot_folder,
    save_plots,
)
from eval.commands.common.overlap import Overlap, add_overlap_arguments
from eval.embedding import check_images
from eval.present import paper
from eval.present.plots import draw_cmc
from eval.present.tables import rate_table
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval
from eval.protocols.identification import Search
from eval.protocols.ijbs import FPIRS, RANKS, check_protocols, search_protocol, sum_features
from eval.protocols.ijbs_files import PROTOCOLS, Crops, Protocol, find_crops, read_protocols
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.errors import UserError, warn
from utils.images import LeftOut

NAME = "ijbs"
SETS = tuple(f"{NAME}_{name}" for name in PROTOCOLS)
HELP = "IJB-S: ranks 1, 5, 10 and open-set rates of its five protocols, from aligned crops of videos and images"


class Data(NamedTuple):
    root: Path
    protocols: list[Protocol]
    crops: Crops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    add_overlap_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the release: a folder with protocols/")
    parser.add_argument("--crops", metavar="DIR", help="aligned faces, SUBJECT/videos_4012_….jpg; default: DATA-ROOT/aligned")
    add_feature_arguments(parser)


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--equal-weights", action="store_true", help="IJB-S: normalise the features before they are summed; default: keep norms"
    )


def run(arguments: argparse.Namespace, world: World) -> None:
    encoder, figures = open_encoder(arguments, world), Figures(arguments)
    evaluate(arguments, encoder, prepare(Path(arguments.data_root), arguments.crops), figures)
    figures.finish()


def prepare(root: Path, crops: str | Path | None = None) -> Data:
    """Read the protocols, find all crops, and decode one of each subject in each video or image.

    Raises UserError if files are missing, malformed or inconsistent.
    """
    folder, left_out, unseen = Path(crops or root / "aligned"), LeftOut(), list[str]()
    protocols = read_protocols(root, unseen)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; align IJB-S's faces first, and give --crops if they are elsewhere")
    data = Data(root, protocols, find_crops(folder, protocols, left_out))
    check_protocols(protocols, data.crops)
    if unseen:
        dist.on_first_rank(lambda: warn(f"{root}: {len(unseen)} probe videos show no subject, such as {unseen[0]}"))
    dist.on_first_rank(lambda: left_out.warn(folder))
    examples = data.crops.examples()
    check_images(len(examples), lambda index: data.crops.load(examples[index]))
    return data


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, data: Data, figures: Figures) -> None:
    """Embed on all ranks; search, print and draw on rank 0. Adds `ijbs_single` … -> metrics."""
    crops, stills = data.crops, data.crops.stills()
    Overlap(arguments, encoder).warn(ImageSet(f"{NAME}, images", len(stills), lambda index: crops.load(stills[index]), []))

    def embed_part(part: range) -> np.ndarray:
        name = NAME if len(part) == len(crops) else f"{NAME}, crops from {part.start:,}"
        return embed(encoder, ImageSet(name, len(part), lambda index: crops.load(part[index]), []), arguments.batch_size)

    sums = cached(encoder, NAME, [data.root / "protocols", crops.root], lambda: sum_features(crops, embed_part), arguments.cache)

    def judge() -> Results:
        raw, normalised = np.split(sums, 2, axis=1)
        return _judge(arguments, data, normalised if arguments.equal_weights else raw, encoder.label)

    figures.add(dist.on_first_rank(judge))


def _judge(arguments: argparse.Namespace, data: Data, sums: np.ndarray, label: str) -> Results:
    rows: Results = {}
    intervals: dict[str, Intervals] = {}
    searches: dict[str, Search] = {}
    published: list[tuple[str, paper.Row]] = []
    for protocol in data.protocols:
        title = PROTOCOLS[protocol.name]
        rows[title], searches[title] = search_protocol(protocol, data.crops, sums)
        if arguments.bootstrap:
            intervals[title] = {f"rank{rank}": rank_interval([searches[title]], rank, arguments.bootstrap) for rank in RANKS}
        published += [(f"{title} ({source})", figures) for source, figures in paper.IJBS.get(protocol.name, {}).items()]
    templates = [len(protocol.probes) for protocol in data.protocols]
    print(f"IJB-S: {len(data.crops):,} crops, {', '.join(f'{count:,}' for count in templates)} probes by protocol")
    for title, metrics in rows.items():
        if lost := metrics["probes_without_crops"] + metrics["gallery_without_crops"]:
            print(f"{title}: templates without crops, which cannot be found: {lost:,}")
    columns = {f"rank {rank}": f"rank{rank}" for rank in RANKS} | {f"DIR@FPIR={fpir:g}": f"dir@fpir={fpir:g}" for fpir in FPIRS}
    same = {heading: heading for heading in columns}
    print(rate_table(f"IJB-S, {label} (%)", columns, rows, [] if arguments.no_paper else published, same, intervals))
    if folder := plot_folder(arguments):
        save_plots(folder, {"cmc_ijbs": draw_cmc(searches, "IJB-S, closed-set identification")})
    return {
        f"{NAME}_{protocol.name}": metrics | as_metrics(intervals.get(title, {}))
        for protocol, (title, metrics) in zip(data.protocols, rows.items(), strict=True)
    }
