"""What a report is made from: the files of a run's folder, and what was measured with its encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.present.tables import read_results
from eval.protocols.identification import Search
from eval.verification import TenFold
from utils.errors import UserError
from utils.files import numbered_lines

Results = dict[str, dict[str, float]]
_DIAGNOSTICS = "diagnostics/"
_DIFFERENCES, _OPTIONAL = ("steps", "positive", "negative"), ("own_key", "age", "cosine")  # in pair_differences.json


@dataclass(frozen=True)
class Run:
    """The contents of metrics.jsonl, config.json, results.json, eval/*.json and pair_differences.json.

    training: name -> float64 [K], `step` and the measurements of K reported steps.
    verification: set -> metric -> (steps, values). differences: queue -> `steps`, `positive` … -> float64.
    diagnostics: name -> float64 [M], `step` and the diagnostics.
    """

    path: Path
    config: dict[str, Any]
    training: dict[str, np.ndarray]
    verification: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
    results: Results
    skipped_steps: int
    differences: dict[str, dict[str, np.ndarray]]
    diagnostics: dict[str, np.ndarray]


@dataclass
class Measured:
    """The measurements with the run's encoder, on rank 0. A section whose measurement is missing has a note with the reason."""

    folds: dict[str, TenFold] = field(default_factory=dict)  # verification set -> outcome
    searches: dict[str, Search] = field(default_factory=dict)  # SCface: d1 … d3
    originals: np.ndarray | None = None  # training images, uint8 RGB [n, 112, 112, 3]
    augmented: np.ndarray | None = None  # their augmented views
    norms: np.ndarray | None = None  # float32 [2, n], of originals and of augmented views
    u: np.ndarray | None = None  # float32 [2, n], quality
    threshold: float | None = None  # b; None without a partition
    border: float | None = None  # the norm at which u equals b
    notes: dict[str, str] = field(default_factory=dict)  # section -> why it is missing


def read_run(path: Path) -> Run:
    """Read a run's folder. Raises UserError if it is not one, or if a file in it is damaged."""
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{path}: no metrics.jsonl here; give the output folder of a run")
    lines = _measurements(metrics)
    training = _columns([line for line in lines if "loss" in line])
    diagnosed = [line for line in lines if any(name.startswith(_DIAGNOSTICS) for name in line)]
    diagnostics = {name.removeprefix(_DIAGNOSTICS): values for name, values in _columns(diagnosed).items()}
    config = _json(path / "config.json") if (path / "config.json").is_file() else {}
    results: Results = {}
    for file in [path / "results.json", *sorted((path / "eval").glob("*.json"))]:
        if file.is_file():
            results |= read_results(file)
    skipped_steps = sum("skipped" in line for line in lines)
    differences = _differences(path / "pair_differences.json")
    return Run(path, dict(config), training, _verification(lines), results, skipped_steps, differences, diagnostics)


def _measurements(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. A last line that a killed run did not finish is left out.

    Raises UserError if any other line is damaged.
    """
    lines: list[dict[str, Any]] = []
    damage: UserError | None = None
    for where, text in numbered_lines(path):
        if damage is not None:
            raise damage
        try:
            line = json.loads(text)
            if isinstance(line["step"], int):
                lines.append(line)
        except (ValueError, KeyError, TypeError) as fault:
            damage = UserError(f"{where}: not a measurement ({fault}); remove the line")
    if damage is not None and path.read_bytes().endswith(b"\n"):
        raise damage
    return lines


def _columns(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = sorted({name for line in lines for name, value in line.items() if isinstance(value, (int, float))})
    return {name: np.array([line.get(name, np.nan) for line in lines], np.float64) for name in names}


def _verification(lines: list[dict[str, Any]]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            group, _, rest = key.partition("/")
            name, _, metric = rest.rpartition("/")
            if group == "verification":
                found.setdefault(name, {}).setdefault(metric, {})[line["step"]] = value
    return {
        name: {metric: (np.array(list(at)), np.array(list(at.values()), np.float64)) for metric, at in metrics.items()}
        for name, metrics in found.items()
    }


def _differences(file: Path) -> dict[str, dict[str, np.ndarray]]:
    if not file.is_file():
        return {}
    try:
        found = {
            queue: {
                key: np.asarray(curves[key], np.float64)
                for key in (*_DIFFERENCES, *_OPTIONAL)
                if key in curves or key in _DIFFERENCES
            }
            for queue, curves in _json(file).items()
        }
    except (KeyError, TypeError, ValueError) as fault:
        raise UserError(f"{file}: expected queue -> steps, positive, negative ({fault})") from fault
    for queue, curves in found.items():
        if len({len(values) for values in curves.values()}) != 1:
            raise UserError(f"{file}: {queue}: {', '.join(curves)} differ in length")
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(f"{file}: cannot be read ({fault})") from fault
    if not isinstance(content, dict):
        raise UserError(f"{file}: a JSON object was expected, not {type(content).__name__}")
    return content
