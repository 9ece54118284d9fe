"""Tables of the benchmarks, with the paper's rows beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prettytable import PrettyTable

from eval.present import paper
from eval.present.tables import NOT_MEASURED

Interval = tuple[float, float]


def percent(value: float, interval: Interval | None = None) -> str:
    """A rate 0..1 in %, with its confidence interval."""
    shown = f"{100 * value:.2f}"
    return shown if interval is None else f"{shown} [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def rate_table(
    first_column: str,
    columns: Mapping[str, str],
    rows: Mapping[str, Mapping[str, float]],
    paper_rows: Sequence[tuple[str, Mapping[str, float]]] = (),
    paper_columns: Mapping[str, str] | None = None,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> str:
    """A table of rates in %: `columns` heading -> metric; `rows` name -> metric -> rate 0..1, then `paper_rows` name -> the
    paper's column -> % (`paper_columns` heading -> the paper's column), under a line. A figure that is not there is a dash.
    """
    table = PrettyTable([first_column, *columns], align="r")
    table.align[first_column] = "l"
    intervals, paper_columns = intervals or {}, paper_columns or {}
    for name, metrics in rows.items():
        shown = [
            percent(metrics[metric], intervals.get(name, {}).get(metric)) if metric in metrics else NOT_MEASURED
            for metric in columns.values()
        ]
        table.add_row([name, *shown], divider=bool(paper_rows) and name == list(rows)[-1])
    for name, figures in paper_rows:
        cells = [figures.get(paper_columns.get(heading, "")) for heading in columns]
        table.add_row([name, *(NOT_MEASURED if cell is None else f"{cell:.2f}" for cell in cells)])
    return table.get_string()


def summary_table(label: str, results: Mapping[str, Mapping[str, float]]) -> str:
    """One row for this encoder over all sets measured, then the rows of the paper's table I and its method in full.

    `results` is set -> metric -> value, as in results.json: `scface_d1` …, `tinyface`, `IJBB`, and verification sets by name.
    """
    row = summary_row(results)
    columns = [column for column in _summary_columns(results) if column in row]
    beside = paper.rows(["I"], columns)
    if set(columns) & set(paper.HQ_SETS):  # table I has their average only
        beside += [(name, figures) for name, figures in paper.rows(["II"], columns) if name.startswith("queue: proxy")]
    measured = {label: {column: value / 100 for column, value in row.items()}}
    same = {column: column for column in columns}
    return rate_table("encoder", same, measured, beside, same)


def summary_row(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """This encoder's figures in % under the paper's column names (and verification sets that the paper has not, by their own)."""
    row: dict[str, float] = {}
    for column, (name, metric) in _MAIN_COLUMNS.items():
        found = results.get(name) or results.get(f"{name}_N1D1F1")  # the usual one where several settings were measured
        if found and metric in found:
            row[column] = 100 * found[metric]
    for name, metrics in results.items():
        if "accuracy" in metrics:
            row[paper.hq_set(name) or name] = 100 * metrics["accuracy"]
    if all(name in row for name in paper.HQ_SETS):
        row[paper.HQ] = sum(row[name] for name in paper.HQ_SETS) / len(paper.HQ_SETS)
    return row


_MAIN_COLUMNS = {
    paper.SC1: ("scface_d1", "rank1"),
    paper.SC2: ("scface_d2", "rank1"),
    paper.SC3: ("scface_d3", "rank1"),
    paper.TINYFACE: ("tinyface", "rank1"),
    paper.IJBB: ("IJBB", "tar@far=1e-4"),
    "IJB-C": ("IJBC", "tar@far=1e-4"),
}


def _summary_columns(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    own = [name for name, metrics in results.items() if "accuracy" in metrics and paper.hq_set(name) is None]
    return [*_MAIN_COLUMNS, paper.HQ, *paper.HQ_SETS, *own]
