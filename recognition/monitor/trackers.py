"""Experiment trackers, as hooks: what `trackers` names in addition to TensorBoard (`progress.py`). Each needs its package.

A tracker that fails is named in one warning and not called again (`hooks.py`); the run goes on.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.errors import UserError
from utils.plugins import require

TENSORBOARD = "tensorboard"
_SECONDS = 30  # to reach the server
_Results = Mapping[str, Mapping[str, float]]


class WandB:
    """Weights & Biases (https://wandb.ai). options: for `wandb.init`. WANDB_API_KEY, WANDB_MODE and so on apply; a run that is
    resumed continues in the same place."""

    def __init__(self, options: Mapping[str, Any]):
        self._wandb, self._options = require("wandb", "requirements/wandb.txt", "trackers: 'wandb'"), options

    def start(self, config: Config, output: Path) -> None:
        same = output / "wandb.id"  # of this run, also after a restart
        if not same.exists():
            same.write_text(secrets.token_hex(4))
        given = {"name": output.name, "dir": str(output), "id": same.read_text(), "resume": "allow"}
        settings = self._wandb.Settings(init_timeout=_SECONDS, silent=True)
        self._run = self._wandb.init(config=dataclasses.asdict(config), settings=settings, **{**given, **self._options})

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def verification(self, step: int, results: _Results) -> None:
        self._run.log(_flat(results), step=step)

    def end(self, step: int, results: _Results) -> None:
        self._run.finish()


class MLflow:
    """MLflow (https://mlflow.org). options: for `mlflow.set_experiment`. MLFLOW_TRACKING_URI and so on apply; without it, figures
    are written to OUTPUT/mlflow.db."""

    def __init__(self, options: Mapping[str, Any]):
        self._mlflow, self._options = require("mlflow", "requirements/mlflow.txt", "trackers: 'mlflow'"), options

    def start(self, config: Config, output: Path) -> None:
        if not self._mlflow.is_tracking_uri_set():
            self._mlflow.set_tracking_uri(f"sqlite:///{output.resolve()}/mlflow.db")
        if self._options:
            self._mlflow.set_experiment(**self._options)
        self._mlflow.start_run(run_name=output.name)
        self._mlflow.log_params(dataclasses.asdict(config))

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(figures), step=step)

    def verification(self, step: int, results: _Results) -> None:
        metrics = {name.replace("@", "_at_").replace("=", "_"): value for name, value in _flat(results).items()}
        self._mlflow.log_metrics(metrics, step=step)

    def end(self, step: int, results: _Results) -> None:
        self._mlflow.end_run()


TRACKERS = {"wandb": WandB, "mlflow": MLflow}


def build_trackers(config: Config) -> dict[str, Any]:
    """The trackers that a configuration names, without TensorBoard. Raises UserError if one is unknown or not installed."""
    problems, trackers = [], {}
    for name in config.trackers:
        try:
            if name in TRACKERS:
                trackers[f"tracker {name}"] = TRACKERS[name](config.tracker_options.get(name, {}))
            elif name != TENSORBOARD:
                problems.append(f"trackers: {name!r}: unknown; known names: {TENSORBOARD}, {', '.join(TRACKERS)}")
        except UserError as fault:
            problems += fault.args
    if problems:
        raise UserError(*problems)
    return trackers


def _flat(results: _Results) -> dict[str, float]:
    """Figures without those that are unknown (None)."""
    named = {f"verification/{name}/{metric}": value for name, metrics in results.items() for metric, value in metrics.items()}
    return {name: value for name, value in named.items() if value is not None}
