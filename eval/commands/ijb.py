"""`python -m eval ijb`: IJB-B and IJB-C, one to one and one to many."""

from __future__ import annotations

import argparse
from functools import partial
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
from eval.present.plots import plot_roc
from eval.protocols.bootstrap import Intervals, as_metrics, rank_interval, tar_interval
from eval.protocols.identification import Search
from eval.protocols.ijb import (
    FARS,
    FPIRS,
    RANKS,
    SETTINGS,
    ImageFeatures,
    Setting,
    identify,
    pool_templates,
    power_of_ten,
    tar_name,
    verification_metrics,
    verify_templates,
)
from eval.protocols.ijb_files import TARGETS, ArrayRows, Images, LooseCrops, Meta, read_feature_file
from eval.roc import Roc
from utils import dist
from utils.errors import UserError

NAME = "ijb"
HELP = "IJB-B and IJB-C: TAR at FAR 1e-6 … 1e-1, and identification where the release's galleries are there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=TARGETS, default="IJBB", help="which release (default IJBB)")
    parser.add_argument("--data-root", metavar="DIR", help="the release: a folder with loose_crop/ and meta/")
    add_benchmark_arguments(parser, checkpoint_required=False)
    parser.add_argument(
        "--features", metavar="NPZ", help="instead of a checkpoint: arrays features, features_flip, scores, in the meta's order"
    )
    parser.add_argument("--meta", metavar="DIR", help="the meta folder, where it is not DATA-ROOT/meta")
    add_setting_arguments(parser)


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--setting", nargs="+", default=["N1D1F1"], metavar="NxDxFx",
        help="N1 keeps the norm, D1 weighs by the detector's score, F1 adds the mirror image; or: all (default N1D1F1)",
    )  # fmt: skip
    parser.add_argument("--protocol", choices=("auto", "1:1", "1:N", "both"), default="auto",
                        help="auto: 1:1, and 1:N where the galleries are there")  # fmt: skip


def run(arguments: argparse.Namespace, context: Context) -> None:
    if bool(arguments.features) == bool(arguments.checkpoint):
        raise UserError("give either --checkpoint RUN or --features F.npz")
    if arguments.features:
        meta = Meta(arguments.meta or _release(arguments.data_root, arguments.target) / "meta", arguments.target)
        results = dist.on_first_rank(partial(_from_feature_file, arguments, meta))
    else:
        encoder = context.open_encoder(arguments.checkpoint)
        results = evaluate(arguments, encoder, _release(arguments.data_root, arguments.target), arguments.target)
    write_json(arguments, results)


def _release(data_root: str | None, target: str) -> Path:
    """The folder of a release, given itself or the folder that holds it."""
    if not data_root:
        raise UserError(f"give --data-root, the folder of {target} with loose_crop/ and meta/ (or --meta with --features)")
    root = Path(data_root)
    return root / target if not (root / "meta").is_dir() and (root / target / "meta").is_dir() else root


def _from_feature_file(arguments: argparse.Namespace, meta: Meta) -> Results:
    arrays = read_feature_file(arguments.features)
    images = meta.images()
    scores = arrays.get("scores")
    if scores is None and meta.landmarks_file.is_file():
        scores = meta.landmarks(images)[1]
    source = ImageFeatures(arrays["features"], arrays.get("features_flip"), scores)  # type: ignore[arg-type]
    return judge(arguments, meta, images, source, Path(arguments.features).stem)


def evaluate(arguments: argparse.Namespace, encoder: Encoder, release: Path, target: str) -> Results:
    """Aligns and embeds on all ranks; compares, prints and draws on rank 0. `{"IJBB": metrics}`, as `judge`."""
    meta = Meta(getattr(arguments, "meta", None) or release / "meta", target)
    needed = [meta.images_file, meta.landmarks_file, release / "loose_crop"]
    pairs = [] if arguments.protocol == "1:N" else [meta.pairs_file]
    galleries = [*meta.gallery_files, meta.probe_file] if arguments.protocol in ("1:N", "both") else []
    meta.need(*needed, *pairs, *galleries)
    images = meta.images()
    landmarks, scores = meta.landmarks(images)
    crops = LooseCrops(release / "loose_crop", images, landmarks)

    def embed() -> np.ndarray:
        reporting = Reporting(encoder.embed, target, 2 * len(images))
        beside = partial(torch.cat, dim=1)
        return embed_items(reporting, crops.load, len(images), arguments.batch_size, lambda a, b: beside((a, b)), target)

    rows = cached(feature_cache(arguments, encoder), target, lambda: fingerprint(needed), embed)

    def judge_rows() -> Results:  # rank 0 alone holds them
        plain, flipped = np.split(rows, 2, axis=1)
        source = ImageFeatures(ArrayRows(plain, target), ArrayRows(flipped, f"{target}, mirror images"), scores)
        return judge(arguments, meta, images, source, encoder.label)

    return dist.on_first_rank(judge_rows)


