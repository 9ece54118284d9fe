"""IJB-B and IJB-C: templates from image features, compared one to one and searched one to many.

A template is a set of images and video frames of one person. As in insightface's scripts, to the digit: an image's feature is
the sum over the image and its mirror image (F1), keeps its norm (N1) and is weighted by the detector's score (D1); the images of
a media are averaged, the media of a template are summed, and the sum is normalised. N0, D0 and F0 switch the respective step
off. The score of a pair is the dot product; TAR is read at the ROC corner with the nearest FAR. All arithmetic is in float64.

Shapes: N images, T templates, P pairs or probes, G gallery templates, D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from eval.operating import operating_metrics, points_of, rate_label
from eval.protocols.identification import Search, pooled_metrics, require_one_mate, search, search_metrics
from eval.protocols.ijb_files import FeatureRows, Images, Meta, Pairs, TemplateSubjects
from eval.roc import Roc, roc_curve
from utils.errors import UserError

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)

_THREADS = 2
_ROWS_AT_ONCE = 256  # a float64 block stays in the cache
_PAIRS_AT_ONCE = 1 << 20
_DENSE_CELLS_PER_PAIR = 6  # up to this many products per listed pair, forming all products is faster


@dataclass(frozen=True)
class Setting:
    """How image features are combined into template features."""

    keep_norm: bool = True  # N
    detector_score: bool = True  # D
    flip: bool = True  # F

    @property
    def name(self) -> str:
        return f"N{self.keep_norm:d}D{self.detector_score:d}F{self.flip:d}"

    @classmethod
    def parse(cls, name: str) -> Setting:
        """The setting with a name such as N1D1F1."""
        if len(name) != 6 or name[0::2].upper() != "NDF" or not set(name[1::2]) <= {"0", "1"}:
            raise UserError(f"{name!r} is not a setting; expected one like N1D1F1, each digit 0 or 1")
        return cls(*(digit == "1" for digit in name[1::2]))


SETTINGS = tuple(Setting(bool(n), bool(d), bool(f)) for n in (1, 0) for d in (1, 0) for f in (1, 0))


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a release's images, in the order of the face_tid_mid file."""

    features: FeatureRows
    flipped: FeatureRows | None = None  # of the mirror images
    scores: np.ndarray | None = None  # float [N], of the detector

    def check(self, images: Images, setting: Setting) -> None:
        """Raises UserError unless the arrays match the meta files and include what the setting needs."""
        count = len(images)
        if len(self.features) != count:
            raise UserError(f"{self.features.name}: {len(self.features)} rows for {count} images in {images.path}")
        if setting.flip and self.flipped is None:
            advice = f"add 'features_flip', or use {_without(setting, 'F')}"
            raise UserError(f"{self.features.name}: there are no features of mirror images; {advice}")
        if setting.flip and self.flipped is not None and self.flipped.shape != self.features.shape:
            raise UserError(f"{self.flipped.name}: shape {self.flipped.shape}, but 'features' has {self.features.shape}")
        if not setting.detector_score:
            return
        if self.scores is None:
            raise UserError(
                f"{self.features.name}: there are no detector scores; add 'scores', or a …_name_5pts_score.txt to the meta "
                f"folder, or use {_without(setting, 'D')}"
            )
        scores = f"{self.features.name}, detector scores"
        if self.scores.shape != (count,) or not np.issubdtype(self.scores.dtype, np.number):
            raise UserError(f"{scores}: {self.scores.dtype} of shape {self.scores.shape} for {count} images in {images.path}")
        if not np.isfinite(self.scores).all():
            raise UserError(f"{scores}: row {int(np.argmin(np.isfinite(self.scores)))} is not finite")


def _without(setting: Setting, letter: str) -> str:
    return setting.name.replace(f"{letter}1", f"{letter}0")


# -------------------------------------------------------------------------------------------------- templates


