"""Thresholds that a data set's own scores suggest."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
_SIGMA_PER_MAD = 1.4826  # of a normal distribution


def outlier_limit(scores: Scores, share: float) -> float:
    """The score that this share of the scores would exceed if they were normally distributed.

    Median and median absolute deviation describe the distribution, so true findings hardly move the limit. Scores that are not
    finite are ignored; with fewer than three others, the limit is infinite.
    """
    scores = scores[np.isfinite(scores)]
    if len(scores) < 3:
        return np.inf
    median = float(np.median(scores))
    sigma = _SIGMA_PER_MAD * float(np.median(np.abs(scores - median)))
    return median + NormalDist().inv_cdf(1 - min(max(share, 1e-12), 0.5)) * sigma


def low_quantile(scores: Scores, share: float) -> float:
    """The score that all but `share` of the scores exceed; -inf without scores. Scores that are not finite are ignored."""
    scores = scores[np.isfinite(scores)]
    return float(np.quantile(scores, share)) if len(scores) else -np.inf
