"""`python -m eval runs`: the final figures of several runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from eval.commands.common import Results
from eval.present.tables import NOT_MEASURED, Table, read_results
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "runs"
HELP = "the final verification of several runs, and the difference between the last and the first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="RUN", help="output folders of finished runs")


def run(arguments: argparse.Namespace, world: World) -> None:
    dist.on_first_rank(lambda: print(_table({Path(folder).resolve().name: _read(Path(folder)) for folder in arguments.folders})))


def _table(runs: Mapping[str, Results]) -> Table:
    """One row per run, in %; with several runs, a last row: the last run minus the first."""
    sets = list(
        dict.fromkeys(
            name for results in runs.values() for name, metrics in results.items() if {"accuracy", "auc"} <= metrics.keys()
        )
    )
    rows = [[name, *(_cell(results.get(each), "{:.2f} ({:.2f})") for each in sets)] for name, results in runs.items()]
    below = []
    if len(runs) > 1:
        (first, old), *_, (last, new) = runs.items()
        gains = [
            {metric: new[each][metric] - old[each][metric] for metric in ("accuracy", "auc")}
            if each in old and each in new
            else None
            for each in sets
        ]
        below = [[f"{last} - {first}", *(_cell(gain, "{:+.2f} ({:+.2f})") for gain in gains)]]
    return Table(["accuracy (AUC), %", *sets], rows, below)


def _is_verification(metrics: Mapping[str, float]) -> bool:
    return {"accuracy", "auc"} <= metrics.keys()


def _cell(metrics: Mapping[str, float] | None, form: str) -> str:
    return NOT_MEASURED if metrics is None else form.format(100 * metrics["accuracy"], 100 * metrics["auc"])


def _read(folder: Path) -> Results:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: cannot be read (no such file); give the output folder of a finished run")
    results = read_results(path)
    if not any(map(_is_verification, results.values())):
        raise UserError(f"{path}: has no verification results; train with val_targets")
    return results
