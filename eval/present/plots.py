"""Figures of results, as PNG and SVG. Matplotlib is imported only when a figure is drawn, and needs no display."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.present.gradient_scale import AdaFaceScale
from eval.roc import Roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, darkest hues first; line styles beyond its length.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
INK, GRID = "#333333", "#dddddd"
MOST_POINTS = 2000  # of a drawn curve: more cannot be seen, and an SVG of millions cannot be opened


def plot_roc(curves: Mapping[str, Roc], path: str | Path, title: str = "Verification ROC", far: float = 1e-3) -> list[Path]:
    """Draws ROC curves, name -> curve, over a logarithmic FAR axis; marks the TAR of each at `far`.

    Writes `path` with the endings .png and .svg, and returns both paths.
    """
    left = 10.0 ** math.floor(math.log10(min([far / 2, *(1 / curve.different_pairs for curve in curves.values())])))
    figure, axes = new_figure(title, "false accept rate (log scale)", "true accept rate")
    axes.set_xscale("log")
    axes.set_xlim(left, 1)
    axes.axvline(far, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    bottom = 1.0
    for index, (name, curve) in enumerate(curves.items()):
        colour, style = COLOURS[index % len(COLOURS)], LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
        tar = curve.tar_at_far(far)
        label = f"{name}   TAR {100 * tar:.2f} %   AUC {100 * curve.auc:.2f} %"
        x, y = _drawable(curve, left)
        bottom = min(bottom, y[0])
        axes.plot(x, y, drawstyle="steps-post", color=colour, linestyle=style, linewidth=1.8, label=label)
        axes.plot([far], [tar], "o", color=colour, markersize=5, markeredgecolor="white", clip_on=False, zorder=4)
    bottom = math.floor(10 * bottom) / 10 if bottom > 0.5 else 0.0
    axes.set_ylim(bottom, 1 + 0.01 * (1 - bottom))
    axes.text(far, bottom, f" FAR {far:g}", fontsize=8, color=INK, va="bottom")
    axes.legend(
        title=f"TAR at FAR {far:g}, area under the curve",
        title_fontsize=8.5,
        alignment="left",
        loc="best",
        fontsize=8.5,
        framealpha=0.9,
        edgecolor="none",
        labelcolor=INK,
    )
    return save_figure(figure, path)


def _drawable(curve: Roc, left: float) -> tuple[np.ndarray, np.ndarray]:
    """At most about MOST_POINTS of a curve's points, evenly over log FAR, from the axis's left end on."""
    visible = curve.far >= left
    at_left = curve.tar[~visible].max(initial=0.0)
    far, tar = curve.far[visible], curve.tar[visible]
    if len(far) > MOST_POINTS:
        wanted = np.geomspace(left, 1, MOST_POINTS)
        kept = np.unique(np.append(np.searchsorted(far, wanted, side="right").clip(1) - 1, len(far) - 1))
        far, tar = far[kept], tar[kept]
    return np.append(left, far), np.append(at_left, tar)


def plot_gradient_scale(scale: AdaFaceScale, threshold: float | None = None) -> Figure:
    """|g| over norm and angle to the own class (QGFace, figure 2); with `threshold`, the norm at which u has that value."""
    norm, degrees, values = scale.grid()
    figure, axes = new_figure("Gradient scale |g|", "norm of the feature", "angle to the own class, degrees")
    extent = (float(norm[0]), float(norm[-1]), float(degrees[0]), float(degrees[-1]))
    shown = axes.imshow(values, origin="lower", aspect="auto", extent=extent, cmap="cividis")
    axes.grid(False)
    figure.colorbar(shown, ax=axes)
    border = math.nan if threshold is None else scale.norm_of(2 * threshold - 1)
    if norm[0] <= border <= norm[-1]:
        axes.axvline(border, color="white", linewidth=1.2, linestyle="--")
        axes.text(border, 2, f" u = {threshold:g}", color="white", fontsize=9)
    return figure


def new_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty figure in the project's style, with one set of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    return figure, axes


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Writes a figure as `path`.png and `path`.svg (an ending .png or .svg of `path` is replaced); the same figure gives
    the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stem = Path(path)
    if stem.suffix in (".png", ".svg"):
        stem = stem.with_suffix("")
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = Path(f"{stem}.png"), Path(f"{stem}.svg")
    figure.savefig(png, dpi=160)
    with matplotlib.rc_context({"svg.hashsalt": "figure"}):
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]
