"""Copies of the same photograph: identical pixels, or similar features and then similar pixels.

Candidates are pairs with similar features: those of an image and its mirror image together, which mirroring does not change.
Their thumbnails must be similar, directly or mirrored, and then their pixels once one image is warped onto the other (ECC:
Evangelidis and Psarakis, PAMI 2008), which separates a crop by another detector from a second photograph of the same moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from eval.protocols.products import Block, close_pairs, product_blocks
from recognition.data.pack.commands.audit.approximate import approximate_pairs
from recognition.data.pack.commands.audit.evidence import Evidence, grey
from recognition.data.parallel import chunks, in_order, progress_bar, shared_object
from utils.images import Image, decode_face

Int64Array = npt.NDArray[np.int64]
NEAR_PIXELS = 0.97  # correlation of warped pixels; a property of photographs, not of the encoder
CANDIDATES_PER_IMAGE = 10
LOWEST, HIGHEST = 0.5, 0.9  # of the automatic threshold for features
_ALIKE, _EQUAL = 0.9, 0.99  # correlation of thumbnails: of candidates; beyond doubt
_WARPED_SIDE = 56  # pixels
_MOST_STRETCH, _MOST_SCALE = 1.1, 1.4  # of a warp between two crops: of one direction against the other, of both
_SAMPLE = 1024  # images from which the threshold for features is derived
_BINS = 2000
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class Copies:
    """Pairs of copies: first, second int64 [P], numbers of images; score float32 [P], correlation, 1 for equal pixels.

    mirrored: bool [P].
    """

    first: Int64Array
    second: Int64Array
    score: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.bool_]


def candidate_threshold(evidence: Evidence, device: torch.device) -> float:
    """The cosine that each image exceeds with about ten others, on a sample; from 0.5 to 0.9."""
    count = len(evidence)
    sample = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))
    histogram = torch.zeros(_BINS, dtype=torch.float64)
    for part in product_blocks(evidence.features[sample], evidence.features, device):
        histogram += torch.histc(part.cosines_nm, _BINS, -1, 1).cpu().double()
    exceeding = histogram.flip(0).cumsum(0).flip(0).numpy()  # pairs in this bin or above
    allowed = len(sample) * (CANDIDATES_PER_IMAGE + 1)  # one is the image itself
    cosine = -1 + 2 * int((exceeding > allowed).sum()) / _BINS
    return float(np.clip(cosine, LOWEST, HIGHEST))


def find_copies(
    evidence: Evidence,
    other: Evidence | None,
    near_cosine: float,
    near_pixels: float,
    device: torch.device,
    workers: int,
    title: str,
    approximate: bool = False,
) -> Copies:
    """All pairs of copies within a set (first < second), or between it and `other`. approximate: nearly all, by faiss."""
    first, second = equal_pixels(evidence.hashes, None if other is None else other.hashes)
    there = evidence if other is None else other
    mirrored = (evidence.hashes[first, 0] != there.hashes[second, 0]) if len(first) else np.zeros(0, bool)
    columns = None if other is None else other.features
    with progress(title, len(evidence)) as advance:
        hide = HideRepeated(evidence.hashes, there.hashes)
        if approximate:
            i, j = approximate_pairs(evidence.features, columns, near_cosine, advance, hide.repeated)
        else:
            i, j, _ = close_pairs(evidence.features, columns, near_cosine, device, on_rows=advance, score=hide)
    order = np.lexsort((j, i))  # the same for both
    i, j = i[order], j[order]
    score, flipped = compare_thumbnails(evidence.thumbnails, there.thumbnails, i, j)
    known = set(zip(first.tolist(), second.tolist(), strict=True))
    unknown = [pair not in known for pair in zip(i.tolist(), j.tolist(), strict=True)]
    alike = (score >= _ALIKE) & np.array(unknown, bool)
    i, j, score, flipped = i[alike], j[alike], score[alike], flipped[alike]
    doubtful = np.flatnonzero(score < _EQUAL)
    pairs = [(int(i[pair]), int(j[pair]), bool(flipped[pair])) for pair in doubtful]
    parts = [pairs[start:stop] for start, stop in chunks(len(pairs), _PAIRS_AT_ONCE)]
    with in_order(warp_pairs, parts, workers, "comparing", len(pairs), "pairs", len, (evidence, there)) as results:
        score[doubtful] = np.array([correlation for part in results for correlation in part], np.float32)
    near = score >= near_pixels
    return Copies(
        np.concatenate([first, i[near]]),
        np.concatenate([second, j[near]]),
        np.concatenate([np.ones(len(first), np.float32), score[near]]),
        np.concatenate([mirrored, flipped[near]]),
    )


class HideRepeated:
    """Hides all images with equal pixels but the first: some sets contain thousands of "image not available".

    repeated: bool, which images of each set are hidden.
    """

    def __init__(self, *hashes: npt.NDArray[np.uint64]):
        self.repeated = [np.zeros(len(each), bool) for each in hashes]
        for repeated, each in zip(self.repeated, hashes, strict=True):
            repeated[equal_pixels(each, None)[1]] = True

    def __call__(self, block: Block) -> Block:
        """A block of cosines of rows with columns, -1 for images that are hidden."""
        rows, columns = block.cosines_nm.shape
        mine, theirs = self.repeated[0][block.row :][:rows], self.repeated[1][block.column :][:columns]
        block.cosines_nm[torch.from_numpy(np.flatnonzero(mine))] = -1
        block.cosines_nm[:, torch.from_numpy(np.flatnonzero(theirs))] = -1
        return block


@contextlib.contextmanager
def progress(title: str, images: int) -> Iterator[Callable[[int], object]]:
    """A progress bar: yields the function that receives how many more images are done."""
    with progress_bar("images") as bar:
        task = bar.add_task(title, total=images)
        yield lambda done: bar.advance(task, done)


def equal_pixels(hashes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64] | None) -> tuple[Int64Array, Int64Array]:
    """Pairs of images with the same pixels, perhaps mirrored; of a group within a set, each with the first.

    hashes, others: uint64 [N, 2] and [M, 2], of the pixels and of the mirrored pixels.
    """
    mine = hashes.min(axis=1)  # the same for an image and its mirror image
    if others is None:
        _, first, place = np.unique(mine, return_index=True, return_inverse=True)
        second = np.flatnonzero(first[place] != np.arange(len(mine)))
        return first[place[second]], second
    order = np.argsort(mine, kind="stable")
    theirs = others.min(axis=1)
    left, right = np.searchsorted(mine[order], theirs, "left"), np.searchsorted(mine[order], theirs, "right")
    second = np.repeat(np.arange(len(theirs)), right - left)
    within = np.arange(len(second)) - np.repeat(np.cumsum(right - left) - (right - left), right - left)
    return order[np.repeat(left, right - left) + within], second


def compare_thumbnails(
    mine: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8], i: Int64Array, j: Int64Array
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Correlation of the thumbnails of pairs, the larger of direct and mirrored: float32 [P]; and whether that is mirrored."""
    score, flipped = np.empty(len(i), np.float32), np.empty(len(i), bool)
    for start in range(0, len(i), 8192):
        part = slice(start, start + 8192)
        ours, other = mine[i[part]], theirs[j[part]]
        direct, mirrored = _correlation(ours, other), _correlation(ours, other[:, :, ::-1])
        score[part], flipped[part] = np.maximum(direct, mirrored), mirrored > direct
    return score, flipped


