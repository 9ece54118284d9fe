"""Charts as inline SVG. Colours are CSS variables of the page, so that a chart follows its light or dark theme."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import cv2
import numpy as np

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 40  # margins, in the units of the view box
COLOURS = 7  # the page defines --c0 … --c6
MOST_POINTS = 500  # of a curve: more cannot be seen


@dataclass(frozen=True)
class Series:
    """A curve; or, in a histogram, samples (`y` unused). colour: its place among the page's colours, else that in the chart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Band:
    """What lies between two curves."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: int


@dataclass(frozen=True)
class Axis:
    """From data to the picture: `place(value)` in 0..1, ticks and their labels."""

    label: str
    low: float
    high: float
    log: bool = False

    def place(self, values: np.ndarray | float) -> np.ndarray:
        low, high, values = (np.log10(v) if self.log else np.asarray(v) for v in (self.low, self.high, values))
        return np.clip((values - low) / (high - low), 0, 1)

    def ticks(self) -> list[float]:
        if self.log:
            exponents = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**e for e in exponents][:: max(1, len(exponents) // 6)]
        step = _nice((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _nice(rough: float) -> float:
    """The first of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def axis(label: str, values: np.ndarray, log: bool = False, low: float | None = None, high: float | None = None) -> Axis:
    """An axis that holds the finite values (of a logarithmic one, those above zero), with room, or the bounds given."""
    finite = values[np.isfinite(values) & ((values > 0) | (not log))]
    least, most = (float(finite.min()), float(finite.max())) if len(finite) else (0.1, 1.0)
    room = 0.0 if log else 0.04 * (most - least)
    least, most = least - room if low is None else low, most + room if high is None else high
    if most <= least:  # one value only
        least, most = (least / 2, most * 2) if log else (least - 0.5 * (abs(least) or 1), most + 0.5 * (abs(most) or 1))
    return Axis(label, least, most, log)


def number(value: float) -> str:
    """Short, for ticks: 0.05, 12k, 1e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.0e}".replace("e-0", "e-") if abs(value) < 1e-3 else f"{value:.4g}"


def percent(value: float) -> str:
    """A share as a number of per cent, for ticks."""
    return f"{100 * value:.4g}"


def digits(y: Axis) -> int:
    """How many decimals tell an axis's ticks apart."""
    ticks = y.ticks()
    return max(0, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9)) if len(ticks) > 1 else 3


def lines(
    series: Sequence[Series], x: Axis, y: Axis, describe: str, y_format: Callable[[float], str] = number,
    marks: Sequence[tuple[float, str]] = (), steps: bool = False, bands: Sequence[Band] = (),
) -> str:  # fmt: skip
    """Curves with a legend, unless the only one is called as y is. `marks`: vertical lines at values of x, with labels.
    `steps`: a curve keeps its value to the next point. `bands` lie below the curves."""
    body = _frame(x, y, y_format) + "".join(_band(each, x, y) for each in bands) + _marks(x, marks)
    colours = [index if each.colour is None else each.colour for index, each in enumerate(series)]
    for index, each in zip(colours, series, strict=True):
        good = np.isfinite(each.x) & np.isfinite(each.y) & ((each.y > 0) | (not y.log)) & ((each.x > 0) | (not x.log))
        at_x, at_y = _thinned(each.x[good], each.y[good], keep=steps)
        points = _points(x.place(at_x), y.place(at_y))
        if steps and len(points) > 1:
            points = [p for a, b in pairwise(points) for p in (a, (b[0], a[1]))] + [points[-1]]
        path = " ".join(f"{'M' if n == 0 else 'L'}{px:.1f} {py:.1f}" for n, (px, py) in enumerate(points))
        dash = ' stroke-dasharray="5 3"' if each.dashed else ""
        body += f'<path class="line" d="{path}" style="stroke:var(--c{index % COLOURS})"{dash}/>'
        if len(points) <= 12:
            colour = f"fill:var(--c{index % COLOURS})"
            body += "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" style="{colour}"/>' for a, b in points)
    needless = len(series) == 1 and series[0].name.lower() == y.label.lower()
    return _svg(body, describe) + ("" if needless else _legend([each.name for each in series], colours))


def _band(band: Band, x: Axis, y: Axis) -> str:
    good = np.isfinite(band.x) & np.isfinite(band.low) & np.isfinite(band.high)
    if good.sum() < 2:
        return ""
    edges = [_thinned(band.x[good], values[good], keep=False) for values in (band.low, band.high)]
    (low_x, low), (high_x, high) = edges
    points = [*_points(x.place(low_x), y.place(low)), *reversed(_points(x.place(high_x), y.place(high)))]
    path = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    return f'<path class="band" d="{path}Z" style="fill:var(--c{band.colour % COLOURS})"/>'


