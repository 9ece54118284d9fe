"""The receiver operating characteristic (ROC) of scored pairs, exact with ties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.errors import UserError


@dataclass(frozen=True)
class Roc:
    """The corners of a ROC curve, by descending threshold: K points from (0, 0) to (1, 1).

    Points inside a straight run are left out, as by scikit-learn's `roc_curve`. This affects the figures: `tar_at_far` chooses
    the nearest corner, as IJB's reference scripts do.
    """

    far: np.ndarray  # float64 [K], false accept rate: share of different pairs at or above the threshold
    tar: np.ndarray  # float64 [K], true accept rate: share of same pairs at or above the threshold
    thresholds: np.ndarray  # float64 [K], the score of each point; +inf for the first
    same_pairs: int
    different_pairs: int
    auc: float  # area under the curve; a tie between a same and a different pair counts half

    def tar_at_far(self, far: float) -> float:
        """TAR (0..1) at the corner whose FAR is nearest to `far`; of equally near ones, the largest TAR."""
        # TAR never falls along the curve, so the last of the nearest has the largest.
        distance = np.abs(self.far[::-1] - far)
        return float(self.tar[len(self.tar) - 1 - int(np.argmin(distance))])


def roc_curve(scores: np.ndarray, issame: np.ndarray) -> Roc:
    """The ROC of P pairs: `scores` [P], any float type, higher is more similar; `issame` bool [P].

    Raises UserError if a score is not finite, or if there are no same or no different pairs.
    """
    scores, issame = np.asarray(scores), np.asarray(issame, dtype=bool)
    if scores.ndim != 1 or scores.shape != issame.shape:
        raise UserError(f"scores of shape {scores.shape} for pairs of shape {issame.shape}; expected one score per pair")
    if not np.isfinite(scores).all():
        raise UserError(f"the score of pair {int(np.argmin(np.isfinite(scores)))} is not finite; check the features")
    same = int(issame.sum())
    different = len(issame) - same
    if same == 0 or different == 0:
        raise UserError(f"{same} same and {different} different pairs; a ROC needs both kinds")
    ordered = np.sort(scores)[::-1]
    last_of_tie = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    # The place of each same pair among the distinct scores. Sorting values and searching is quicker than an argsort.
    place = len(last_of_tie) - 1 - np.searchsorted(ordered[last_of_tie][::-1], np.sort(scores[issame]))
    true_accepts = np.cumsum(np.bincount(place, minlength=len(last_of_tie)))  # int64: counts are exact
    false_accepts = last_of_tie + 1 - true_accepts
    return _curve(ordered[last_of_tie], true_accepts, false_accepts, _corners(true_accepts, false_accepts))


def roc_of_counts(scores: np.ndarray, same: np.ndarray, different: np.ndarray) -> Roc:
    """The ROC of counted pairs: int64 [K] same and different pairs with each of the ascending `scores` [K].

    Every score that occurs is a point of the curve. There must be pairs of both kinds.
    """
    seen = np.flatnonzero(same + different)[::-1]
    return _curve(scores[seen], np.cumsum(same[seen]), np.cumsum(different[seen]), np.ones(len(seen), bool))


def _curve(scores: np.ndarray, true_accepts: np.ndarray, false_accepts: np.ndarray, kept: np.ndarray) -> Roc:
    """The curve of accepted pairs at each of the descending scores, with the points of the mask `kept`."""
    same, different = int(true_accepts[-1]), int(false_accepts[-1])
    return Roc(
        far=np.append(0.0, false_accepts[kept] / different),
        tar=np.append(0.0, true_accepts[kept] / same),
        thresholds=np.append(np.inf, scores[kept].astype(np.float64)),
        same_pairs=same,
        different_pairs=different,
        auc=_area(true_accepts, false_accepts) / (2 * same * different),
    )


def _corners(true_accepts: np.ndarray, false_accepts: np.ndarray) -> np.ndarray:
    """Mask of the points at which the curve turns, the first and the last."""
    if len(true_accepts) < 3:
        return np.ones(len(true_accepts), dtype=bool)
    turns = (np.diff(true_accepts, 2) != 0) | (np.diff(false_accepts, 2) != 0)
    return np.concatenate(([True], turns, [True]))


def _area(true_accepts: np.ndarray, false_accepts: np.ndarray) -> int:
    """Twice the area under the curve, in counts, by trapezoids from (0, 0): an integer, so exact."""
    widths = np.diff(false_accepts, prepend=0)
    heights = true_accepts + np.append(0, true_accepts[:-1])
    return int(np.dot(widths, heights))
