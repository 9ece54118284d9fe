"""`python -m eval runs`: the final figures of several runs side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from prettytable import PrettyTable

from eval.commands.common import Context
from eval.present.tables import NOT_MEASURED
from utils import dist
from utils.errors import UserError

NAME = "runs"
HELP = "the final verification of several runs side by side, and how far the last is from the first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="RUN", help="output folders of finished runs")


def run(arguments: argparse.Namespace, context: Context) -> None:
    results = {Path(folder).resolve().name: _read(Path(folder)) for folder in arguments.folders}
    dist.on_first_rank(lambda: print(runs_table(results)))


def runs_table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row for each run (name -> set -> metric -> rate 0..1), in %; of several, the last one's lead over the first."""
    sets = list(dict.fromkeys(name for run in results.values() for name, metrics in run.items() if "accuracy" in metrics))
    table = PrettyTable(["accuracy (AUC), %", *sets], align="r")
    table.align["accuracy (AUC), %"] = "l"
    names = list(results)
    for name, run in results.items():
        cells = [f"{100 * run[s]['accuracy']:.2f} ({100 * run[s]['auc']:.2f})" if s in run else NOT_MEASURED for s in sets]
        table.add_row([name, *cells], divider=name == names[-1] and len(names) > 1)
    if len(names) > 1:
        first, last = results[names[0]], results[names[-1]]
        table.add_row([f"{names[-1]} - {names[0]}", *(_difference(first.get(s), last.get(s)) for s in sets)])
    return table.get_string()


def _difference(first: Mapping[str, float] | None, last: Mapping[str, float] | None) -> str:
    if first is None or last is None:
        return NOT_MEASURED
    accuracy, area = (100 * (last[metric] - first[metric]) for metric in ("accuracy", "auc"))
    return f"{accuracy:+.2f} ({area:+.2f})"


def _read(folder: Path) -> dict[str, dict[str, float]]:
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); give the output folder of a run that has come to its end") from fault
    if not isinstance(results, dict) or not any("accuracy" in metrics for metrics in results.values()):
        raise UserError(f"{path}: holds no verification; train with val_targets")
    return results
