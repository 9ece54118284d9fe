"""Error versus discard: the FNMR as the images of the worst quality are discarded (NIST FRVT Quality, ISO/IEC 29794-1).

The threshold is fixed on all pairs. A pair's quality is that of its worse image: a pair is gone when either image is. Images of
equal quality are discarded together. If a score predicts the false non-matches, its curve falls quickly.

Shapes: N images, P pairs of one person, K points of a curve.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

_RANDOM_ORDERS = 50
_SEED = 20240501


@dataclass(frozen=True)
class DiscardCurve:
    """A step function: from each share of discarded images on, the FNMR of the pairs that are left."""

    discarded: np.ndarray  # float64 [K], shares of the images, ascending from 0
    fnmr: np.ndarray  # float64 [K]

    def at(self, share: float) -> float:
        """The FNMR when at most this share of the images is discarded."""
        return float(self.fnmr[np.searchsorted(self.discarded, share + 1e-12, side="right") - 1])

    def partial_area(self, limit: float) -> float:
        """The area under the curve from 0 to `limit` (pAUC): `limit` times the FNMR for a quality that predicts nothing."""
        return float(self.fnmr @ np.diff(np.append(self.discarded, 1.0).clip(max=limit)))


def discard_curve(pairs_P2: np.ndarray, missed_P: np.ndarray, quality_N: np.ndarray) -> DiscardCurve:
    """The curve of one quality score, higher is better. pairs_P2: int64, image numbers; missed_P: bool, false non-matches.

    It ends before the point at which no pair is left.
    """
    values, images = np.unique(quality_N, return_counts=True)
    of_pair = quality_N[pairs_P2].min(axis=1)
    left, missed = (len(chosen) - np.searchsorted(np.sort(chosen), values) for chosen in (of_pair, of_pair[missed_P]))
    discarded = (np.cumsum(images) - images) / len(quality_N)
    some = left > 0
    return DiscardCurve(discarded[some], missed[some] / left[some])


def oracle_quality(pairs_P2: np.ndarray, missed_P: np.ndarray, images: int) -> np.ndarray:
    """A quality score that has seen the errors, int64 [N]: the image with the most false non-matches left is the worst.

    Of equals, the one with the fewest other pairs. Images that no false non-match needs discarded are equally good. With disjoint
    pairs no order is better; otherwise it is a greedy choice.
    """
    partners: dict[int, list[int]] = {}
    for first, second in pairs_P2[missed_P].tolist():
        partners.setdefault(first, []).append(second)
        partners.setdefault(second, []).append(first)
    matched = np.bincount(pairs_P2[~missed_P].reshape(-1), minlength=images).tolist()
    counts = {image: len(others) for image, others in partners.items()}
    queue = [(-count, matched[image], image) for image, count in counts.items()]
    heapq.heapify(queue)
    quality, rank = np.full(images, images), 0
    while queue:
        count, _, image = heapq.heappop(queue)
        if quality[image] < images or -count != counts[image]:
            continue  # gone, or counted again since
        quality[image], rank = rank, rank + 1
        for other in partners[image]:
            counts[other] -= 1
            if quality[other] == images and counts[other]:
                heapq.heappush(queue, (-counts[other], matched[other], other))
    return quality


def random_curve(pairs_P2: np.ndarray, missed_P: np.ndarray, images: int) -> DiscardCurve:
    """The mean over random orders, which is level at the FNMR of all pairs but for chance."""
    generator = np.random.default_rng(_SEED)
    total = np.zeros(images)
    for _ in range(_RANDOM_ORDERS):
        curve = discard_curve(pairs_P2, missed_P, generator.permutation(images))
        total += np.append(curve.fnmr, np.full(images - len(curve.fnmr), curve.fnmr[-1]))
    return DiscardCurve(np.arange(images) / images, total / _RANDOM_ORDERS)
