"""Prints a table of runs next to the paper's figures, and writes it as JSON and Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prettytable import PrettyTable, TableStyle

from eval.present import paper
from eval.present.tables import summary_row
from utils.files import write_file

Figures = Mapping[str, Sequence[float]]
"""Column -> a figure in % for each seed."""


def read_figures(evaluations: Iterable[Path]) -> dict[str, list[float]]:
    """The figures of a row, one file per seed: the columns of the evaluation's summary, the AUC of each verification set, then
    figures over all pairs of each labelled set."""
    columns: dict[str, list[float]] = {}
    for path in evaluations:
        results = json.loads(path.read_bytes())
        areas = {f"AUC {name}": 100 * metrics["auc"] for name, metrics in results.items() if "accuracy" in metrics}
        pairs = {column: value for name, metrics in results.items() for column, value in _over_all_pairs(name, metrics).items()}
        for column, value in {**summary_row(results), **areas, **pairs}.items():
            columns.setdefault(column, []).append(value)
    return columns


def _over_all_pairs(name: str, metrics: Mapping[str, float | None]) -> dict[str, float]:
    """TAR at FMR 1e-3 and 1e-4, and the similarity that 99.99 % of the pairs of different people stay below; those measurable."""
    if "identities" not in metrics:
        return {}
    figures = {f"TAR@{fmr} {name}": (metrics[f"fnmr@fmr={fmr}"], 1, -1) for fmr in ("1e-3", "1e-4")}
    figures[f"99.99 % {name}"] = (metrics["impostor_p99.99"], 0, 1)
    return {column: 100 * (base + sign * value) for column, (value, base, sign) in figures.items() if value is not None}


def write_table(output: Path, name: str, rows: Mapping[str, Figures]) -> None:
    """Print a table and write OUTPUT/NAME.json and NAME.md."""
    seeds = max((len(values) for row in rows.values() for values in row.values()), default=0)
    print(f"\nTable {name}, in %: mean ± standard deviation over {seeds} seed(s); below each row the paper's, on its own data")
    print(_table(name, rows, lines=True).get_string())
    write_file(output / f"{name}.json", json.dumps(rows, indent=1) + "\n")
    markdown = _table(name, rows, lines=False)  # Markdown has no lines between rows
    markdown.set_style(TableStyle.MARKDOWN)
    write_file(output / f"{name}.md", markdown.get_string() + "\n")


def _table(name: str, rows: Mapping[str, Figures], lines: bool) -> PrettyTable:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = PrettyTable([f"table {name}", *columns], align="r")
    table.align[f"table {name}"] = "l"
    for row_name, row in rows.items():
        table.add_row([row_name, *(_mean_and_std(row.get(column, [])) for column in columns)])
        printed = paper.TABLES.get(name, {}).get(row_name)
        if printed:
            cells = [f"{printed[column]:.2f}" if column in printed else "" for column in columns]
            table.add_row([f"  {paper.PAPER}", *cells], divider=lines)
    return table


def _mean_and_std(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"
