"""What a run's folder tells: metrics.jsonl, config.json, results.json, eval/*.json, pair_differences.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

Results = dict[str, dict[str, float]]
_DIAGNOSTICS = "diagnostics/"


@dataclass(frozen=True)
class Run:
    """training: name -> float64 [K], K reported steps, `step` among them. verification: set -> metric -> (steps, values)."""

    path: Path
    config: dict[str, Any]
    training: dict[str, np.ndarray]
    verification: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
    results: Results
    events: int = 0  # steps that were skipped
    differences: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # queue -> steps, positive …
    diagnostics: dict[str, np.ndarray] = field(default_factory=dict)  # name -> float64 [M], `step` among them


def read_run(path: Path) -> Run:
    """Raises UserError where the folder is no run's, or a file in it cannot be read."""
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{path}: no metrics.jsonl here; give the output folder of a run")
    lines = []
    for number, text in enumerate(metrics.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            if isinstance(line["step"], int):
                lines.append(line)
        except (ValueError, KeyError, TypeError) as fault:
            raise UserError(f"{metrics}, line {number}: not a measurement ({fault}); remove the line") from fault
    training = _columns([line for line in lines if "loss" in line])
    looked = [line for line in lines if any(name.startswith(_DIAGNOSTICS) for name in line)]
    diagnostics = {name.removeprefix(_DIAGNOSTICS): values for name, values in _columns(looked).items()}
    config = _json(path / "config.json") if (path / "config.json").is_file() else {}
    results: Results = {}
    for file in [path / "results.json", *sorted((path / "eval").glob("*.json"))]:
        if file.is_file():
            results |= _results(file)
    skipped = sum("skipped" in line for line in lines)
    differences = _differences(path / "pair_differences.json")
    return Run(path, dict(config), training, _verification(lines), results, skipped, differences, diagnostics)


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


def _results(file: Path) -> Results:
    content = _json(file)
    if not all(isinstance(metrics, Mapping) for metrics in content.values()):
        raise UserError(f"{file}: not a file of results (set -> metric -> value); move it out of the run's eval folder")
    return {name: dict(metrics) for name, metrics in content.items()}


def _differences(file: Path) -> dict[str, dict[str, np.ndarray]]:
    if not file.is_file():
        return {}
    try:
        found = {
            queue: {key: np.asarray(curves[key], np.float64) for key in ("steps", "positive", "negative", "age", "cosine")
                    if key in curves or key in ("steps", "positive", "negative")}
            for queue, curves in _json(file).items()
        }  # fmt: skip
    except (KeyError, TypeError, ValueError) as fault:
        raise UserError(f"{file}: expected queue -> steps, positive, negative ({fault})") from fault
    for queue, curves in found.items():
        if len({len(values) for values in curves.values()}) != 1:
            raise UserError(f"{file}: {queue}: {', '.join(curves)} differ in length")
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as fault:
        raise UserError(f"{file}: cannot be read ({fault})") from fault
    if not isinstance(content, dict):
        raise UserError(f"{file}: a JSON object was expected, not {type(content).__name__}")
    return content