@dataclass(frozen=True)
class Templates:
    """Normalised template features, float64 [T, D], and their ids in ascending order [T]."""

    ids: np.ndarray
    features: np.ndarray

    def rows(self, ids: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
        """The rows of the templates with these ids, int64.

        Raises UserError if one has no images; it begins with `place` of its position in `ids`, such as a file and line.
        """
        top = int(self.ids[-1])
        if top < 1 << 26:  # small ids: a table is far faster than a search
            table = np.full(top + 2, -1, np.int64)
            table[self.ids] = np.arange(len(self.ids))
            found = table[np.minimum(ids, top + 1)]
        else:
            found = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
            found[self.ids[found] != ids] = -1
        if len(found) and found.min() < 0:
            row = int(np.argmin(found))
            raise UserError(f"{place(row)}: template {ids[row]} has no images")
        return found

    def of(self, wanted: TemplateSubjects) -> np.ndarray:
        """The features of a gallery or of probes."""
        return self.features[self.rows(wanted.templates, wanted.place)]


def pool_templates(images: Images, source: ImageFeatures, setting: Setting) -> Templates:
    """Combine image features into templates, as described at the head of this file.

    Reads the features block by block. Raises UserError if they do not match the meta files or are not finite.
    """
    source.check(images, setting)
    ids, template_of = np.unique(images.templates, return_inverse=True)
    _, media = np.unique(images.medias, return_inverse=True)
    media_key = template_of * len(images) + media  # templates share media numbers
    _, media_of, media_sizes = np.unique(media_key, return_inverse=True, return_counts=True)
    weights = 1.0 / media_sizes[media_of]
    if setting.detector_score and source.scores is not None:
        weights = weights * source.scores.astype(np.float64)
    share = -(-len(images) // _THREADS)

    def sum_share(start: int) -> np.ndarray:
        return _weighted_sums(source, setting, weights, template_of, len(ids), start, min(start + share, len(images)))

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(sum_share, range(0, len(images), share)))
    sums = parts[0]
    for part in parts[1:]:
        sums += part
    lengths = np.sqrt(np.einsum("td,td->t", sums, sums))
    sums /= np.where(lengths == 0, 1.0, lengths)[:, None]
    return Templates(ids, sums)


def _weighted_sums(
    source: ImageFeatures, setting: Setting, weights: np.ndarray, template_of: np.ndarray, count: int, start: int, stop: int
) -> np.ndarray:
    """The sum of weight times feature over images start..stop, per template: float64 [T, D]."""
    sums = np.zeros((count, source.features.shape[1]))
    for first in range(start, stop, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, stop)
        rows = source.features.read(first, last).astype(np.float64)
        if setting.flip and source.flipped is not None:
            rows += source.flipped.read(first, last)
        factor = weights[first:last]
        if not setting.keep_norm:
            lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
            factor = factor / np.where(lengths == 0, 1.0, lengths)
        with np.errstate(invalid="ignore"):  # reported below
            rows *= factor[:, None]
        owner = template_of[first:last]
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        if (np.diff(order) != 1).any():
            rows = rows[order]
        run_starts = np.flatnonzero(np.diff(owner, prepend=-1))
        block_sums = np.add.reduceat(rows, run_starts, axis=0)
        if not np.isfinite(block_sums).all():
            _raise_not_finite(source, setting, first, last)
        sums[owner[run_starts]] += block_sums
    return sums


def _raise_not_finite(source: ImageFeatures, setting: Setting, first: int, last: int) -> NoReturn:
    for array in (source.features, source.flipped):
        if array is not None and (setting.flip or array is source.features):
            finite = np.isfinite(array.read(first, last)).all(axis=1)
            if not finite.all():
                raise UserError(f"{array.name}: row {first + int(np.argmin(finite))} is not finite; embed the images again")
    raise UserError(f"{source.features.name}: rows {first} to {last - 1} are too large to add")


# -------------------------------------------------------------------------------------------------- pairs


def pair_scores(features_TD: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dot products of the listed pairs of rows: float64 [P].

    A benchmark's list has few templates on the left (the gallery) and many on the right, so all products of the two sets are
    fastest. For sparser lists, only the listed products are formed.
    """
    left, left_of = _used(first, len(features_TD))
    right, right_of = _used(second, len(features_TD))
    if len(left) * len(right) <= _DENSE_CELLS_PER_PAIR * len(first):
        return _from_all_products(features_TD[left], features_TD[right], left_of[first], right_of[second])
    return _from_listed_products(features_TD, first, second)


def _used(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that occur, in ascending order, and for each row [count] its position among them."""
    occurs = np.zeros(count, bool)
    occurs[rows] = True
    return np.flatnonzero(occurs), np.cumsum(occurs) - 1


def _from_all_products(left_LD: np.ndarray, right_RD: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    products = left_LD @ right_RD.T
    scores = np.empty(len(i))
    for start in range(0, len(i), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        scores[part] = products.reshape(-1).take(i[part] * products.shape[1] + j[part])
    return scores


def _from_listed_products(features_TD: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sorted by the left template; one sampled matrix product per block of pairs, on two threads."""
    # numpy uses radix sort for 16-bit numbers, which is several times faster.
    order = np.argsort(first.astype(np.uint16) if len(features_TD) <= 1 << 16 else first, kind="stable")
    features = torch.from_numpy(features_TD)
    scores = np.empty(len(first))

    def compute(start: int) -> None:
        chosen = order[start : start + _PAIRS_AT_ONCE]
        rows = first[chosen]
        used, low = int(rows[-1]) + 1, int(rows[0])
        row_starts = torch.from_numpy(np.searchsorted(rows, np.arange(low, used + 1)))
        columns, zeros = torch.from_numpy(second[chosen]), torch.zeros(len(chosen), dtype=torch.float64)
        wanted = torch.sparse_csr_tensor(row_starts, columns, zeros, (used - low, len(features)), check_invariants=False)
        scores[chosen] = torch.sparse.sampled_addmm(wanted, features[low:used], features.T, beta=0.0).values().numpy()

    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")  # PyTorch announces it
        list(pool.map(compute, range(0, len(first), _PAIRS_AT_ONCE)))
    return scores


def verify_templates(templates: Templates, pairs: Pairs) -> Roc:
    """The ROC of the listed pairs."""
    first, second = templates.rows(pairs.first, pairs.place), templates.rows(pairs.second, pairs.place)
    try:
        return roc_curve(pair_scores(templates.features, first, second), pairs.issame)
    except UserError as error:
        raise UserError(f"{pairs.path}: {error}") from error


def tar_name(far: float) -> str:
    """The metric's name, for example tar@far=1e-4."""
    return f"tar@far={rate_label(far)}"


def verification_metrics(roc: Roc) -> dict[str, Any]:
    """TAR at each FAR of `FARS`, the area under the curve, the numbers of pairs, and operating points."""
    rates = {tar_name(far): roc.tar_at_far(far) for far in FARS}
    counts = {"auc": roc.auc, "same_pairs": roc.same_pairs, "different_pairs": roc.different_pairs}
    return {**rates, **counts, **operating_metrics(points_of(roc))}


# -------------------------------------------------------------------------------------------------- one to many


def check_protocol(meta: Meta, images: Images, pairs: Pairs | None, one_to_many: bool) -> None:
    """Check, before features are computed, that the files of the meta folder fit together.

    Raises UserError if a template has no images, all pairs are of one kind, a probe does not have exactly one mate, or a gallery
    has no probe's mate, or every probe's.
    """
    templates = Templates(np.unique(images.templates), np.empty((0, 0)))
    if pairs is not None:
        templates.rows(pairs.first, pairs.place)
        templates.rows(pairs.second, pairs.place)
        if pairs.issame.all() or not pairs.issame.any():
            raise UserError(
                f"{pairs.path}: contains {'no different' if pairs.issame.all() else 'no same'} pairs; both are needed"
            )
    if not one_to_many:
        return
    probes, galleries = _probes_and_galleries(meta)
    for wanted in (probes, *galleries):
        templates.rows(wanted.templates, wanted.place)
    require_one_mate(probes.subjects, np.concatenate([gallery.subjects for gallery in galleries]))
    for gallery in galleries:
        mated = np.isin(probes.subjects, gallery.subjects)
        if mated.all() or not mated.any():
            which = "all" if mated.all() else "none"
            raise UserError(f"{gallery.path}: contains the mates of {which} of the probes of {probes.path}; expected some")


def _probes_and_galleries(meta: Meta) -> tuple[TemplateSubjects, list[TemplateSubjects]]:
    """The probes and the two galleries. Raises UserError if a file is missing, or the galleries share a person."""
    meta.need(*meta.gallery_files, meta.probe_file)
    probes, galleries = meta.probes(), [meta.gallery(0), meta.gallery(1)]
    shared = np.intersect1d(galleries[0].subjects, galleries[1].subjects)
    if len(shared):
        raise UserError(f"{galleries[0].path} and {galleries[1].path.name}: subject {shared[0]} is in both galleries")
    return probes, galleries


def identify(meta: Meta, templates: Templates) -> tuple[dict[str, float], list[Search]]:
    """Search the probes in the galleries. Returns the figures by two definitions, and the search in each gallery.

    The protocol's: each probe is searched in each of the two galleries, which share no person, so it has a mate in only one;
    figures are averaged over the galleries. And insightface's `ijb_1n`, prefixed `pooled_`: both galleries as one.
    """
    probes, galleries = _probes_and_galleries(meta)
    probe_PD, *gallery_features = (templates.of(wanted) for wanted in (probes, *galleries))
    searches = [
        search(probe_PD, probes.subjects, features_GD, gallery.subjects, gallery.path.name)
        for features_GD, gallery in zip(gallery_features, galleries, strict=True)
    ]
    figures = [search_metrics(found, RANKS, FPIRS) for found in searches]
    metrics = {name: float(np.mean([each[name] for each in figures])) for name in figures[0] if "probes" not in name}
    metrics["probes"] = len(probes.templates)
    pooled_GD, subjects = np.concatenate(gallery_features), np.concatenate([gallery.subjects for gallery in galleries])
    pooled = search(probe_PD, probes.subjects, pooled_GD, subjects, "both galleries")
    return metrics | pooled_metrics(pooled, probe_PD, probes.subjects, pooled_GD, subjects, RANKS, FPIRS), searches
