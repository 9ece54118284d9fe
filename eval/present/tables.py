"""Results as tables for people, with the paper's figures below a rule, and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prettytable import PrettyTable, TableStyle

from eval.operating import FMRS, LEAST_FALSE_MATCHES, rate_label
from eval.present import paper
from utils.errors import UserError
from utils.files import write_file

NOT_MEASURED = "–"
Interval = tuple[float, float]
Metrics = Mapping[str, Any]  # float; None for an operating point that the pairs cannot measure

_SUMMARY_COLUMNS = {
    paper.SC1: ("scface_d1", "rank1"),
    paper.SC2: ("scface_d2", "rank1"),
    paper.SC3: ("scface_d3", "rank1"),
    paper.TINYFACE: ("tinyface", "rank1"),
    paper.IJBB: ("IJBB", "tar@far=1e-4"),
    "IJB-C": ("IJBC", "tar@far=1e-4"),
    "IJB-S single": ("ijbs_single", "rank1"),
}


@dataclass(frozen=True)
class Table:
    """Text cells under headings; `below` holds the rows under a line, such as the paper's."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: Sequence[Sequence[str]] = field(default_factory=list)
    note: str = ""  # printed after the table

    def __str__(self) -> str:
        return self._pretty().get_string() + (f"\n{self.note}" if self.note else "")

    def markdown(self) -> str:
        """The table in Markdown, which has no lines between rows."""
        table = self._pretty()
        table.set_style(TableStyle.MARKDOWN)
        return table.get_string() + (f"\n\n{self.note}" if self.note else "")

    def _pretty(self) -> PrettyTable:
        table = PrettyTable(self.headings, align="r")
        table.align[self.headings[0]] = "l"
        for number, cells in enumerate([*self.rows, *self.below], 1):
            table.add_row(list(cells), divider=bool(self.below) and number == len(self.rows))
        return table


def percent(rate: float | None, interval: Interval | None = None) -> str:
    """A rate 0..1 in %, with its confidence interval; a dash for None."""
    if rate is None:
        return NOT_MEASURED
    shown = f"{100 * rate:.2f}"
    return shown if interval is None else f"{shown} [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def rate_table(
    first_column: str,
    columns: Mapping[str, str],
    rows: Mapping[str, Metrics],
    paper_rows: Sequence[tuple[str, Metrics]] = (),
    paper_columns: Mapping[str, str] | None = None,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Table:
    """A table of rates in %.

    columns: heading -> metric. rows: name -> metric -> rate 0..1. paper_rows: name -> the paper's column -> %. paper_columns:
    heading -> the paper's column. intervals: name -> metric -> confidence interval.
    """
    intervals, paper_columns = intervals or {}, paper_columns or {}
    measured = [
        [name, *(percent(metrics.get(metric), intervals.get(name, {}).get(metric)) for metric in columns.values())]
        for name, metrics in rows.items()
    ]
    published = [
        [name, *(_as_printed(figures.get(paper_columns.get(heading, ""))) for heading in columns)] for name, figures in paper_rows
    ]
    return Table([first_column, *columns], measured, published)


def verification_table(
    results: Mapping[str, Metrics], intervals: Mapping[str, Mapping[str, Interval]] | None = None, published: bool = True
) -> Table:
    """Verification sets, name -> `TenFold.metrics()`, with published accuracies: QGFace's, and those on XQLFW and RFW."""
    rows, below = [], []
    for name, metrics in results.items():
        bounds = (intervals or {}).get(name, {})
        accuracy = f"{percent(metrics['accuracy'], bounds.get('accuracy'))} ± {percent(metrics.get('std'))}"
        tar = percent(metrics.get("tar@far=1e-3"), bounds.get("tar@far=1e-3"))
        rows.append([name, accuracy, tar, percent(metrics.get("auc")), f"{metrics.get('pairs', 0):.0f}"])
        for label, accuracy_printed in paper.verification(name).items() if published else ():
            below.append([f"{name} ({label})", _as_printed(accuracy_printed), *[NOT_MEASURED] * 3])
    return Table(["set", "accuracy ± std (%)", "TAR@FAR=1e-3 (%)", "AUC (%)", "pairs"], rows, below)