def heat(
    values: np.ndarray, x: Axis, y: Axis, describe: str, y_format: Callable[[float], str] = number,
    marks: Sequence[tuple[float, str]] = (),
) -> str:  # fmt: skip
    """A map of `values` [rows, columns], 0 or above, the first row at the bottom, with a legend of the colours."""
    most = max(float(values.max()), 1e-12)
    shades = cv2.applyColorMap(np.round(255 * values[::-1] / most).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    done, encoded = cv2.imencode(".png", shades)
    assert done, "OpenCV could not encode a PNG"
    source = f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    picture = f'<image x="{LEFT}" y="{TOP}" width="{width}" height="{height}" preserveAspectRatio="none" href="{source}"/>'
    body = _frame(x, y, y_format) + picture + f'<g class="over">{_marks(x, marks)}</g>'
    scale = cv2.applyColorMap(np.linspace(0, 255, 6).round().astype(np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    items = "".join(
        f'<li><i class="swatch" style="background:rgb({red},{green},{blue})"></i>{most * place / 5:.3g}</li>'
        for place, (red, green, blue) in enumerate(scale.tolist())
    )
    return _svg(body, describe) + f'<ul class="legend">{items}</ul>'


def histogram(
    series: Sequence[Series], x: Axis, describe: str, bins: int = 32, marks: Sequence[tuple[float, str]] = (),
    density: bool = True,
) -> str:  # fmt: skip
    """Densities, or counts, of the samples `x` of each series, one over the other, with a legend."""
    edges = np.linspace(x.low, x.high, bins + 1)
    heights = [np.histogram(each.x, edges, density=density)[0] if len(each.x) else np.zeros(bins) for each in series]
    y = Axis("", 0.0, 1.08 * max([float(np.nanmax(h)) for h in heights] + [1e-9]))
    body = _frame(x, y, number)
    for index, height in enumerate(heights):
        outline_x = np.repeat(edges, 2)
        outline_y = np.concatenate([[0.0], np.repeat(height, 2), [0.0]])
        points = _points(x.place(outline_x), y.place(outline_y))
        path = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        body += f'<path class="area" d="{path}Z" style="fill:var(--c{index % COLOURS});stroke:var(--c{index % COLOURS})"/>'
    return _svg(body + _marks(x, marks), describe) + _legend([f"{each.name} ({len(each.x):,})" for each in series])


def _thinned(x: np.ndarray, y: np.ndarray, keep: bool) -> tuple[np.ndarray, np.ndarray]:
    """At most about MOST_POINTS: means of neighbours, or (`keep`) some of the points themselves."""
    if len(x) <= MOST_POINTS:
        return x, y
    if keep:
        chosen = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
        return x[chosen], y[chosen]
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _points(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """Places 0..1 -> the view box."""
    across = LEFT + x * (WIDTH - LEFT - RIGHT)
    down = HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)
    return list(zip(across.tolist(), down.tolist(), strict=True))


def _frame(x: Axis, y: Axis, y_format: Callable[[float], str]) -> str:
    body = ""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in y.ticks():
        ((_, at),) = _points(np.zeros(1), np.atleast_1d(y.place(tick)))
        body += f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        body += f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(y_format(tick))}</text>'
    for tick in x.ticks():
        ((at, _),) = _points(np.atleast_1d(x.place(tick)), np.zeros(1))
        body += f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        body += f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(number(tick))}</text>'
    body += f'<line class="tick" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    return body + f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end">{escape(x.label)}</text>'


def _marks(x: Axis, marks: Sequence[tuple[float, str]]) -> str:
    body = ""
    for row, (value, label) in enumerate(marks):
        if not x.low <= value <= x.high:
            continue
        ((at, _),) = _points(np.atleast_1d(x.place(value)), np.zeros(1))
        near_end = at > WIDTH * 0.65
        body += f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        body += f'<text class="on" x="{at + (-5 if near_end else 5):.1f}" y="{TOP + 12 + 14 * row}" '
        body += f'text-anchor="{"end" if near_end else "start"}">{escape(label)}</text>'
    return body


def _svg(body: str, describe: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(describe)}">{body}</svg>'


def _legend(names: Sequence[str], colours: Sequence[int] | None = None) -> str:
    items = "".join(
        f'<li><i style="background:var(--c{colour % COLOURS})"></i>{escape(name)}</li>'
        for colour, name in zip(colours or range(len(names)), names, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'
