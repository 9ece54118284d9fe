"""Figures of results: one function per kind of figure. eval/present/style.py writes them as files or embeds them in a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from eval.operating import LEAST_FALSE_MATCHES, rate_label
from eval.present.style import INK, PAPER, add_legend, colour_of, decorate, new_figure, style_of
from eval.protocols.edc import DiscardCurve
from eval.protocols.identification import Search
from eval.protocols.scface import DISTANCES, METRES
from eval.roc import Roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ON_MAP = "#fafafa"  # lines and text on the gradient map, whose colours do not depend on the page's theme
_DOTTED = (0, (2, 3))
_MOST_POINTS = 2000  # per curve: more cannot be seen, and would make a large SVG
_FEW_POINTS = 12  # per curve: each gets a marker
_MOST_RANKS = 50
_MOST_FMR = 0.5  # right end of DET plots


def draw_roc(curves: Mapping[str, Roc], title: str = "Verification ROC", far: float = 1e-3) -> Figure:
    """ROC curves, name -> curve, over a logarithmic FAR axis, with the TAR of each marked at `far`."""
    left = 10.0 ** math.floor(math.log10(min([far / 2, *(1 / curve.different_pairs for curve in curves.values())])))
    figure, axes = new_figure(title, "false accept rate (log scale)", "true accept rate")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+00", ""))
    axes.set_xlim(left, 1)
    axes.axvline(far, color=INK, linewidth=0.8, linestyle=_DOTTED, zorder=1)
    bottom = 1.0
    for index, (name, curve) in enumerate(curves.items()):
        tar = curve.tar_at_far(far)
        x, y = _visible_points(curve, left)
        bottom = min(bottom, y[0])
        label = f"{name}   TAR {100 * tar:.2f} %   AUC {100 * curve.auc:.2f} %"
        axes.plot(x, y, drawstyle="steps-post", linewidth=1.8, label=label, **style_of(index))
        axes.plot([far], [tar], "o", color=colour_of(index), markersize=5, markeredgecolor=PAPER, clip_on=False, zorder=4)
    bottom = math.floor(10 * bottom) / 10 if bottom > 0.5 else 0.0
    axes.set_ylim(bottom, 1 + 0.01 * (1 - bottom))
    axes.text(far, bottom, f" FAR {far:g}", fontsize=8, color=INK, va="bottom")
    add_legend(axes, title=f"TAR at FAR {far:g}, area under the curve", title_fontsize=8.5, alignment="left")
    return figure


def _visible_points(curve: Roc, left: float) -> tuple[np.ndarray, np.ndarray]:
    """FAR and TAR from the axis's left end on; at most about _MOST_POINTS, evenly spaced over log FAR."""
    visible = curve.far >= left
    at_left = curve.tar[~visible].max(initial=0.0)
    far, tar = curve.far[visible], curve.tar[visible]
    if len(far) > _MOST_POINTS:
        wanted = np.geomspace(left, 1, _MOST_POINTS)
        kept = np.unique(np.append(np.searchsorted(far, wanted, side="right").clip(1) - 1, len(far) - 1))
        far, tar = far[kept], tar[kept]
    return np.append(left, far), np.append(at_left, tar)


def draw_det(curves: Mapping[str, Roc], title: str = "Detection error trade-off (DET)") -> Figure:
    """FNMR over FMR, name -> curve, on normal-deviate axes, on which normally distributed scores yield straight lines.

    The part of a curve at which fewer than ten false matches are expected is dotted.
    """
    ticks = np.array([1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99])
    figure, axes = new_figure(title, "false match rate", "false non-match rate")
    labels = [rate_label(tick) if tick < 1e-3 else f"{100 * tick:g} %" for tick in ticks]
    axes.set_xticks(_deviate(ticks), labels=labels)
    axes.set_yticks(_deviate(ticks), labels=labels)
    left = 1 / (2 * max(curve.different_pairs for curve in curves.values()))
    seen = []
    for index, (name, curve) in enumerate(curves.items()):
        far, tar = _visible_points(curve, left)
        bound = 1 / (2 * curve.same_pairs)  # FNMR 0 and 1 are infinitely far away
        x, y = _deviate(far.clip(max=1 - left)), _deviate((1 - tar).clip(bound, 1 - bound))
        seen.append(y[far < _MOST_FMR])
        known = far >= LEAST_FALSE_MATCHES / curve.different_pairs
        for shown, line, label in ((slice(None), "dotted", None), (known, "solid", name)):
            axes.plot(
                x[shown], y[shown], drawstyle="steps-post", linewidth=1.6, color=colour_of(index), linestyle=line, label=label
            )
    axes.set_xlim(*_deviate(np.array([left, _MOST_FMR])))
    axes.set_ylim(np.concatenate(seen).min() - 0.1, np.concatenate(seen).max() + 0.1)
    add_legend(axes, title="dotted: fewer than 10 false matches", title_fontsize=8.5, alignment="left")
    return figure


