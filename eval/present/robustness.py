"""Accuracy, TAR and feature norm of encoders as their input gets worse: one table and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.present.style import add_legend, colour_of, decorate, new_figure
from eval.present.tables import Table, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metrics = dict[str, float]


@dataclass(frozen=True)
class Course:
    """One kind of degradation. points: encoder -> level -> metrics (`accuracy`, `norm`, a TAR), all with the same levels."""

    name: str
    unit: str
    unchanged: float
    points: dict[str, dict[float, Metrics]]

    @property
    def levels(self) -> Sequence[float]:
        return list(next(iter(self.points.values())))


def robustness_table(name: str, courses: Sequence[Course], tar: str) -> Table:
    """One row per kind and level, with accuracy (%), `tar` (%) and mean norm of each encoder."""
    encoders = list(courses[0].points)
    headings = [f"{encoder}: {shown}" for encoder in encoders for shown in ("accuracy", "TAR", "norm")]
    rows = []
    for course in courses:
        for level in course.levels:
            found = [course.points[encoder][level] for encoder in encoders]
            cells = [text for each in found for text in (percent(each["accuracy"]), percent(each[tar]), f"{each['norm']:.2f}")]
            rows.append([f"{course.name} {level:g}{' (as it is)' if level == course.unchanged else ''}", *cells])
    return Table([f"{name}, %, {tar.upper()}", *headings], rows)


def draw_robustness(title: str, courses: Sequence[Course], tar: str) -> Figure:
    """One column per kind of degradation; below each other accuracy, TAR, and the norm relative to that of unchanged images."""
    figure, unused = new_figure("", "", "")
    unused.remove()
    figure.set_size_inches(max(7.2, 2.6 * len(courses)), 7.0)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    metrics = {"accuracy": "accuracy", tar: tar.upper(), "norm": "norm, relative"}
    panels = figure.subplots(len(metrics), len(courses), sharey="row", squeeze=False)
    for row, (metric, label) in enumerate(metrics.items()):
        for column, course in enumerate(courses):
            axes = panels[row][column]
            below = course.unit if row == len(metrics) - 1 else ""
            decorate(axes, course.name if row == 0 else "", below, label if column == 0 else "")
            for index, (encoder, points) in enumerate(course.points.items()):
                scale = points[course.unchanged]["norm"] if metric == "norm" else 1.0
                values = [each[metric] / (scale or 1.0) for each in points.values()]
                axes.plot(range(len(values)), values, "o-", color=colour_of(index), markersize=3.5, linewidth=1.6, label=encoder)
            axes.set_xticks(range(len(course.levels)), labels=[f"{level:g}" for level in course.levels])
            axes.tick_params(axis="x", labelsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    add_legend(figure, handles=handles, labels=labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure
