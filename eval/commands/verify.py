"""`python -m eval verify`: pairs of photographs, in ten folds, or every pair of a labelled set."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.commands.common import (
    Figures,
    ImageSet,
    Results,
    add_benchmark_arguments,
    bin_sets,
    embed,
    named_bins,
    open_encoder,
    plot_folder,
    save_plots,
)
from eval.commands.common.overlap import Overlap, add_overlap_arguments
from eval.embedding import check_bins
from eval.present.plots import draw_det, draw_roc
from eval.present.tables import NOT_MEASURED, Table, operating_table, verification_table
from eval.protocols.all_pairs import PERCENTILES, AllPairs, check_labels, count_pairs
from eval.protocols.bootstrap import Intervals, accuracy_interval, as_metrics, tar_interval
from eval.protocols.image_lists import read_groups
from eval.roc import Roc
from eval.verification import TenFold, judge_set, load_bin
from recognition.data.sets.opening import open_faces
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.errors import UserError
from utils.images import decode_face
from utils.number_table import read_numbers

NAME = "verify"
HELP = "verification on .bin sets (LFW, CFP-FP, AgeDB …): ten-fold accuracy, TAR, AUC, ROC"

_FAR = 1e-3
_Groups = tuple[Sequence[str], np.ndarray] | None  # their names, and each image's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    add_set_arguments(parser)
    add_overlap_arguments(parser)
    parser.add_argument(
        "--groups", type=Path, metavar="CSV", help="of images (image,group), instead of thirds by norm, for --all-pairs"
    )


def add_set_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that name pairs of photographs: --bins or --all-pairs."""
    sets = parser.add_mutually_exclusive_group(required=True)
    sets.add_argument("--bins", nargs="+", metavar="FILE", help="verification sets, such as lfw.bin cfp_fp.bin")
    sets.add_argument(
        "--all-pairs",
        metavar="SET",
        help="every pair of a labelled set: .rec, a folder with one subfolder per identity, a list, or X.bin with X.labels.txt",
    )


def run(arguments: argparse.Namespace, world: World) -> None:
    if arguments.groups and not arguments.all_pairs:
        raise UserError("--groups needs --all-pairs")
    encoder, figures = open_encoder(arguments, world), Figures(arguments)
    if arguments.all_pairs:
        evaluate_all_pairs(arguments, encoder, labelled_sets([arguments.all_pairs], ()), figures, arguments.groups)
    else:
        evaluate(arguments, encoder, prepare(arguments.bins), figures)
    figures.finish()


def prepare(paths: Iterable[str | Path]) -> dict[str, Path]:
    """Check the sets; name -> path. Raises UserError if a name occurs twice or a set cannot be used."""
    bins = named_bins(paths)
    check_bins(bins)
    return bins


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, bins: Mapping[str, Path], figures: Figures) -> None:
    """Embed and judge verification sets, as `evaluate_sets` does."""
    evaluate_sets(arguments, encoder, bin_sets(bins.values()), figures, "verification")


def evaluate_sets(
    arguments: argparse.Namespace,
    encoder: LoadedEncoder,
    sets: Iterable[tuple[ImageSet, np.ndarray]],
    figures: Figures,
    plot: str,
) -> None:
    """Embed on all ranks; judge, print and draw on rank 0. Adds set name -> `TenFold.metrics()`, and confidence intervals.

    sets: images, two per pair, and whether each pair shows the same person. plot: the last part of the plots' file names.
    """
    overlap = Overlap(arguments, encoder)
    outcomes: dict[str, TenFold] = {}  # on rank 0
    intervals: dict[str, Intervals] = {}

    def judge(name: str, rows: np.ndarray, issame: np.ndarray) -> Results:
        found = judge_set(name, rows, issame)
        if arguments.bootstrap:
            intervals[name] = {
                "accuracy": accuracy_interval(found, arguments.bootstrap),
                "tar@far=1e-3": tar_interval(found.roc, _FAR, arguments.bootstrap),
            }
        outcomes[name] = found
        return {name: found.metrics() | as_metrics(intervals.get(name, {}))}

    try:
        for images, issame in sets:
            overlap.warn(images)
            rows = embed(encoder, images, arguments.batch_size, cache=arguments.cache)
            figures.add(dist.on_first_rank(partial(judge, images.name, rows, issame)))
    finally:
        if outcomes:  # also those before a failure
            finished = {name: figures.results[name] for name in outcomes if name in figures.results}
            print(verification_table(finished, intervals, published=not arguments.no_paper))
            print(operating_table(finished))
    if outcomes and (folder := plot_folder(arguments)):
        curves = {name: found.roc for name, found in outcomes.items()}
        save_plots(folder, {f"roc_{plot}": draw_roc(curves, far=_FAR), f"det_{plot}": draw_det(curves)})


# -------------------------------------------------------------------------------------------------- every pair