def _deviate(rates: np.ndarray) -> np.ndarray:
    """The quantiles of the standard normal distribution."""
    return torch.special.ndtri(torch.from_numpy(rates)).numpy()


def draw_discard(curves: Mapping[str, DiscardCurve], title: str, limit: float = 0.5) -> Figure:
    """Error-versus-discard curves, name -> curve; the first and the last, oracle and random order, are grey."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = new_figure(title, "discarded images, the worst first", "false non-match rate of the remaining pairs")
    for index, (name, curve) in enumerate(curves.items()):
        style = style_of(index - 1)
        if index in (0, len(curves) - 1):
            style = {"color": INK, "linestyle": "dotted" if index else "dashed"}
        x, y = np.append(curve.discarded, 1.0), np.append(curve.fnmr, curve.fnmr[-1])
        axes.plot(x, y, drawstyle="steps-post", linewidth=1.6, label=name, **style)
    axes.set_xlim(0, limit)
    axes.set_ylim(0, 1.4 * max(curve.fnmr[0] for curve in curves.values()) or 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    add_legend(axes, ncols=3, loc="upper right")
    return figure


def draw_cmc(searches: Mapping[str, Search], title: str) -> Figure:
    """Cumulative match curves, name -> search: the share of probes whose mate is among the first n, n = 1 … 50."""
    figure, axes = new_figure(title, "rank (log scale)", "identification rate")
    axes.set_xscale("log")
    axes.set_xlim(0.93, _MOST_RANKS)
    axes.set_xticks([1, 2, 5, 10, 20, 50], labels=["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    ranks = np.arange(1, _MOST_RANKS + 1)
    bottom = 1.0
    for index, (name, found) in enumerate(searches.items()):
        rates = found.cmc(_MOST_RANKS)
        bottom = min(bottom, rates[0])
        axes.plot(ranks, rates, linewidth=1.8, label=f"{name}   rank 1 {100 * rates[0]:.2f} %", **style_of(index))
        axes.plot([1], rates[:1], "o", color=colour_of(index), markersize=5, markeredgecolor=PAPER, clip_on=False, zorder=4)
    bottom = np.floor(10 * bottom) / 10
    axes.set_ylim(max(0.0, bottom - 0.05), 1.02 if bottom < 0.9 else 1.005)
    add_legend(axes, loc="lower right")
    return figure


# -------------------------------------------------------------------------------------------------- histograms


def draw_histograms(
    samples: Mapping[str, np.ndarray], x_label: str, title: str = "", density: bool = False, mark: tuple[float, str] | None = None
) -> Figure:
    """Overlaid histograms, name -> values; `mark`: a vertical line at a value, with its label."""
    figure, axes = new_figure(title, x_label, "density" if density else "images")
    edges = _edges(list(samples.values()), 40)
    for index, (name, values) in enumerate(samples.items()):
        _add_histogram(axes, values, edges, colour_of(index), f"{name} ({len(values):,})", density)
    if mark is not None:
        axes.axvline(mark[0], color=INK, linewidth=1, linestyle=_DOTTED, label=mark[1])
    add_legend(axes)
    return figure


def draw_similarities(
    encoders: Mapping[str, Mapping[str, Search]], distances: Sequence[str] = tuple(DISTANCES.values())
) -> Figure:
    """The paper's figure 6, one panel per distance: similarities of SCface's probes with their own mugshot (filled) and with
    the most similar other one (outline).

    encoders: name -> distance (d1 … d3) -> search. distances: those to show; the range of the x axis covers all. The gain is
    the difference between the two mean similarities. With two encoders, titles state the improvement of the gain of the first
    relative to that of the second, as in the paper, if the second gains anything.
    """
    figure, unused = new_figure("", "", "")
    unused.remove()
    metres = {name: METRES[distance] for distance, name in DISTANCES.items()}
    shown = [name for name in distances if all(name in searches for searches in encoders.values())]
    every = [found for searches in encoders.values() for found in searches.values()]
    edges = _edges([score[found.mated] for found in every for score in (found.mate_score, found.other_score)], 40)
    figure.set_size_inches(3.5 * len(shown), 3.8)
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, shown, strict=True):
        gains = []
        for index, (encoder, searches) in enumerate(encoders.items()):
            found = searches[name]
            own, other = found.mate_score[found.mated], found.other_score[found.mated]
            gains.append(own.mean() - other.mean())
            label = f"{encoder}\ngain {gains[-1]:+.3f}"
            _add_histogram(panel, own, edges, colour_of(index), label, density=True)
            _add_histogram(panel, other, edges, colour_of(index), "most similar other", density=True, filled=False)
        improved = f": {gains[0] / gains[1] - 1:+.0%}" if len(gains) == 2 and gains[1] > 0 else ""
        decorate(panel, f"{name} ({metres[name]} m){improved}", "cosine similarity", "density" if panel is panels[0] else "")
        panel.locator_params(axis="x", nbins=5)
        add_legend(panel, loc="upper left")
    panels[0].set_ylim(top=1.4 * max(panel.dataLim.y1 for panel in panels))  # room for the legends
    return figure


def _edges(samples: Sequence[np.ndarray], bins: int) -> np.ndarray:
    values = np.concatenate(samples)
    return np.linspace(values.min(), max(values.max(), values.min() + 1e-6), bins + 1)


def _add_histogram(
    axes: Axes, values: np.ndarray, edges: np.ndarray, colour: str, label: str, density: bool, filled: bool = True
) -> None:
    axes.hist(
        values,
        list(edges),
        density=density,
        histtype="stepfilled",
        facecolor=(colour, 0.3) if filled else "none",
        edgecolor=colour,
        linestyle="-" if filled else "--",
        linewidth=1.2 if filled else 1.5,
        label=label,
    )


# -------------------------------------------------------------------------------------------------- curves and maps


@dataclass(frozen=True)
class Curve:
    """colour: index into the palette; default: the curve's place in the figure."""

    label: str
    x: np.ndarray
    y: np.ndarray
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: int


