"""IJB-B and IJB-C: templates from image features, and comparison of templates one to one.

A template is a set of images and video frames of one person. As in insightface's scripts, which this follows to the digit:
each image's feature is the sum over the image and its mirror image (F1), keeps its norm (N1) and is weighed by the
detector's score (D1); the images of one media are averaged, the media of a template are summed, and the sum is normalised.
N0, D0 and F0 leave out what the letter stands for. The score of a pair is the dot product; TAR is read off at the ROC's
corner whose FAR is nearest. All arithmetic is in float64.

Shapes: N images, T templates, P pairs, D embedding.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch

from eval.protocols.ijb_files import FeatureRows, Images, Meta, Pairs
from eval.roc import Roc, roc_curve
from utils.errors import UserError

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

_THREADS = 2
_ROWS_AT_ONCE = 256  # a block in float64 stays in the cache
_PAIRS_AT_ONCE = 1 << 20
_DENSE_CELLS_A_PAIR = 6  # products of all templates beat products of the listed pairs where the list is this dense


@dataclass(frozen=True)
class Setting:
    """How image features become template features."""

    keep_norm: bool = True  # N
    detector_score: bool = True  # D
    flip: bool = True  # F

    @property
    def name(self) -> str:
        return f"N{self.keep_norm:d}D{self.detector_score:d}F{self.flip:d}"

    @classmethod
    def parse(cls, name: str) -> Setting:
        """The setting of a name such as N1D1F1."""
        if len(name) != 6 or name[0::2].upper() != "NDF" or not set(name[1::2]) <= {"0", "1"}:
            raise UserError(f"{name!r} is no setting; N1D1F1 is one, each figure 0 or 1")
        return cls(*(figure == "1" for figure in name[1::2]))


SETTINGS = tuple(Setting(bool(n), bool(d), bool(f)) for n in (1, 0) for d in (1, 0) for f in (1, 0))


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a release's images, in the order of its face_tid_mid file."""

    features: FeatureRows
    flipped: FeatureRows | None = None  # of the mirror images
    scores: np.ndarray | None = None  # float [N], the detector's

    def check(self, images: Images, setting: Setting) -> None:
        """UserError unless the arrays fit the meta and hold what the setting needs."""
        count = len(images)
        if len(self.features) != count:
            raise UserError(f"{self.features.name}: {len(self.features)} rows for {count} images in {images.path}")
        if setting.flip and self.flipped is None:
            advice = f"add 'features_flip', or use {_without(setting, 'F')}"
            raise UserError(f"{self.features.name}: no features of mirror images; {advice}")
        if setting.flip and self.flipped is not None and self.flipped.shape != self.features.shape:
            raise UserError(f"{self.flipped.name}: shape {self.flipped.shape}, unlike 'features', {self.features.shape}")
        if not setting.detector_score:
            return
        if self.scores is None:
            raise UserError(
                f"{self.features.name}: no detector's scores; add 'scores' or a …_name_5pts_score.txt to the meta, "
                f"or use {_without(setting, 'D')}"
            )
        told = f"{self.features.name}, with its scores"
        if self.scores.shape != (count,) or not np.issubdtype(self.scores.dtype, np.number):
            raise UserError(f"{told}: {self.scores.dtype} of shape {self.scores.shape} for {count} images in {images.path}")
        if not np.isfinite(self.scores).all():
            raise UserError(f"{told}: the score in row {int(np.argmin(np.isfinite(self.scores)))} is not finite")


def _without(setting: Setting, letter: str) -> str:
    return setting.name.replace(f"{letter}1", f"{letter}0")


# -------------------------------------------------------------------------------------------------- templates


@dataclass(frozen=True)
class Templates:
    """Normalised template features, float64 [T, D], and their ids, ascending [T]."""

    ids: np.ndarray
    features: np.ndarray

    def rows(self, ids: np.ndarray, describe: str) -> np.ndarray:
        """Where the templates of these ids are, int64; UserError, beginning with `describe`, for one without images."""
        top = int(self.ids[-1])
        if top < 1 << 26:  # ids are small: a table is far quicker than a search
            table = np.full(top + 2, -1, np.int64)
            table[self.ids] = np.arange(len(self.ids))
            found = table[np.minimum(ids, top + 1)]
        else:
            found = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
            found[self.ids[found] != ids] = -1
        if len(found) and found.min() < 0:
            row = int(np.argmin(found))
            raise UserError(f"{describe}: entry {row + 1} names template {ids[row]}, which has no image")
        return found


def pool_templates(images: Images, source: ImageFeatures, setting: Setting) -> Templates:
    """Mean of the images within a media, sum over the media of a template, normalised: `setting` says of which features.

    Reads the features block by block. Raises UserError where they do not fit the meta or are not finite.
    """
    source.check(images, setting)
    ids, template_of = np.unique(images.templates, return_inverse=True)
    media_key = template_of * (int(images.medias.max()) + 1) + images.medias
    _, media_of, media_sizes = np.unique(media_key, return_inverse=True, return_counts=True)
    weights = 1.0 / media_sizes[media_of]
    if setting.detector_score and source.scores is not None:
        weights = weights * source.scores.astype(np.float64)
    share = -(-len(images) // _THREADS)
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(
            lambda start: _weighted_sums(source, setting, weights, template_of, len(ids), start, min(start + share, len(images))),
            range(0, len(images), share),
        ))  # fmt: skip
    sums = parts[0]
    for part in parts[1:]:
        sums += part
    lengths = np.sqrt(np.einsum("td,td->t", sums, sums))
    sums /= np.where(lengths == 0, 1.0, lengths)[:, None]
    return Templates(ids, sums)