def judge(arguments: argparse.Namespace, meta: Meta, images: Images, source: ImageFeatures, label: str) -> Results:
    """Compares under each setting that was asked for, prints and draws. Set name -> metrics: `IJBB`, or `IJBB_N1D0F1` … where
    there are several settings."""
    names = dict.fromkeys(arguments.setting)  # each once
    settings = SETTINGS if arguments.setting == ["all"] else [Setting.parse(name) for name in names]
    one_to_one = arguments.protocol != "1:N"
    one_to_many = arguments.protocol in ("1:N", "both") or (arguments.protocol == "auto" and meta.has_identification())
    pairs = meta.pairs() if one_to_one else None
    results: Results = {}
    curves: dict[str, Roc] = {}
    searches: dict[str, list[Search]] = {}
    for setting in settings:
        name = meta.target if len(settings) == 1 else f"{meta.target}_{setting.name}"
        templates = pool_templates(images, source, setting)
        results[name] = {}
        if pairs is not None:
            curves[setting.name] = verify_templates(templates, pairs)
            results[name].update(verification_metrics(curves[setting.name]))
        if one_to_many:
            figures, found = identify(meta, templates)
            results[name].update(figures)
            searches[setting.name] = found
    print(f"{meta.target}: {len(images):,} images" + (f", {len(pairs.issame):,} pairs" if pairs else ""))
    rows = {f"{label} {setting.name}": metrics for setting, metrics in zip(settings, results.values(), strict=True)}
    if curves:
        _print_verification(arguments, meta.target, rows, curves, results)
    if one_to_many:
        _print_identification(arguments, meta.target, rows, searches)
    folder = plot_folder(arguments)
    if folder:
        stem = meta.target.lower()
        written = plot_roc(curves, folder / f"roc_{stem}", f"{meta.target} 1:1", far=1e-4) if curves else []
        found_in = {f"{name}, gallery {number}": each for name, found in searches.items() for number, each in enumerate(found, 1)}
        written += plot_cmc(found_in, folder / f"cmc_{stem}", f"{meta.target} 1:N") if found_in else []
        print("plots:", ", ".join(map(str, written)))
    return results


def _print_verification(
    arguments: argparse.Namespace, target: str, rows: Results, curves: dict[str, Roc], results: Results
) -> None:
    columns = {power_of_ten(far): tar_name(far) for far in FARS}
    intervals: dict[str, Intervals] = {}
    if arguments.bootstrap:
        for row, metrics, curve in zip(rows, results.values(), curves.values(), strict=True):
            intervals[row] = {tar_name(far): tar_interval(curve, far, arguments.bootstrap) for far in FARS}
            metrics |= as_metrics(intervals[row])
    beside = paper.rows(["I", "II", "III"], [paper.IJBB]) if target == "IJBB" else []
    print(rate_table(f"{target} TAR@FAR (%)", columns, rows, beside, {"1e-4": paper.IJBB}, intervals))


def _print_identification(arguments: argparse.Namespace, target: str, rows: Results, searches: dict[str, list[Search]]) -> None:
    intervals: dict[str, Intervals] = {}
    if arguments.bootstrap:
        for (row, metrics), found in zip(rows.items(), searches.values(), strict=True):
            intervals[row] = {f"rank{rank}": rank_interval(found, rank, arguments.bootstrap) for rank in RANKS}
            metrics |= as_metrics(intervals[row])
    for prefix, title, rates in (("", "1:N", "tpir@fpir"), ("pooled_", "1:N pooled (ijb_1n)", "tpr@far")):
        columns = {f"rank {rank}": f"{prefix}rank{rank}" for rank in RANKS}
        columns |= {f"{rates.upper()}={fpir:g}": f"{prefix}{rates}={fpir:g}" for fpir in FPIRS}
        print(rate_table(f"{target} {title} (%)", columns, rows, intervals=intervals))