def labelled_set(path: str) -> tuple[ImageSet, np.ndarray]:
    """The images of a labelled set, and their labels, int64 [N].

    Raises UserError if they cannot be read, or there are no pairs of both kinds.
    """
    if path.endswith(".bin"):
        return _labelled_bin(Path(path))
    data = open_faces(path)
    check_labels(data.labels(), path)

    def load(index: int) -> np.ndarray:
        return decode_face(data.read(index)[0], data.where(index))

    return ImageSet(f"{Path(path).resolve().stem}_pairs", len(data), load, [path]), data.labels()


def _labelled_bin(path: Path) -> tuple[ImageSet, np.ndarray]:
    """The images of a .bin, each once, with the identities in NAME.labels.txt: one number per image of the .bin, in its order."""
    names = path.with_suffix(".labels.txt")
    if not names.is_file():
        raise UserError(f"{path}: a .bin has pairs, but no identities; --all-pairs needs {names.name} next to it: one per image")
    encoded, _ = load_bin(path)
    labels = read_numbers(names, columns=1, expected="an identity, a whole number")[:, 0]
    if len(labels) != len(encoded):
        raise UserError(f"{names}: {len(labels)} identities for the {len(encoded)} images of {path}")
    first: dict[bytes, int] = {}
    for index, image in enumerate(encoded):  # pairs share images
        first.setdefault(image, index)
    chosen = list(first.values())
    check_labels(labels[chosen], str(path))

    def load(index: int) -> np.ndarray:
        return decode_face(encoded[chosen[index]], f"{path}: image {chosen[index]}")

    return ImageSet(f"{path.stem}_faces_pairs", len(chosen), load, [path]), labels[chosen]


def labelled_sets(paths: Iterable[str], taken: Iterable[str]) -> dict[str, tuple[ImageSet, np.ndarray]]:
    """Name -> `labelled_set`. Raises UserError with one line per set that cannot be used, or has a name that is taken."""
    sets: dict[str, tuple[ImageSet, np.ndarray]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            images, labels = labelled_set(path)
        except UserError as error:
            problems += error.args
            continue
        name = images.name.removesuffix("_pairs")
        if name in sets or name in taken:
            problems.append(f"{path}: has the name of another benchmark, {name}; rename it")
        sets[name] = images, labels
    if problems:
        raise UserError(*problems)
    return sets


def embed_with_norms(arguments: argparse.Namespace, encoder: LoadedEncoder, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """f(x) + f(mirrored x), float32 [N, D], and the norms of f(x), float32 [N]; on rank 0, perhaps empty on the others."""
    rows = embed(encoder, images, arguments.batch_size, _side_by_side, arguments.cache)
    plain, mirrored = np.split(rows, 2, axis=1)
    return plain + mirrored, np.linalg.norm(plain, axis=1)


def _side_by_side(plain: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    return torch.cat([plain, mirrored], dim=1)


def evaluate_all_pairs(
    arguments: argparse.Namespace,
    encoder: LoadedEncoder,
    sets: Mapping[str, tuple[ImageSet, np.ndarray]],
    figures: Figures,
    group_file: Path | None = None,
) -> None:
    """Compare every pair of labelled sets. Adds set name -> `AllPairs.metrics()`, also by group of quality, or of `--groups`."""
    overlap = Overlap(arguments, encoder)
    curves: dict[str, Roc] = {}

    def judge(name: str, labels: np.ndarray, features: np.ndarray, norms: np.ndarray, groups: _Groups) -> Results:
        found = count_pairs(features, labels, norms, name, groups=groups)
        results = {f"{name} {group}".rstrip(): metrics for group, metrics in found.metrics().items()}
        print(f"{name}: {len(labels):,} images, {found.roc.same_pairs:,} same and {found.roc.different_pairs:,} different pairs")
        print(operating_table({name: results[name]}))
        print(_group_table(found, "" if groups else " norm"))
        curves[name] = found.roc
        return results

    for name, (images, labels) in sets.items():
        groups = read_groups(group_file, [str(number) for number in range(images.count)]) if group_file else None
        overlap.warn(images)
        features, norms = embed_with_norms(arguments, encoder, images)
        figures.add(dist.on_first_rank(partial(judge, name, labels, features, norms, groups)))
    if curves and (folder := plot_folder(arguments)):
        save_plots(folder, {"roc_all_pairs": draw_roc(curves, far=_FAR), "det_all_pairs": draw_det(curves)})


def _group_table(found: AllPairs, kind: str) -> Table:
    """Percentiles of the similarity of different people, by the quality of the worse image. kind: ends the groups' names."""
    rows = []
    for group, heading in ((None, "all"), *enumerate(f"{name}{kind}" for name in found.groups)):
        shown = [found.percentile(percent, group) for percent in PERCENTILES]
        cells = [NOT_MEASURED if score is None else f"{score:.4f}" for score in shown]
        rows.append([heading, f"{found.different_GK[slice(None) if group is None else group].sum():,}", *cells])
    return Table(["worse image", "different pairs", *(f"{percent:g} % below" for percent in PERCENTILES)], rows)