def operating_table(results: Mapping[str, Metrics]) -> Table:
    """Thresholds and FNMR (with 95 % intervals) by FMR, name -> `operating_metrics`; after them, what is not measurable."""
    rows = []
    for name, metrics in results.items():
        for fmr in FMRS:
            label = rate_label(fmr)
            fnmr, low, high = (metrics.get(f"fnmr@fmr={label}{bound}") for bound in ("", " low", " high"))
            if fnmr is None:
                rows.append([name, f"≤ {label}", "not measurable", *[NOT_MEASURED] * 2])
                break
            threshold = metrics.get(f"threshold@fmr={label}")
            shown = NOT_MEASURED if threshold is None else f"{threshold:.4f}"
            rows.append([name, label, shown, percent(fnmr), f"{percent(low)} to {percent(high)}"])
    lacking = any(NOT_MEASURED in row for row in rows)
    note = f"Not measurable: FMR x needs {LEAST_FALSE_MATCHES}/x pairs of different people, for ten expected false matches."
    return Table(["set", "FMR", "threshold (cosine)", "FNMR (%)", "95 % interval"], rows, note=note if lacking else "")


def summary_table(label: str, results: Mapping[str, Metrics], with_paper: bool = True) -> Table:
    """One row for this encoder over all sets, then the rows of the paper's table I, and of table II if a set is only there.

    results: set -> metric -> value, as in results.json.
    """
    row = summary_row(results)
    published = paper.rows(["I"], row) if with_paper else []
    if with_paper and set(row) & set(paper.HQ_SETS):  # table I has only their average
        published += [(name, figures) for name, figures in paper.rows(["II"], row) if name.startswith(paper.METHOD)]
    same = {column: column for column in row}
    return rate_table("encoder", same, {label: {name: value / 100 for name, value in row.items()}}, published, same)


def summary_row(results: Mapping[str, Metrics]) -> dict[str, float]:
    """This encoder's figures in %, under the paper's column names, in its order; then other verification sets by name.

    results: `scface_d1` … `scface_d3`, `tinyface`, `IJBB`, `IJBC` and verification sets -> metric -> rate.
    """
    row: dict[str, float] = {}
    for column, (name, metric) in _SUMMARY_COLUMNS.items():
        found = results.get(name) or results.get(f"{name}_N1D1F1")  # the usual setting, if several were measured
        if found and metric in found:
            row[column] = 100 * found[metric]
    accuracies = {
        paper.hq_set(name) or name: 100 * metrics["accuracy"] for name, metrics in results.items() if "accuracy" in metrics
    }
    if all(name in accuracies for name in paper.HQ_SETS):
        row[paper.HQ] = sum(accuracies[name] for name in paper.HQ_SETS) / len(paper.HQ_SETS)
    row |= {name: accuracies.pop(name) for name in paper.HQ_SETS if name in accuracies}
    return row | accuracies


def _as_printed(figure: float | None) -> str:
    return NOT_MEASURED if figure is None else f"{figure:.2f}"


def write_results(path: str | Path, results: Mapping, label: str = "") -> None:
    """Write `results` as JSON, whole or not at all.

    label: names the file in the UserError that is raised if it cannot be written (default: `path`).
    Raises UserError if a figure is not finite, or None although it does not belong to an operating point.
    """
    _refuse_not_finite(results, label or str(path))
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_file(path, text, parents=True, label=label)


def read_results(path: Path) -> dict[str, dict[str, float]]:
    """Read what `write_results` wrote: set -> metric -> value, without the figures that could not be measured.

    Raises UserError if the file is unreadable, contains something else, or a figure is not finite.
    """
    try:
        results = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); restore it, or evaluate again") from fault
    sets = list(results.values()) if isinstance(results, dict) else [None]
    if not all(isinstance(metrics, dict) and all(_is_figure(*each) for each in metrics.items()) for metrics in sets):
        raise UserError(f"{path}: not a results file (set -> metric -> value); move it away, or evaluate again")
    _refuse_not_finite(results, str(path))
    return {name: {key: value for key, value in metrics.items() if value is not None} for name, metrics in results.items()}


def _refuse_not_finite(results: Mapping[str, Metrics], where: str) -> None:
    """Raise UserError, beginning with `where`, if a figure is NaN or infinite."""
    for name, metrics in results.items():
        for metric, value in metrics.items():
            if not (_is_figure(metric, value) and math.isfinite(value or 0)):
                raise UserError(
                    f"{where}: {metric} of {name} is {value}, not a finite number; check the encoder and evaluate again"
                )


def _is_figure(metric: str, value: object) -> bool:
    """Whether a value is a number, or null for an operating point that the pairs cannot measure."""
    return isinstance(value, (int, float)) or (value is None and ("@fmr=" in metric or metric.startswith("impostor_p")))
