"""`python -m eval quality`: does the norm of a feature measure the quality of its image?

The input is the same faces in sets of different quality, the sharpest first. The method uses the norm as the quality (QGFace,
eq. 1); this command measures how well the norm separates the faces of each set from those of the first. With `--discard`, it
measures any quality score by the errors that are avoided when the images with the lowest scores are discarded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.commands.common import (
    Figures,
    Results,
    add_encoder_arguments,
    add_json_argument,
    bin_sets,
    embed,
    open_encoder,
    plot_folder,
    save_plots,
)
from eval.commands.verify import add_set_arguments, embed_with_norms, labelled_set, prepare
from eval.embedding import check_images
from eval.operating import is_measurable, operating_point, rate_label, require_measurable
from eval.present.plots import draw_discard, draw_histograms
from eval.present.tables import NOT_MEASURED, Table, percent
from eval.protocols.all_pairs import count_pairs
from eval.protocols.edc import DiscardCurve, discard_curve, oracle_quality, random_curve
from eval.protocols.image_lists import read_scores
from eval.roc import Roc, roc_curve
from eval.verification import cosine_of, pair_distances
from recognition.encoders.card import QualityScale
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "quality"
HELP = "does the norm, or another score, measure the quality? Norms by set, or error-versus-discard curves"

_COLUMNS = {
    "images": ("images", "{:.0f}"),
    "norm": ("norm", "{:.3f}"),
    "±": ("norm_std", "{:.3f}"),
    "below the sharpest (AUC)": ("auc", "{:.1%}"),
    "below its sharp twin": ("below_twin", "{:.1%}"),
    "u": ("quality", "{:.3f}"),
    "u ≤ b": ("low_quality_share", "{:.1%}"),
}

_SHARES, _AREAS = (0.0, 0.05, 0.1, 0.2, 0.3), (0.2, 0.3)  # of the images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder_arguments(parser)
    add_set_arguments(parser)
    parser.add_argument(
        "--discard",
        nargs="+",
        metavar="SCORE",
        help="instead: error-versus-discard curves by norm, u, or CSV files with the columns image,score",
    )
    parser.add_argument("--fmr", type=float, help="of the curves' threshold; default: the lowest measurable of 1e-4 … 1e-1")
    parser.add_argument("--plots", metavar="DIR", help="write plots (PNG and SVG) here; default: RUN/eval")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    if arguments.discard or arguments.all_pairs:
        return _discard(arguments, open_encoder(arguments, world))
    if arguments.cache:
        raise UserError("--cache needs --discard or --all-pairs")
    encoder = open_encoder(arguments, world)
    for images, _ in bin_sets(arguments.bins):
        check_images(images.count, images.load)
    figures = Figures(arguments)
    norms: dict[str, np.ndarray] = {}
    for images, _ in bin_sets(arguments.bins):
        norms[images.name] = np.linalg.norm(embed(encoder, images, arguments.batch_size, merge_flip=None), axis=1)
    results = compare_norms(norms, encoder.card.quality)

    def show() -> None:
        print(_table(encoder.label, results))
        if folder := plot_folder(arguments):
            save_plots(folder, {"norms": draw_histograms(norms, "norm of the feature", f"Norms of {encoder.label}")})

    dist.on_first_rank(show)
    figures.add(results)
    figures.finish()


def compare_norms(norms: Mapping[str, np.ndarray], scale: QualityScale | None) -> Results:
    """Statistics of the norms of each set (name -> float [N]), compared with the first set.

    auc: the probability that a face of this set has a smaller norm than one of the first (1/2: the norm says nothing about the
    quality; 1: it separates the sets). below_twin: the share of images with a smaller norm than the same image of the first set;
    only if both have as many images. With `scale`, quality: the mean of u (eq. 1); low_quality_share: the share with u <= b.
    """
    first = next(iter(norms.values()))
    results: Results = {}
    for name, found in norms.items():
        results[name] = {"images": float(len(found)), "norm": float(found.mean()), "norm_std": float(found.std())}
        if found is not first:
            sharp = np.repeat([True, False], [len(first), len(found)])
            results[name]["auc"] = roc_curve(np.concatenate([first, found]), sharp).auc
            if len(found) == len(first):
                results[name]["below_twin"] = float((found < first).mean())
        if scale is not None:
            u = scale.u(found)
            results[name]["quality"] = float(u.mean())
            if scale.threshold is not None:
                results[name]["low_quality_share"] = float((u <= scale.threshold).mean())
    return results


def _table(label: str, results: Results) -> Table:
    rows = [
        [name, *(form.format(figures[key]) if key in figures else NOT_MEASURED for key, form in _COLUMNS.values())]
        for name, figures in results.items()
    ]
    return Table([label, *_COLUMNS], rows)


# -------------------------------------------------------------------------------------------------- error versus discard


@dataclass(frozen=True)
class Compared:
    """Embedded images and their pairs, on rank 0.

    names: of the images, as in quality files. roc: of all pairs. pairs: int64 [P, 2], image numbers of pairs of one person;
    scores [P]: as in `roc`. to_cosine: converts them.
    """

    names: Sequence[str]
    norms: np.ndarray
    roc: Roc
    pairs: np.ndarray
    scores: np.ndarray
    to_cosine: Callable[[float], float] = float


def _discard(arguments: argparse.Namespace, encoder: LoadedEncoder) -> None:
    compare = (_every_pair if arguments.all_pairs else _listed_pairs)(arguments, encoder)

    def judge() -> Results:
        found = compare()
        fmr = _choose_fmr(arguments.fmr, found.roc.different_pairs)
        point = operating_point(found.roc, fmr)
        missed, images = found.scores < point.threshold, len(found.names)
        curves = {"oracle": discard_curve(found.pairs, missed, oracle_quality(found.pairs, missed, images))}
        for source in arguments.discard or ["norm"]:
            curves[Path(source).stem] = discard_curve(found.pairs, missed, _scores(source, found, encoder))
        curves["random"] = random_curve(found.pairs, missed, images)
        label = rate_label(fmr)
        cosine = found.to_cosine(point.threshold)
        print(f"{images:,} images, {len(missed):,} same and {found.roc.different_pairs:,} different pairs")
        print(f"FMR {label}: threshold {cosine:.4f} (cosine), fixed on all pairs; FNMR {percent(point.fnmr)} %")
        print(_discard_table(curves, point.fnmr))
        if folder := plot_folder(arguments):
            save_plots(folder, {"edc": draw_discard(curves, f"Error versus discard at FMR {label}, {encoder.label}")})
        return {f"discard by {name}": _discard_figures(curve, label, cosine) for name, curve in curves.items()}

    figures = Figures(arguments)
    figures.add(dist.on_first_rank(judge))
    figures.finish()


def _listed_pairs(arguments: argparse.Namespace, encoder: LoadedEncoder) -> Callable[[], Compared]:
    """The pairs of verification sets, pooled; an image's name is SET/NUMBER, or just its number if there is one set."""
    bins = prepare(arguments.bins)
    parts, names = [], list[str]()
    for images, issame in bin_sets(bins.values()):
        parts.append((*embed_with_norms(arguments, encoder, replace(images, name=f"{images.name}_pairs")), issame))
        names += [f"{images.name}/{number}" if len(bins) > 1 else str(number) for number in range(images.count)]

    def compare() -> Compared:
        features, norms, issame = (np.concatenate(column) for column in zip(*parts, strict=True))
        scores = -pair_distances(features)
        pairs = np.arange(len(names)).reshape(-1, 2)[issame]
        return Compared(names, norms, roc_curve(scores, issame), pairs, scores[issame], cosine_of)

    return compare


