"""Every pair of a labelled set: error rates and percentiles from exact counts.

Cosines are formed in float32 and rounded to multiples of 2^-20, about 1e-6, which is close to what float32 products resolve. On
rounded scores, all counts are exact, ties included: histograms with one cell per score take the place of the N (N - 1) / 2
scores. Images are divided into groups of quality, the best first: thirds, or the user's. A pair belongs to the group of its
worse image.

Shapes: N images, G groups, K scores from -1 to 1, D embedding, I identities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from eval.operating import FMRS, OperatingPoint, is_measurable, operating_metrics, operating_point, wilson_interval
from eval.protocols.identification import normalised
from eval.protocols.products import product_blocks
from eval.roc import Roc, roc_of_counts
from utils.errors import UserError

PERCENTILES = (99, 99.9, 99.99)  # of the scores of different people
GROUPS = ("high", "middle", "low")  # by default: thirds of the images by quality
_HALF = 1 << 20  # cells per unit of cosine
_BLOCK = 2048  # rows and columns of products at a time


@dataclass(frozen=True)
class AllPairs:
    """Counts of a set's pairs by score."""

    same_GK: np.ndarray  # int64, pairs of one person
    different_GK: np.ndarray  # int64, pairs of two people
    features: np.ndarray  # float32 [N, D], of length 1, the best images first
    labels: np.ndarray  # int64 [N], in the same order
    order: np.ndarray  # int64 [N], the images' numbers in the set
    groups: Sequence[str] = GROUPS

    @cached_property
    def roc(self) -> Roc:
        """The ROC over all pairs, with every distinct score as a point."""
        return roc_of_counts(_SCORES, self.same_GK.sum(axis=0), self.different_GK.sum(axis=0))

    @cached_property
    def points(self) -> list[tuple[float, OperatingPoint | None]]:
        """Each FMR of `FMRS`, with its operating point, or None if it is not measurable."""
        measurable = [fmr for fmr in FMRS if is_measurable(fmr, self.roc.different_pairs)]
        found = iter(self.points_at(measurable))
        return [(fmr, next(found) if fmr in measurable else None) for fmr in FMRS]

    def points_at(self, fmrs: Sequence[float]) -> list[OperatingPoint]:
        """The operating points for target FMRs; the interval of the FNMR allows for pairs that share an identity.

        It is Wilson's for an effective number of pairs, which follows from the variance between identities (Taylor
        linearisation of the ratio of false non-matches to pairs).
        """
        points = [operating_point(self.roc, fmr) for fmr in fmrs]
        pairs_I, misses_IF = self._misses([point.threshold for point in points])
        return [
            OperatingPoint(
                point.target, point.threshold, point.fmr, point.fnmr, _clustered_interval(point.fnmr, pairs_I, misses_I)
            )
            for point, misses_I in zip(points, misses_IF.T, strict=True)
        ]

    def _misses(self, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of each identity, and those below each threshold."""
        found = [(len(scores), [np.count_nonzero(scores < each) for each in thresholds]) for _, _, scores in self._identities()]
        pairs, misses = zip(*found, strict=True)
        return np.array(pairs), np.array(misses)

    def _identities(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The pairs of each identity with several images: int64 [P], int64 [P], rows of `features`, and scores [P]."""
        order = np.argsort(self.labels, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1):
            if len(members) > 1:
                parts = []
                for part in _blocks(self.features[members]):
                    places = np.triu_indices(len(part.cosines_nm), 1) if part.upper else np.indices(part.cosines_nm.shape)
                    i, j = (members[start + at.reshape(-1)] for start, at in zip((part.row, part.column), places, strict=True))
                    parts.append((i, j, _SCORES[_cells(part.cosines_nm, part.upper)]))
                yield tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[misc]

    def same_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of one person: int64 [P, 2], image numbers, and scores [P]."""
        first, second, scores = (np.concatenate(column) for column in zip(*self._identities(), strict=True))
        return self.order[np.stack([first, second], axis=1)], scores

    def percentile(self, percent: float, group: int | None = None) -> float | None:
        """The score that `percent` % of the pairs of different people do not exceed; None if fewer than ten pairs exceed it."""
        counts = self.different_GK.sum(axis=0) if group is None else self.different_GK[group]
        total = int(counts.sum())
        if not is_measurable(1 - percent / 100, total):
            return None
        return float(_SCORES[np.searchsorted(counts.cumsum(), math.ceil(percent / 100 * total - 1e-6))])

    def metrics(self) -> dict[str, dict[str, float]]:
        """ "" -> figures of all pairs; group of quality -> those of its pairs."""
        images, identities = len(self.labels), len(np.unique(self.labels))
        every = {"images": images, "identities": identities, "same_pairs": self.roc.same_pairs, "auc": self.roc.auc}
        found = {"": every | self._impostors(None) | operating_metrics(self.points)}
        return found | {name: self._impostors(group) for group, name in enumerate(self.groups)}

    def _impostors(self, group: int | None) -> dict[str, float]:
        count = self.different_GK.sum() if group is None else self.different_GK[group].sum()
        percentiles = {f"impostor_p{percent:g}": self.percentile(percent, group) for percent in PERCENTILES}
        return {"different_pairs": int(count), **percentiles}  # type: ignore[dict-item]


_SCORES = np.arange(-_HALF, _HALF + 1) / _HALF


def count_pairs(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    quality_N: np.ndarray,
    describe: str,
    on_rows: Callable[[int], object] = int,
    groups: tuple[Sequence[str], np.ndarray] | None = None,
) -> AllPairs:
    """Compare all pairs of images.

    quality_N: float; its thirds are the groups, unless `groups` has their names, the best first, and each image's group, int64
    [N]. on_rows: receives the number of finished rows.

    Raises UserError, beginning with `describe`, if there is one identity only, or no identity has two images.
    """
    check_labels(labels_N, describe)
    order = np.argsort(-quality_N if groups is None else groups[1], kind="stable")
    rows = normalised(features_ND, describe).astype(np.float32)[order]
    labels = labels_N[order]
    names = GROUPS if groups is None else groups[0]
    group = np.arange(len(order)) * len(names) // len(order) if groups is None else groups[1][order]
    every, same = (np.zeros((len(names), 2 * _HALF + 1), np.int64) for _ in range(2))
    for part in _blocks(rows, on_rows):
        bottom, right = part.row + len(part.cosines_nm), part.column + part.cosines_nm.shape[1]
        alike = torch.from_numpy(labels[part.row : bottom, None] == labels[None, part.column : right])
        for each in np.unique(group[part.column : right]):  # the later image of a pair is the worse one
            low, high = np.searchsorted(group, [each, each + 1]).clip(part.column, right) - part.column
            cells = _cells(part.cosines_nm, part.upper, slice(low, high))
            every[each] += np.bincount(cells, minlength=every.shape[1])
            of_one = _taken(alike, part.upper, slice(low, high)).numpy()
            np.add.at(same[each], cells[of_one], 1)
    return AllPairs(same, every - same, rows, labels, order, names)


def check_labels(labels_N: np.ndarray, describe: str) -> None:
    """Raises UserError, beginning with `describe`, unless there are pairs of both kinds."""
    identities, counts = np.unique(labels_N, return_counts=True)
    if len(identities) < 2:
        raise UserError(f"{describe}: shows one identity only; comparing different people needs at least two")
    if counts.max() < 2:
        raise UserError(f"{describe}: has one image of each identity; comparing images of one person needs at least two")


def count_different(labels_N: np.ndarray) -> int:
    """The number of pairs of images of different people."""
    counts = np.unique(labels_N, return_counts=True)[1]
    return (len(labels_N) ** 2 - int((counts**2).sum())) // 2


def _blocks(rows: np.ndarray, on_rows: Callable[[int], object] = int):
    return product_blocks(rows, block=_BLOCK, on_rows=on_rows)


def _cells(cosines_nm: torch.Tensor, upper: bool, columns: slice = slice(None)) -> np.ndarray:
    """The score of each pair of a block as an index into `_SCORES`, int64."""
    kept = _taken(cosines_nm, upper, columns)
    return kept.add(1).mul_(_HALF).round_().clamp_(0, 2 * _HALF).to(torch.int64).numpy()


def _taken(values_nm: torch.Tensor, upper: bool, columns: slice) -> torch.Tensor:
    """The entries of a block's columns that are pairs: all of them, or those above the block's diagonal."""
    if not upper:
        return values_nm[:, columns].reshape(-1)
    above = torch.ones(values_nm.shape, dtype=torch.bool).triu_(1)
    return values_nm[:, columns][above[:, columns]]


def _clustered_interval(rate: float, pairs_I: np.ndarray, misses_I: np.ndarray) -> tuple[float, float]:
    """Wilson's interval of a rate over I identities, for the effective number of pairs."""
    identities, pairs = len(pairs_I), int(pairs_I.sum())
    deviation = misses_I - rate * pairs_I
    variance = float(deviation @ deviation) / pairs**2 * identities / max(1, identities - 1)
    effective = rate * (1 - rate) / variance if variance > 0 else identities
    return wilson_interval(rate, min(effective, pairs))
