"""Results as tables for people (prettytable) and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from prettytable import PrettyTable

from utils.files import write_file

NOT_MEASURED = "–"


def verification_table(
    results: Mapping[str, Mapping[str, float]],
    paper_accuracies: Mapping[str, float] | None = None,
    paper_label: str = "paper",
) -> str:
    """A row for each set of `results` (`TenFold.metrics()`, rates 0..1), rates printed in %.

    `paper_accuracies` (in %, as printed there) adds a row for each of its sets, marked with `paper_label`: under the row
    of the same set where that was measured, at the end otherwise.
    """
    table = PrettyTable(["set", "accuracy ± std (%)", "TAR@FAR=1e-3 (%)", "AUC (%)", "pairs"], align="r")
    table.align["set"] = "l"
    paper = dict(paper_accuracies or {})

    def add_paper_row(name: str) -> None:
        table.add_row([f"{name} ({paper_label})", f"{paper.pop(name):.2f}"] + [NOT_MEASURED] * 3)

    for name, metrics in results.items():
        accuracy = f"{100 * metrics['accuracy']:.2f} ± {100 * metrics['std']:.2f}"
        tar, auc = f"{100 * metrics['tar@far=1e-3']:.2f}", f"{100 * metrics['auc']:.2f}"
        table.add_row([name, accuracy, tar, auc, f"{metrics['pairs']:.0f}"])
        if name in paper:
            add_paper_row(name)
    for name in list(paper):
        add_paper_row(name)
    return table.get_string()


def write_results(path: str | Path, results: Mapping, label: str = "") -> None:
    """Write `results` as JSON, whole or not at all.

    label: names the file in the UserError that is raised if it cannot be written (default: `path`).
    ValueError: a number that JSON cannot express (NaN, infinity).
    """
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_file(path, text, parents=True, label=label)