def _every_pair(arguments: argparse.Namespace, encoder: LoadedEncoder) -> Callable[[], Compared]:
    """All pairs of a labelled set; an image's name is its number in the set."""
    images, labels = labelled_set(arguments.all_pairs)
    features, norms = embed_with_norms(arguments, encoder, images)

    def compare() -> Compared:
        found = count_pairs(features, labels, norms, arguments.all_pairs)
        return Compared([str(number) for number in range(len(labels))], norms, found.roc, *found.same_pairs())

    return compare


def _choose_fmr(wanted: float | None, different_pairs: int) -> float:
    if wanted is None:
        wanted = next((fmr for fmr in (1e-4, 1e-3, 1e-2) if is_measurable(fmr, different_pairs)), 1e-1)
    require_measurable(wanted, different_pairs, "--discard")
    return wanted


def _scores(source: str, found: Compared, encoder: LoadedEncoder) -> np.ndarray:
    """Quality scores of all images by norm, by u, or from a CSV file."""
    if source == "norm":
        return found.norms
    if source != "u":
        return read_scores(Path(source), found.names)
    if encoder.card.quality is None:
        raise UserError(f"--discard u: {encoder.label} has no quality statistics; use norm")
    return encoder.card.quality.u(found.norms)


def _discard_figures(curve: DiscardCurve, fmr: str, threshold: float) -> dict[str, float]:
    shares = {f"fnmr@discard={100 * share:g}%": curve.at(share) for share in _SHARES}
    areas = {f"pauc@{100 * limit:g}%": curve.partial_area(limit) for limit in _AREAS}
    return {f"threshold@fmr={fmr}": threshold, **shares, **areas}


def _discard_table(curves: Mapping[str, DiscardCurve], fnmr: float) -> Table:
    """FNMR and partial areas in %; in brackets, the area relative to that of a flat curve, which discards at random."""
    rows = []
    for name, curve in curves.items():
        areas = [(100 * curve.partial_area(limit), 100 * limit * fnmr) for limit in _AREAS]
        shown = [f"{area:.3f}" + (f" ({area / level:.0%})" if level else "") for area, level in areas]
        rows.append([name, *(percent(curve.at(share)) for share in _SHARES), *shown])
    headings = [f"FNMR at {100 * share:g} %" for share in _SHARES] + [f"pAUC to {100 * limit:g} %" for limit in _AREAS]
    return Table(["discarded by", *headings], rows)