def _correlation(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    rows = [image.reshape(len(image), -1).astype(np.float32) for image in (a, b)]
    rows = [row - row.mean(axis=1, keepdims=True) for row in rows]
    norms = [np.maximum(np.linalg.norm(row, axis=1), 1e-6) for row in rows]
    return np.einsum("nd,nd->n", *rows) / (norms[0] * norms[1])


def warp_pairs(pairs: list[tuple[int, int, bool]]) -> list[float]:
    """Runs in a worker: `warped_correlation` of pairs of images (i, j, whether j is mirrored)."""
    mine, theirs = shared_object()
    return [warped_correlation(_small(mine, i), _small(theirs, j)[:, :: -1 if mirrored else 1]) for i, j, mirrored in pairs]


def warped_correlation(a: Image, b: Image) -> float:
    """The correlation of two grey images after the affine warp that makes it largest; 0 if no crop explains the warp."""
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4)
    start, everywhere = np.eye(2, 3, dtype=np.float32), np.ones_like(a)
    try:
        found, warp = cv2.findTransformECC(a, np.ascontiguousarray(b), start, cv2.MOTION_AFFINE, stop, everywhere, 5)
    except cv2.error:  # it does not converge: they differ
        return 0.0
    larger, smaller = np.linalg.svd(np.asarray(warp)[:, :2])[1]
    is_crop = larger < _MOST_STRETCH * smaller and larger < _MOST_SCALE and smaller > 1 / _MOST_SCALE
    return float(found) if is_crop else 0.0


def _small(evidence: Evidence, image: int) -> Image:
    return grey(decode_face(evidence.faces.read(image)[0], evidence.faces.where(image)), _WARPED_SIDE)
