"""Images unlike their identity, identities that are one person, and identities that are two.

Shapes: N images, C identities, D embedding. All features have length 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from eval.protocols.products import BLOCK, Block, close_pairs, nearest
from recognition.data.pack.commands.audit.evidence import Evidence

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
_FEWEST_HALVES = 4  # images of an identity that is divided into halves
_MOST_AT_ONCE = 2000  # images of an identity that two-means considers
_ROUNDS = 20


@dataclass(frozen=True)
class Identities:
    """An audited set, its images grouped by label.

    weights: float32 [N], 0 for images that repeat one of the same identity and do not count, otherwise 1.
    """

    evidence: Evidence
    labels: Int64Array
    weights: FloatArray

    @cached_property
    def order(self) -> Int64Array:
        """The images, sorted by label; those that do not count are left out."""
        order = np.argsort(self.labels, kind="stable")
        return order[self.weights[order] > 0]

    @cached_property
    def starts(self) -> Int64Array:
        """int64 [C + 1]: the images of label c are order[starts[c] : starts[c + 1]]."""
        return np.searchsorted(self.labels[self.order], np.arange(int(self.labels.max()) + 2))

    @property
    def counts(self) -> Int64Array:
        """int64 [C], the number of images that count."""
        return np.diff(self.starts)

    def images(self, label: int) -> Int64Array:
        """The images of an identity that count."""
        return self.order[self.starts[label] : self.starts[label + 1]]

    def features(self, images: Int64Array) -> FloatArray:
        """float32 [n, D]."""
        return self.evidence.features[images].astype(np.float32)

    @cached_property
    def sums(self) -> FloatArray:
        """The sum of the features of each identity, float32 [C, D]."""
        sums = np.zeros((len(self.counts), self.evidence.features.shape[1]), np.float32)
        for start in range(0, len(self.labels), BLOCK):
            rows = self.evidence.features[start : start + BLOCK].astype(np.float32) * self.weights[start : start + BLOCK, None]
            np.add.at(sums, self.labels[start : start + BLOCK], rows)
        return sums

    @cached_property
    def centres(self) -> FloatArray:
        """The sums, with length 1; an identity without images has a centre of zeros. float32 [C, D]."""
        return unit(self.sums)


def unit(rows: npt.NDArray[np.floating]) -> FloatArray:
    """Rows of length 1, float32; a row of zeros stays."""
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ images


def own_cosines(people: Identities) -> FloatArray:
    """The cosine of each image with the centre of the other images of its identity, float32 [N]; NaN if there are none."""
    own = np.full(len(people.labels), np.nan, np.float32)
    for start in range(0, len(own), BLOCK):
        part = slice(start, start + BLOCK)
        labels, weights = people.labels[part], people.weights[part, None]
        rows = people.evidence.features[part].astype(np.float32)
        others = people.sums[labels] - weights * rows
        left = people.counts[labels] - people.weights[part] > 0
        own[part][left] = np.einsum("nd,nd->n", rows, unit(others))[left]
    return own


def nearest_identities(
    people: Identities, device: torch.device, on_images: Callable[[int], object]
) -> tuple[Int64Array, FloatArray]:
    """The most similar other identity of each image, int64 [N], and the cosine with its centre, float32 [N]."""
    return nearest(people.evidence.features, people.centres, people.labels, device, on_rows=on_images)


# ------------------------------------------------------------------------------------------------ one person twice


def halves(people: Identities, seed: int = 0) -> FloatArray:
    """How similar the centres of two random halves of an identity are: float32 [identities of four images or more]."""
    rng = np.random.default_rng(seed)
    cosines = []
    for label in np.flatnonzero(people.counts >= _FEWEST_HALVES)[: 10 * _MOST_AT_ONCE].tolist():
        rows = people.features(rng.permutation(people.images(label))[:_MOST_AT_ONCE])
        half = len(rows) // 2
        cosines.append(unit(rows[:half].sum(axis=0)) @ unit(rows[half:].sum(axis=0)))
    return np.array(cosines, np.float32)


class CentreScores:
    """Scores of pairs of centres: by how many standard deviations they are more similar than each is to the other centres.

    The mean of both (S-norm in speaker recognition): identities that resemble everybody need a larger cosine.
    """

    def __init__(self, people: Identities, device: torch.device):
        self.people, self.device = people, device
        centres = people.centres
        others = max(int((people.counts > 0).sum()) - 1, 1)
        mean = (centres @ centres.sum(axis=0) - 1) / others
        square = (np.einsum("cd,cd->c", centres @ (centres.T @ centres), centres) - 1) / others
        deviation = np.sqrt(np.maximum(square - np.square(mean), 1e-6))
        self._mean, self._deviation = (torch.from_numpy(column).float().to(device) for column in (mean, deviation))

    def __call__(self, block: Block) -> Block:
        """A block of cosines of centres, as scores."""
        rows, columns = block.cosines_nm.shape
        mean, deviation = self._mean, self._deviation
        i, j = slice(block.row, block.row + rows), slice(block.column, block.column + columns)
        by_row = (block.cosines_nm - mean[i, None]) / deviation[i, None]
        return replace(block, cosines_nm=(by_row + (block.cosines_nm - mean[j]) / deviation[j]) / 2)

    def nearest(self) -> FloatArray:
        """The highest score of each identity with another one, float32 [C]."""
        centres = self.people.centres
        return nearest(centres, centres, np.arange(len(centres)), self.device, score=self)[1]

    def pairs(self, limit: float, cosine: float) -> list[tuple[int, int, float]]:
        """Pairs of identities with at least this score and cosine: (fewer images, more images, score), the highest first."""
        counts, centres = self.people.counts, self.people.centres
        i, j, score = close_pairs(centres, None, limit, self.device, score=self)
        order = np.argsort(-score, kind="stable")
        order = order[np.einsum("nd,nd->n", centres[i[order]], centres[j[order]]) >= cosine]
        pairs = zip(i[order].tolist(), j[order].tolist(), score[order].tolist(), strict=True)
        return [(a, b, value) if counts[a] <= counts[b] else (b, a, value) for a, b, value in pairs]


# ------------------------------------------------------------------------------------------------ two people as one


@dataclass(frozen=True)
class Division:
    """An identity divided into two groups of images. across: mean cosine of images of different groups."""

    label: int
    first: Int64Array
    second: Int64Array
    across: float

    def score(self, usual: float) -> float:
        """How much less similar the groups are than images of one person usually are, in units of chance.

        usual: the median over all identities of the mean cosine of their images. The mean over the smaller group's images varies
        with one over the root of their number.
        """
        return float((usual - self.across) * np.sqrt(min(len(self.first), len(self.second))))


def divisions(people: Identities) -> Iterator[Division]:
    """Divide each identity of four images or more by spherical two-means. Groups of one image are left out."""
    for label in np.flatnonzero(people.counts >= _FEWEST_HALVES).tolist():
        images = people.images(label)[:_MOST_AT_ONCE]
        rows = people.features(images)
        second = two_means(rows)
        if min(second.sum(), (~second).sum()) >= 2:
            yield Division(label, images[~second], images[second], float((rows[~second] @ rows[second].T).mean()))


def two_means(rows: FloatArray) -> npt.NDArray[np.bool_]:
    """Spherical two-means of features [n, D], from the two least similar: bool [n], which belong to the second group."""
    a, b = (rows[place] for place in np.unravel_index(np.argmin(rows @ rows.T), (len(rows), len(rows))))
    second = np.zeros(len(rows), bool)
    for _ in range(_ROUNDS):
        before, second = second, rows @ a < rows @ b
        if (second == before).all() or second.all() or not second.any():
            break
        a, b = unit(rows[~second].sum(axis=0)), unit(rows[second].sum(axis=0))
    return second


def mean_cosines(people: Identities) -> FloatArray:
    """The mean cosine of the images of each identity with each other, float32 [C]; NaN for fewer than two images."""
    counts = people.counts.astype(np.float32)
    pairs = np.where(counts > 1, counts * (counts - 1), np.nan)
    return (np.square(people.sums).sum(axis=1) - counts) / pairs