def _weighted_sums(
    source: ImageFeatures, setting: Setting, weights: np.ndarray, template_of: np.ndarray, count: int, start: int, stop: int
) -> np.ndarray:
    """Sum of weight times feature of the images start..stop, by template: float64 [T, D]."""
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
        with np.errstate(invalid="ignore"):  # complained of below
            rows *= factor[:, None]
        owner = template_of[first:last]
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        if (np.diff(order) != 1).any():
            rows = rows[order]
        run_starts = np.flatnonzero(np.diff(owner, prepend=-1))
        block_sums = np.add.reduceat(rows, run_starts, axis=0)
        if not np.isfinite(block_sums).all():
            _complain_of_row(source, setting, first, last)
        sums[owner[run_starts]] += block_sums
    return sums


def _complain_of_row(source: ImageFeatures, setting: Setting, first: int, last: int) -> NoReturn:
    for array in (source.features, source.flipped):
        if array is not None and (setting.flip or array is source.features):
            finite = np.isfinite(array.read(first, last)).all(axis=1)
            if not finite.all():
                raise UserError(f"{array.name}: row {first + int(np.argmin(finite))} is not finite; embed the images again")
    raise UserError(f"{source.features.name}: rows {first} to {last - 1} are too large to be added")


# -------------------------------------------------------------------------------------------------- pairs


def pair_scores(features_TD: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dot products of listed pairs of rows: float64 [P].

    Lists of a benchmark name few templates on the left (the gallery) and many on the right: then all products of the two
    are quickest. Otherwise only the listed ones are formed.
    """
    left, left_of = _used(first, len(features_TD))
    right, right_of = _used(second, len(features_TD))
    if len(left) * len(right) <= _DENSE_CELLS_A_PAIR * len(first):
        return _from_all_products(features_TD[left], features_TD[right], left_of[first], right_of[second])
    return _from_listed_products(features_TD, first, second)


def _used(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that occur, ascending, and the place of each row among them [count]."""
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
    """By rows of the left template: one sampled matrix product a share of the list, on two threads."""
    # numpy sorts numbers of 16 bits by their digits, which is several times quicker.
    order = np.argsort(first.astype(np.uint16) if len(features_TD) <= 1 << 16 else first, kind="stable")
    features = torch.from_numpy(features_TD)
    scores = np.empty(len(first))

    def compute(start: int) -> None:
        chosen = order[start : start + _PAIRS_AT_ONCE]
        rows = first[chosen]
        used, low = int(rows[-1]) + 1, int(rows[0])
        row_starts = torch.from_numpy(np.searchsorted(rows, np.arange(low, used + 1)))
        wanted = torch.sparse_csr_tensor(
            row_starts, torch.from_numpy(second[chosen]), torch.zeros(len(chosen), dtype=torch.float64),
            (used - low, len(features)), check_invariants=False,
        )  # fmt: skip
        scores[chosen] = torch.sparse.sampled_addmm(wanted, features[low:used], features.T, beta=0.0).values().numpy()

    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")  # announced once a process
        list(pool.map(compute, range(0, len(first), _PAIRS_AT_ONCE)))
    return scores


def verify_templates(templates: Templates, pairs: Pairs) -> Roc:
    """The ROC of the listed pairs."""
    first, second = templates.rows(pairs.first, str(pairs.path)), templates.rows(pairs.second, str(pairs.path))
    try:
        return roc_curve(pair_scores(templates.features, first, second), pairs.issame)
    except UserError as error:
        raise UserError(f"{pairs.path}: {error}") from error


def power_of_ten(far: float) -> str:
    """1e-4 rather than 1e-04."""
    return f"{far:.0e}".replace("e-0", "e-")


def tar_name(far: float) -> str:
    """The name of the metric."""
    return f"tar@far={power_of_ten(far)}"


def verification_metrics(roc: Roc) -> dict[str, float]:
    """TAR at each FAR of `FARS`, the area under the curve and the counts."""
    rates = {tar_name(far): roc.tar_at_far(far) for far in FARS}
    return {**rates, "auc": roc.auc, "same_pairs": roc.same_pairs, "different_pairs": roc.different_pairs}


def evaluate(meta: Meta, source: ImageFeatures, settings: tuple[Setting, ...]) -> dict[str, Roc]:
    """One-to-one comparison under each setting: setting's name -> ROC."""
    meta.need(meta.images_file, meta.pairs_file)
    images = meta.images()
    pairs = meta.pairs()
    return {setting.name: verify_templates(pool_templates(images, source, setting), pairs) for setting in settings}
