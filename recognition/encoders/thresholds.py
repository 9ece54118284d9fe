"""Decision thresholds of an encoder and their error rates: measured by a run's verification, kept in exported files.

The score is the cosine of f(x) + f(mirrored x); two faces count as one person if it is at least the threshold. The squared
Euclidean distance of the normalised sums is d = 2 - 2 cos.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from eval.operating import FMRS, rate_label
from eval.present.tables import read_results, write_results
from utils.errors import UserError

EMA_SUFFIX = "_ema"  # ends the names of the sets in a run's results that its EMA was verified on
BALANCED, DEPLOYED = "balanced", "deployed"
_FILE, _ENCODER = "threshold.json", "encoder"


@dataclass(frozen=True)
class Threshold:
    """name: "deployed" (chosen by `eval threshold --deploy`), "balanced" (the best accuracy) or such as "fmr=1e-3".

    cosine: the threshold. fmr, fnmr: its error rates, of a named FMR the target; None if unknown. sets: where they were measured.
    """

    name: str
    cosine: float
    fmr: float | None
    fnmr: float | None
    sets: str

    def __post_init__(self) -> None:
        if not (-1 <= self.cosine <= 1 and all(rate is None or 0 <= rate <= 1 for rate in (self.fmr, self.fnmr))):
            raise ValueError(f"threshold {self.name!r}: not a cosine and two rates: {self.cosine}, {self.fmr}, {self.fnmr}")

    @property
    def rates(self) -> str:
        """For people, such as "FMR 0.1 %, FNMR 12.34 %"; "" if unknown."""
        if self.fmr is None or self.fnmr is None:
            return ""
        return f"FMR {100 * self.fmr:.4g} %, FNMR {100 * self.fnmr:.2f} %"


def thresholds_of_run(path: Path, encoder: nn.Module | None = None, weights: str = "trained") -> tuple[Threshold, ...]:
    """The thresholds of a run, the default first, from its results.json and the file of `deploy`; () without either.

    path: the run's folder or one of its checkpoints. encoder: with its weights. weights: "ema" if these are the average.
    Raises UserError if a file is damaged, or a threshold was deployed for other weights.
    """
    for run in (path, *path.parents[:2]):  # a checkpoint is RUN/checkpoints/step-…
        found = [*_deployed(run / _FILE, encoder), *_measured(run / "results.json", weights)]
        if found:
            return tuple(found)
    return ()


def deploy(run: Path, cosine: float, fmr: float, fnmr: float, sets: str, encoder: nn.Module | None = None) -> Path:
    """Make a threshold the default of a run; return the file that was written. encoder: for which it was measured."""
    made_for = {} if encoder is None else {_ENCODER: _fingerprint(encoder)}
    write_results(run / _FILE, {sets: {"threshold": cosine, "fmr": fmr, "fnmr": fnmr, **made_for}})
    return run / _FILE


def _fingerprint(encoder: nn.Module) -> int:
    """48 bits, a number that JSON keeps exactly, of a hash of the weights."""
    digest = hashlib.blake2b(digest_size=6)
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return int.from_bytes(digest.digest())


def _deployed(path: Path, encoder: nn.Module | None) -> list[Threshold]:
    if not path.is_file():
        return []
    deployed = read_results(path)
    made_for = {figures[_ENCODER] for figures in deployed.values() if _ENCODER in figures}
    if encoder is not None and made_for - {_fingerprint(encoder)}:
        raise UserError(f"{path}: was measured for other weights; run `eval threshold --deploy` again, or remove it")
    try:
        return [
            Threshold(DEPLOYED, figures["threshold"], figures["fmr"], figures["fnmr"], sets) for sets, figures in deployed.items()
        ]
    except (KeyError, ValueError) as fault:
        raise UserError(f"{path}: not a threshold ({fault}); run `eval threshold --deploy` again") from fault


def _measured(path: Path, weights: str) -> list[Threshold]:
    if not path.is_file():
        return []
    everything = read_results(path)
    of_ema = {name for name in everything if name.endswith(EMA_SUFFIX) and name.removesuffix(EMA_SUFFIX) in everything}
    results = {name: metrics for name, metrics in everything.items() if (name in of_ema) == (weights == "ema")}
    found = _balanced({name: metrics for name, metrics in results.items() if "similarity_threshold" in metrics})
    for fmr in FMRS:
        label = rate_label(fmr)
        cosines = {name: metrics[key] for name, metrics in results.items() if (key := f"threshold@fmr={label}") in metrics}
        if cosines:  # the highest holds the FMR on every set
            name = max(cosines, key=cosines.__getitem__)
            found.append(Threshold(f"fmr={label}", cosines[name], fmr, results[name].get(f"fnmr@fmr={label}"), name))
    return found


def _balanced(results: Mapping[str, Mapping[str, float]]) -> list[Threshold]:
    """The mean of the sets' thresholds, and the means of their error rates, each at its own threshold."""
    if not results:
        return []

    def mean(key: str) -> float:
        return math.fsum(metrics[key] for metrics in results.values()) / len(results)

    key = "similarity_threshold"
    known = all(f"fmr@{key}" in metrics and f"fnmr@{key}" in metrics for metrics in results.values())
    fmr, fnmr = (mean(f"fmr@{key}"), mean(f"fnmr@{key}")) if known else (None, None)
    return [Threshold(BALANCED, mean(key), fmr, fnmr, ", ".join(results))]


def to_text(thresholds: Sequence[Threshold]) -> str:
    """JSON for a file's metadata; floats keep every bit."""
    return json.dumps([asdict(each) for each in thresholds])


def from_text(text: str) -> tuple[Threshold, ...]:
    """What `to_text` wrote. Raises ValueError if it is anything else."""
    try:
        return tuple(Threshold(**entry) for entry in json.loads(text))
    except (TypeError, RecursionError) as fault:
        raise ValueError(f"thresholds: {fault}") from fault
