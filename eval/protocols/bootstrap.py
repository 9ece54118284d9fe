"""Confidence intervals by resampling pairs or probes with replacement (Efron's bootstrap, percentile intervals).

Pairs and probes are resampled as if independent. Pairs that share a photograph or a template are not, nor are probes of the same
person, so the intervals are somewhat too narrow; they only indicate the size of chance.

Resamples are not drawn pair by pair, but from the distributions of their counts and order statistics. So the cost does not depend
on the number of pairs: IJB-B's eight million are as fast as LFW's six thousand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eval.protocols.identification import Search
from eval.roc import Roc
from eval.verification import FOLDS, THRESHOLDS, TenFold

LEVEL = 0.95
_SEED = 20240501

Intervals = dict[str, tuple[float, float]]
"""Metric -> (low, high), in the metric's unit."""


def as_metrics(intervals: Intervals) -> dict[str, float]:
    """The intervals as further metrics: `METRIC low` and `METRIC high`."""
    low = {f"{metric} low": low for metric, (low, _) in intervals.items()}
    return low | {f"{metric} high": high for metric, (_, high) in intervals.items()}


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tar_interval(roc: Roc, far: float, resamples: int, seed: int = _SEED) -> tuple[float, float]:
    """The interval of TAR at the lowest threshold with a FAR of at most `far` (if that is less than one pair, at the score of
    the highest different pair).

    Among n different pairs drawn with replacement, the rank of the k-th highest in the original sample follows a
    Beta(k, n - k + 1) distribution; the number of same pairs above it is binomial.
    """
    generator = np.random.default_rng(seed)
    n = roc.different_pairs
    k = min(n, math.floor(far * n) + 1)
    reached = np.minimum(generator.beta(k, n - k + 1, resamples), 1 - 1e-12)
    # TAR on the curve at the FAR just below the one reached.
    place = np.searchsorted(roc.far, np.floor(reached * n) / n + 0.5 / n) - 1
    tar = roc.tar[place.clip(0)]
    return _interval(generator.binomial(roc.same_pairs, tar) / roc.same_pairs)


def accuracy_interval(result: TenFold, resamples: int, seed: int = _SEED) -> tuple[float, float]:
    """The interval of the ten-fold accuracy: pairs are resampled within their fold, thresholds chosen again each time."""
    generator = np.random.default_rng(seed)
    pairs, bins = len(result.issame), len(THRESHOLDS) + 1
    sizes = np.full(FOLDS, pairs // FOLDS)
    sizes[: pairs % FOLDS] += 1
    cell = 2 * np.searchsorted(THRESHOLDS, result.distances, side="right") + result.issame
    accuracies = np.empty(resamples)
    folds = np.split(cell, np.cumsum(sizes)[:-1])
    seen = [np.unique(fold, return_counts=True) for fold in folds]
    for index in range(resamples):
        counts = np.zeros((FOLDS, 2 * bins), np.int64)
        for fold, (cells, times) in enumerate(seen):
            counts[fold, cells] = generator.multinomial(sizes[fold], times / sizes[fold])
        by_kind = counts.reshape(FOLDS, bins, 2)
        accepted = by_kind.cumsum(axis=1)[:, :-1]
        correct = accepted[..., 1] + by_kind[..., 0].sum(axis=1, keepdims=True) - accepted[..., 0]
        best = (correct.sum(axis=0) - correct).argmax(axis=1)
        accuracies[index] = (correct[np.arange(FOLDS), best] / sizes).mean()
    return _interval(accuracies)


def rank_interval(searches: Sequence[Search], rank: int, resamples: int, seed: int = _SEED) -> tuple[float, float]:
    """The interval of the rank rate (averaged over several galleries): of P mated probes drawn with replacement, a binomial
    number has a mate among the first `rank`. The gallery is not resampled."""
    generator = np.random.default_rng(seed)
    rates = np.zeros(resamples)
    for found in searches:
        probes = found.counted
        rates += generator.binomial(probes, found.rank_rate(rank), resamples) / probes / len(searches)
    return _interval(rates)
