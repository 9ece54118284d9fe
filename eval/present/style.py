"""The style of all figures, and how a figure becomes a file or a part of a page.

Matplotlib is imported only when a figure is drawn, and needs no display.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, darkest hues first. Matplotlib leaves pure black out of SVG,
# where a page could not replace it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
INK, GRID, PAPER = "#333333", "#dddddd", "#ffffff"
_LINE_STYLES = ("-", "--", ":", "-.")  # for more curves than colours


def new_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    decorate(axes, title, x_label, y_label)
    return figure, axes


def decorate(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes their labels, grid and colours."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def colour_of(index: int) -> str:
    """The colour of a figure's curve number `index`."""
    return COLOURS[index % len(COLOURS)]


def style_of(index: int) -> dict[str, Any]:
    """Colour and line style of a figure's curve number `index`, as matplotlib's arguments."""
    return {"color": colour_of(index), "linestyle": _LINE_STYLES[index // len(COLOURS) % len(_LINE_STYLES)]}


def add_legend(owner: Axes | Figure, **options: Any) -> None:
    """A legend inside axes, or outside all axes of a figure."""
    legend = owner.legend(fontsize=8.5, framealpha=0.9, edgecolor="none", labelcolor=INK, **options)
    legend.get_title().set_color(INK)


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as `path`.png and `path`.svg and return both paths. The same figure yields the same bytes."""
    import matplotlib

    written = []
    with matplotlib.rc_context({"svg.hashsalt": "figure"}):
        for ending in ("png", "svg"):
            target = Path(f"{path}.{ending}")
            with new_file(target, parents=True) as partial:
                figure.savefig(partial, format=ending, dpi=160, metadata={"Date": None})
            written.append(target)
    return written


def to_svg(figure: Figure, width: float, height: float) -> str:
    """An `<svg>` element without title, of the given size in inches, whose text is text; for a page that has its own fonts."""
    import matplotlib

    for axes in figure.axes:
        axes.set_title("", loc="left")
    figure.set_size_inches(width, height)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "figure", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
