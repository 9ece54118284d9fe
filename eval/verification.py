"""Pairwise verification: reading insightface's .bin sets, and the ten-fold protocol of LFW on their embeddings.

Protocol (insightface's `verification.py`, after LFW's "image-restricted" ten folds): P pairs; rows 2i and 2i+1 form a pair;
embeddings are normalised to length 1; a pair is accepted as the same person if its squared Euclidean distance is below the
threshold. The ten folds are contiguous, not shuffled. Each is judged at the threshold of 0, 0.01 … 3.99 that is best on the
other nine; of equally good ones, the lowest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from eval.operating import operating_metrics, points_of
from eval.roc import Roc, roc_curve
from eval.safe_pickle import PackedArray, load_plain
from utils.errors import UserError

FOLDS = 10
THRESHOLDS = np.arange(0, 4, 0.01)
_PAIRS_AT_ONCE = 256  # a float64 block stays in the cache

# -------------------------------------------------------------------------------------------------- the file


def load_bin(path: str | Path) -> tuple[list[bytes], np.ndarray]:
    """Read a verification set: 2P encoded images, two per pair, and bool [P], whether a pair shows the same person.

    The file is a pickle of (images, booleans) written by Python 2 or 3; an image is bytes or a uint8 array. Nothing in it is
    imported or called. Raises UserError, naming the file and what is wrong, for anything else.
    """
    content = load_plain(path)
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not isinstance(content[0], (tuple, list)):
        raise UserError(f"{path}: not a verification set; expected a list of images and a list of booleans")
    images = [_image(item, f"{path}: image {index}") for index, item in enumerate(content[0])]
    issame = _booleans(content[1], str(path))
    if len(images) % 2:
        raise UserError(f"{path}: an odd number of images, {len(images)}, for {len(issame)} pairs; expected two per pair")
    if len(images) != 2 * len(issame):
        raise UserError(f"{path}: {len(images)} images for {len(issame)} pairs; expected {2 * len(issame)}")
    if not images:
        raise UserError(f"{path}: contains no pairs")
    return images, issame


def _image(item: object, where: str) -> bytes:
    if isinstance(item, PackedArray) and item.code == "u1" and max(item.shape, default=1) == len(item.data):
        return item.data
    if isinstance(item, bytes):
        return item
    shape = f" of {item.code or 'nothing'}, shape {item.shape}" if isinstance(item, PackedArray) else ""
    raise UserError(f"{where} is {type(item).__name__}{shape}; expected an encoded image as bytes or a flat uint8 array")


def _booleans(items: object, where: str) -> np.ndarray:
    if isinstance(items, PackedArray) and items.code and max(items.shape, default=0) == prod(items.shape):
        items = np.frombuffer(items.data, items.code).tolist()
    if not isinstance(items, (tuple, list)):
        raise UserError(f"{where}: its second part is {type(items).__name__}, expected a list of booleans")
    for index, item in enumerate(items):
        if not isinstance(item, (int, float)) or item not in (0, 1):
            shown = item if isinstance(item, (int, float)) else type(item).__name__
            raise UserError(f"{where}: pair {index} is marked {shown}, expected true or false (1 or 0)")
    return np.array(items, dtype=bool)


# -------------------------------------------------------------------------------------------------- the metric


@dataclass(frozen=True)
class TenFold:
    """The result of the ten-fold protocol. Rates are 0..1."""

    accuracy: float  # mean over the folds
    std: float  # population standard deviation over the folds
    fold_accuracies: np.ndarray  # float64 [10]
    thresholds: np.ndarray  # float64 [10], the squared distance at which each fold was judged
    distances: np.ndarray  # float64 [P], squared distance of each pair
    issame: np.ndarray  # bool [P]

    @cached_property
    def roc(self) -> Roc:
        """The ROC over all pairs. Raises UserError if all pairs are of one kind."""
        return roc_curve(-self.distances, self.issame)

    @property
    def auc(self) -> float:
        return self.roc.auc

    @property
    def similarity_threshold(self) -> float:
        """The cosine above which two faces count as the same person, from the folds' median threshold d = 2 - 2 cos."""
        return 1 - float(np.median(self.thresholds)) / 2

    def metrics(self) -> dict[str, Any]:
        """The figures for tables and result files. Thresholds are cosines; what the pairs cannot measure is None."""
        accepted = self.distances < np.median(self.thresholds)
        return {
            "accuracy": self.accuracy,
            "std": self.std,
            "tar@far=1e-3": self.roc.tar_at_far(1e-3),
            "auc": self.auc,
            "similarity_threshold": self.similarity_threshold,
            "fmr@similarity_threshold": float(accepted[~self.issame].mean()),
            "fnmr@similarity_threshold": 1 - float(accepted[self.issame].mean()),
            "pairs": len(self.issame),
            "same_pairs": self.roc.same_pairs,
            "different_pairs": self.roc.different_pairs,
            **operating_metrics(points_of(self.roc, cosine_of)),
        }


def ten_fold(embeddings: np.ndarray, issame: np.ndarray) -> TenFold:
    """Judge embeddings [2P, D] (raw, any float type; rows 2i and 2i+1 form a pair) by the ten-fold protocol.

    `issame` is bool [P]. An embedding of length 0 stays 0. Raises UserError for fewer than ten pairs, mismatched shapes and
    embeddings that are not finite.
    """
    embeddings, issame = np.asarray(embeddings), np.asarray(issame)
    _check(embeddings, issame)
    issame = issame.astype(bool)
    distances = pair_distances(embeddings)
    correct, fold_sizes = _correct_by_fold(distances, issame)
    training_correct = correct.sum(axis=0) - correct
    best = training_correct.argmax(axis=1)  # the first of equals
    fold_accuracies = correct[np.arange(FOLDS), best] / fold_sizes
    return TenFold(
        accuracy=float(fold_accuracies.mean()),
        std=float(fold_accuracies.std()),
        fold_accuracies=fold_accuracies,
        thresholds=THRESHOLDS[best],
        distances=distances,
        issame=issame,
    )


def cosine_of(negative_distance: float) -> float:
    """The cosine of two unit vectors from a score of `TenFold.roc`, their negative squared distance: d = 2 - 2 cos."""
    return 1 + float(negative_distance) / 2


def judge_set(name: str, embeddings: np.ndarray, issame: np.ndarray) -> TenFold:
    """`ten_fold` of a named set, with its ROC computed. UserErrors begin with the name."""
    try:
        outcome = ten_fold(embeddings, issame)
        _ = outcome.roc
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return outcome


def pair_distances(embeddings: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance between rows 2i and 2i+1 of [2P, D], each normalised to length 1: float64 [P] in 0..4.

    Raises UserError if an embedding is not finite.
    """
    distances = np.empty(len(embeddings) // 2)
    for start in range(0, len(distances), _PAIRS_AT_ONCE):
        rows = embeddings[2 * start : 2 * (start + _PAIRS_AT_ONCE)].astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        if not np.isfinite(lengths).all():
            bad = 2 * start + int(np.argmin(np.isfinite(lengths)))
            raise UserError(f"embedding {bad} (pair {bad // 2}) is not finite; check the checkpoint and the images")
        rows /= np.where(lengths == 0, 1.0, lengths)[:, None]
        difference = rows[0::2] - rows[1::2]
        distances[start : start + len(difference)] = np.square(difference, out=difference).sum(axis=1)
    return distances


def _check(embeddings: np.ndarray, issame: np.ndarray) -> None:
    if embeddings.ndim != 2 or issame.ndim != 1 or len(embeddings) != 2 * len(issame):
        raise UserError(f"embeddings of shape {embeddings.shape}, issame of shape {issame.shape}; expected [2P, D] and [P]")
    if not np.issubdtype(embeddings.dtype, np.floating):
        raise UserError(f"embeddings are {embeddings.dtype}; expected floating-point numbers")
    if issame.dtype != bool and not np.isin(issame, (0, 1)).all():
        raise UserError("issame contains values that are neither true nor false")
    if len(issame) < FOLDS:
        raise UserError(f"{len(issame)} pairs; the ten-fold protocol needs at least {FOLDS}")


def _correct_by_fold(distances: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correctly judged pairs per fold and threshold, int64 [10, T], and pairs per fold, int64 [10].

    Counted by histogram: a pair is accepted from the first threshold above its distance on. Searching in the thresholds
    themselves keeps the strict `<` exact.
    """
    pairs, bins = len(distances), len(THRESHOLDS) + 1
    fold_sizes = np.full(FOLDS, pairs // FOLDS)
    fold_sizes[: pairs % FOLDS] += 1
    first_above = np.searchsorted(THRESHOLDS, distances, side="right")
    cell = np.repeat(np.arange(FOLDS), fold_sizes) * bins + first_above
    accepted = [
        np.bincount(cell[issame == kind], minlength=FOLDS * bins).reshape(FOLDS, bins)[:, :-1].cumsum(axis=1)
        for kind in (True, False)
    ]
    different = fold_sizes - np.add.reduceat(issame.astype(np.int64), np.cumsum(fold_sizes) - fold_sizes)
    return accepted[0] + different[:, None] - accepted[1], fold_sizes