def draw_curves(
    curves: Sequence[Curve],
    title: str,
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    log: bool = False,
    percent: bool = False,
    y_limits: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """Curves over steps or angles, above `bands`. percent: the values are shares 0..1."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    figure, axes = new_figure(title, x_label, y_label)
    for band in bands:
        (x, low), (_, high) = _thinned(band.x, band.low), _thinned(band.x, band.high)
        axes.fill_between(x, low, high, color=colour_of(band.colour), alpha=0.17, linewidth=0)
    for index, curve in enumerate(curves):
        x, y = _thinned(curve.x, np.where(curve.y > 0, curve.y, np.nan) if log else curve.y)
        colour = colour_of(index if curve.colour is None else curve.colour)
        line = "--" if curve.dashed else "-"
        marker = "o" if len(x) <= _FEW_POINTS else ""
        axes.plot(x, y, color=colour, linestyle=line, linewidth=1.6, marker=marker, markersize=4, label=curve.label)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(*y_limits)
    if len(curves) > 1:
        add_legend(figure, loc="outside lower center", ncols=2)
    return figure


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The finite points; if there are many, means of neighbours."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= _MOST_POINTS // 4:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS // 4)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


@dataclass(frozen=True)
class GradientMap:
    """|g|, the weight of a sample in the gradient, by norm and angle to its class (QGFace, figure 2).

    norms: [K]. degrees: [M]. values: [M, K]. border: the norm at which u equals `threshold`; None without a partition.
    slices: quality z-hat -> (its norm, |g| over `degrees` [M]).
    """

    norms: np.ndarray
    degrees: np.ndarray
    values: np.ndarray
    slices: Mapping[float, tuple[float, np.ndarray]]
    border: float | None = None
    threshold: float | None = None


def draw_gradient_scale(shown: GradientMap) -> Figure:
    """The gradient map, with the partition's border."""
    figure, axes = new_figure("Gradient scale |g|", "norm of the feature", "angle to own class, degrees")
    extent = (shown.norms[0], shown.norms[-1], shown.degrees[0], shown.degrees[-1])
    image = axes.imshow(shown.values, origin="lower", aspect="auto", extent=extent, cmap="cividis")
    axes.grid(False)
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_edgecolor(INK)
    if shown.border is not None and shown.norms[0] <= shown.border <= shown.norms[-1]:
        axes.axvline(shown.border, color=_ON_MAP, linewidth=1.2, linestyle="--")
        axes.text(shown.border, 2, f" u = {shown.threshold:g}", color=_ON_MAP, fontsize=9)
    return figure
