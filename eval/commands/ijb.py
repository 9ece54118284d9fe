"""`python -m eval ijb`: IJB-B and IJB-C, verification (1:1) and identification (1:N)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

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
from eval.operating import rate_label
from eval.present import paper
from eval.present.plots import draw_cmc, draw_det, draw_roc
from eval.present.tables import operating_table, rate_table
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval, tar_interval
from eval.protocols.identification import Search
from eval.protocols.ijb import (
    FARS,
    FPIRS,
    RANKS,
    SETTINGS,
    ImageFeatures,
    Setting,
    check_protocol,
    identify,
    pool_templates,
    tar_name,
    verification_metrics,
    verify_templates,
)
from eval.protocols.ijb_files import TARGETS, ArrayRows, Images, LooseCrops, Meta, Pairs, read_feature_file
from eval.roc import Roc
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "ijb"
HELP = "IJB-B and IJB-C: TAR at FAR 1e-6 … 1e-1, and identification if the release has its galleries"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=TARGETS, default="IJBB", help="which release (default IJBB)")
    parser.add_argument("--data-root", metavar="DIR", help="the release: a folder with loose_crop/ and meta/")
    add_benchmark_arguments(parser, checkpoint_required=False)
    parser.add_argument(
        "--features", metavar="NPZ", help="instead of a checkpoint: arrays features, features_flip, scores, in the meta's order"
    )
    parser.add_argument("--meta", metavar="DIR", help="the meta folder; default: DATA-ROOT/meta")
    add_setting_arguments(parser)


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--setting",
        nargs="+",
        default=["N1D1F1"],
        metavar="NxDxFx",
        help="N1 keeps the norm, D1 weighs by the detector's score, F1 adds the mirror image; or: all (default N1D1F1)",
    )
    parser.add_argument(
        "--protocol", choices=("auto", "1:1", "1:N", "both"), default="auto", help="auto: 1:1, and 1:N if the galleries are there"
    )


def run(arguments: argparse.Namespace, world: World) -> None:
    if bool(arguments.features) == bool(arguments.checkpoint):
        raise UserError("give either --checkpoint RUN or --features F.npz")
    figures = Figures(arguments)
    if arguments.checkpoint:
        encoder = open_encoder(arguments, world)
        plan = prepare(arguments, _release(arguments.data_root, arguments.target), arguments.target)
        evaluate(arguments, encoder, plan, figures)
    else:
        meta = Meta(arguments.meta or _release(arguments.data_root, arguments.target) / "meta", arguments.target)
        figures.add(dist.on_first_rank(lambda: _evaluate_feature_file(arguments, meta)))
    figures.finish()


def _release(data_root: str | None, target: str) -> Path:
    """The folder of a release; `data_root` is that folder or the one that contains it."""
    if not data_root:
        raise UserError(f"give --data-root, the folder of {target} with loose_crop/ and meta/ (or --meta with --features)")
    root = Path(data_root)
    return root / target if not (root / "meta").is_dir() and (root / target / "meta").is_dir() else root


def _evaluate_feature_file(arguments: argparse.Namespace, meta: Meta) -> Results:
    arrays = read_feature_file(arguments.features)
    plan = _plan(arguments, meta)
    scores = arrays.get("scores")
    if scores is None and meta.landmarks_file.is_file():
        scores = meta.landmarks(plan.images)[1]
    source = ImageFeatures(arrays["features"], arrays.get("features_flip"), scores)  # type: ignore[arg-type]
    return _judge(arguments, plan, source, Path(arguments.features).stem)


@dataclass(frozen=True)
class Plan:
    """What to measure, already read and checked. crops, scores: None unless images are to be embedded."""

    meta: Meta
    images: Images
    settings: Sequence[Setting]
    pairs: Pairs | None  # None without verification (1:1)
    one_to_many: bool
    crops: LooseCrops | None = None
    scores: np.ndarray | None = None


def _plan(arguments: argparse.Namespace, meta: Meta) -> Plan:
    """Read and check the protocol.

    Raises UserError if a setting is unknown, or files are missing, damaged or inconsistent.
    """
    names = dict.fromkeys(arguments.setting)  # each once
    settings = SETTINGS if arguments.setting == ["all"] else [Setting.parse(name) for name in names]
    images = meta.images()
    pairs = meta.pairs() if arguments.protocol != "1:N" else None
    one_to_many = arguments.protocol in ("1:N", "both") or (arguments.protocol == "auto" and meta.has_identification())
    check_protocol(meta, images, pairs, one_to_many)
    return Plan(meta, images, settings, pairs, one_to_many)


def prepare(arguments: argparse.Namespace, release: Path, target: str) -> Plan:
    """As `_plan`; and all photographs must exist."""
    meta = Meta(getattr(arguments, "meta", None) or release / "meta", target)
    pairs = [] if arguments.protocol == "1:N" else [meta.pairs_file]
    galleries = [*meta.gallery_files, meta.probe_file] if arguments.protocol in ("1:N", "both") else []
    meta.need(meta.images_file, meta.landmarks_file, release / "loose_crop", *pairs, *galleries)
    plan = _plan(arguments, meta)
    landmarks, scores = meta.landmarks(plan.images)
    crops = LooseCrops(release / "loose_crop", plan.images, landmarks)
    check_images(len(plan.images), crops.find)
    return replace(plan, crops=crops, scores=scores)


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, plan: Plan, figures: Figures) -> None:
    """Align and embed on all ranks; compare, print and draw on rank 0. Adds the same results as `_judge`."""
    meta, crops, target = plan.meta, plan.crops, plan.meta.target
    assert crops is not None
    sources = [meta.images_file, meta.landmarks_file, crops.folder]

    def side_by_side(plain: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        return torch.cat([plain, flipped], dim=1)

    images = ImageSet(target, len(plan.images), crops.load, sources)
    rows = embed(encoder, images, arguments.batch_size, side_by_side, arguments.cache)

    def judge_rows() -> Results:  # on rank 0, which always has the rows
        plain, flipped = np.split(rows, 2, axis=1)
        source = ImageFeatures(ArrayRows(plain, target), ArrayRows(flipped, f"{target}, mirror images"), plan.scores)
        return _judge(arguments, plan, source, encoder.label)

    figures.add(dist.on_first_rank(judge_rows))


def _judge(arguments: argparse.Namespace, plan: Plan, source: ImageFeatures, label: str) -> Results:
    """Compare under each requested setting, print and draw.

    Returns set name -> metrics. The name is `IJBB`, or `IJBB_N1D0F1` … if there are several settings.
    """
    meta, images, settings, pairs, one_to_many = plan.meta, plan.images, plan.settings, plan.pairs, plan.one_to_many
    rows: Results = {}
    intervals: dict[str, Intervals] = {}
    curves: dict[str, Roc] = {}
    searches: dict[str, list[Search]] = {}
    for setting in settings:
        templates = pool_templates(images, source, setting)
        metrics: dict[str, float] = {}
        bounds: Intervals = {}
        if pairs is not None:
            curves[setting.name] = roc = verify_templates(templates, pairs)
            metrics |= verification_metrics(roc)
            if arguments.bootstrap:
                bounds |= {tar_name(far): tar_interval(roc, far, arguments.bootstrap) for far in FARS}
        if one_to_many:
            figures, searches[setting.name] = identify(meta, templates)
            metrics |= figures
            if arguments.bootstrap:
                found = searches[setting.name]
                bounds |= {f"rank{rank}": rank_interval(found, rank, arguments.bootstrap) for rank in RANKS}
        rows[f"{label} {setting.name}"] = metrics | as_metrics(bounds)
        intervals[f"{label} {setting.name}"] = bounds
    print(f"{meta.target}: {len(images):,} images" + (f", {len(pairs.issame):,} pairs" if pairs else ""))
    published = paper.rows(["I", "II", "III"], [paper.IJBB]) if meta.target == "IJBB" and not arguments.no_paper else []
    _print_tables(meta.target, rows, intervals, bool(pairs), one_to_many, published)
    if folder := plot_folder(arguments):
        _save_plots(folder, meta.target, curves, searches)
    several = len(settings) > 1
    return {
        f"{meta.target}_{setting.name}" if several else meta.target: metrics
        for setting, metrics in zip(settings, rows.values(), strict=True)
    }


def _print_tables(
    target: str,
    rows: Results,
    intervals: dict[str, Intervals],
    one_to_one: bool,
    one_to_many: bool,
    published: list[tuple[str, paper.Row]],
) -> None:
    if one_to_one:
        columns = {rate_label(far): tar_name(far) for far in FARS}
        print(rate_table(f"{target} TAR@FAR (%)", columns, rows, published, {"1e-4": paper.IJBB}, intervals))
        if published:
            print(paper.IJBB_CAVEAT)
        print(operating_table(rows))
    if one_to_many:
        for prefix, title, rates in (("", "1:N", "tpir@fpir"), ("pooled_", "1:N pooled (ijb_1n)", "tpr@far")):
            columns = {f"rank {rank}": f"{prefix}rank{rank}" for rank in RANKS}
            columns |= {f"{rates.upper()}={fpir:g}": f"{prefix}{rates}={fpir:g}" for fpir in FPIRS}
            print(rate_table(f"{target} {title} (%)", columns, rows, intervals=intervals))


def _save_plots(folder: Path, target: str, curves: dict[str, Roc], searches: dict[str, list[Search]]) -> None:
    figures = {}
    if curves:
        figures[f"roc_{target.lower()}"] = draw_roc(curves, f"{target} 1:1", far=1e-4)
        figures[f"det_{target.lower()}"] = draw_det(curves, f"{target} 1:1, DET")
    if searches:
        galleries = {
            f"{name}, gallery {number}": each for name, found in searches.items() for number, each in enumerate(found, 1)
        }
        figures[f"cmc_{target.lower()}"] = draw_cmc(galleries, f"{target} 1:N")
    save_plots(folder, figures)
