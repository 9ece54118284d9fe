"""Operating points: the threshold for a false match rate (FMR), and the false non-match rate (FNMR) that it costs.

A pair is accepted if its score is at least the threshold. The threshold for a target is the ROC corner with the fewest false
non-matches whose FMR does not exceed the target. A rate is measurable if at least ten false matches are expected at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.roc import Roc
from utils.errors import UserError

FMRS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
LEAST_FALSE_MATCHES = 10
_Z = 1.959963984540054  # of a two-sided 95 % interval


def rate_label(rate: float) -> str:
    """For example 1e-4 or 1.5e-3."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its error rates, 0..1."""

    target: float  # the FMR that was asked for
    threshold: float  # a score; +inf if only rejecting all pairs meets the target
    fmr: float  # the FMR at the threshold, at most the target
    fnmr: float
    interval: tuple[float, float]  # 95 % confidence interval of the FNMR at this threshold


def is_measurable(fmr: float, different_pairs: int) -> bool:
    """Whether at least ten false matches are expected among the different pairs."""
    return fmr * different_pairs >= LEAST_FALSE_MATCHES * (1 - 1e-9)


def require_measurable(fmr: float, different_pairs: int, describe: str) -> None:
    """Raise UserError, beginning with `describe`, if an FMR is not a rate or needs more pairs."""
    if not 0 < fmr < 1:
        raise UserError(f"--fmr {fmr:g}: must be a rate above 0 and below 1, such as 1e-4")
    if not is_measurable(fmr, different_pairs):
        lowest = LEAST_FALSE_MATCHES / max(1, different_pairs)
        digit = 10.0 ** (math.floor(math.log10(lowest)) - 1)
        enough = rate_label(math.ceil(lowest / digit - 1e-9) / round(1 / digit))  # two digits, rounded up
        raise UserError(
            f"{describe}: {different_pairs:,} different pairs cannot measure FMR {rate_label(fmr)}, which needs "
            f"{math.ceil(round(LEAST_FALSE_MATCHES / fmr, 3)):,} (ten expected false matches); "
            + (f"use --fmr {enough} or higher, or more pairs" if lowest < 1 else "use more pairs")
        )


def operating_point(roc: Roc, fmr: float, to_score: Callable[[float], float] = float) -> OperatingPoint:
    """The operating point of a curve for a target FMR, with Wilson's interval. to_score: converts the curve's thresholds."""
    allowed = roc.tar[: np.searchsorted(roc.far, fmr, side="right")]
    corner = int(allowed.argmax())  # the first of equals: no needless false matches
    fnmr = 1 - float(roc.tar[corner])
    interval = wilson_interval(fnmr, roc.same_pairs)
    return OperatingPoint(fmr, to_score(roc.thresholds[corner]), float(roc.far[corner]), fnmr, interval)


def wilson_interval(rate: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a rate, at 95 %, for a number of independent trials."""
    z2 = _Z**2 / trials
    centre, half = rate + z2 / 2, _Z * math.sqrt((rate * (1 - rate) + z2 / 4) / trials)
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


def operating_metrics(points: Iterable[tuple[float, OperatingPoint | None]]) -> dict[str, Any]:
    """Figures for result files: `threshold@fmr=1e-3`, `fnmr@fmr=1e-3` and its interval, `… low` and `… high`.

    points: target FMR -> operating point, or None if it is not measurable; its figures are None, as is an infinite threshold.
    """
    figures: dict[str, Any] = {}
    for fmr, point in points:
        label = rate_label(fmr)
        names = (f"threshold@fmr={label}", f"fnmr@fmr={label}", f"fnmr@fmr={label} low", f"fnmr@fmr={label} high")
        if point is None:
            figures |= dict.fromkeys(names)
        else:
            threshold = point.threshold if math.isfinite(point.threshold) else None
            figures |= dict(zip(names, (threshold, point.fnmr, *point.interval), strict=True))
    return figures


def points_of(roc: Roc, to_score: Callable[[float], float] = float) -> list[tuple[float, OperatingPoint | None]]:
    """Each FMR of `FMRS`, with its operating point, or None if it is not measurable."""
    return [(fmr, operating_point(roc, fmr, to_score) if is_measurable(fmr, roc.different_pairs) else None) for fmr in FMRS]
