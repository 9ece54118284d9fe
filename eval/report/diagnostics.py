"""The report's sections on what the training has shown of itself: norms and shares by view, the queue's drift, gradient scale."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from eval.present.gradient_scale import AdaFaceScale
from eval.report import page, svg
from eval.report.measure import Measured
from eval.report.read import Run
from eval.report.sections import norm_histograms

_VIEWS = {"original": "originals", "augmented": "augmented views"}
_WIDEST = 100.0  # degrees
_SHOWN_QUALITIES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def norms(run: Run, found: Measured) -> str:
    """Norms and shares of both views over training, and the finished encoder's norms."""
    drawn = [*_over_training(run), *_shares(run)]
    parts = []
    if drawn:
        text = "A batch every few steps. Bands: 5 to 95 % and 25 to 75 % of the images; the line between them is the median."
        parts += [page.heading("Over training"), page.paragraph(text), page.figures(*drawn)]
    if histograms := norm_histograms(found):
        parts += [page.heading("By the finished encoder")] if drawn else []
        parts.append(page.figures(*histograms))
    return page.section("norms", "Feature norms", *parts) if parts else ""


def _over_training(run: Run) -> list[str]:
    told = run.diagnostics
    views = {view: title for view, title in _VIEWS.items() if f"{view}/norm_p50" in told}
    if not views:
        return []
    seen = [values for name, values in told.items() if "/norm_p" in name or name == "threshold_norm"]
    x, y = svg.axis("step", told["step"]), svg.axis("norm", np.concatenate(seen))
    drawn = []
    for colour, (view, title) in enumerate(views.items()):
        quantile = {level: told[f"{view}/norm_p{level}"] for level in ("05", "25", "50", "75", "95")}
        bands = [svg.Band(told["step"], quantile["05"], quantile["95"], colour),
                 svg.Band(told["step"], quantile["25"], quantile["75"], colour)]  # fmt: skip
        series = [svg.Series("median", told["step"], quantile["50"], colour=colour)]
        if "threshold_norm" in told:
            name = f"threshold, u = {run.config.get('quality_threshold', 'b')}"
            series.append(svg.Series(name, told["step"], told["threshold_norm"], dashed=True, colour=6))
        chart = svg.lines(series, x, y, f"norms of {title}", bands=bands)
        drawn.append(page.figure(f"Norms of {title}", chart))
    return drawn


def _shares(run: Run) -> list[str]:
    told = run.diagnostics
    names = {f"{view}/high_quality_share": f"HQ, {title}" for view, title in _VIEWS.items()}
    names["low_quality_pair_share"] = "LQ pairs"
    figures = {
        # without a threshold there are no two sides
        "Above the threshold": (names if "threshold_norm" in told else {}, "% of the images of each view; pairs at or below it"),
        "Is the norm the quality?": (
            {"augmented_norm_smaller_share": "augmented below original"},
            "% of the pairs whose augmented view has the smaller norm; 50: the norm knows nothing, 100: it is a perfect measure",
        ),
    }
    drawn = []
    for title, (shown, note) in figures.items():
        known = {name: label for name, label in shown.items() if name in told}
        series = [svg.Series(label, told["step"], told[name], dashed="pair" in name) for name, label in known.items()]
        if series:
            chart = svg.lines(series, svg.axis("step", told["step"]), svg.Axis("share", 0.0, 1.0), title, svg.percent)
            drawn.append(page.figure(title, chart, note))
    return drawn


def differences(run: Run) -> str:
    """The paper's figure 3b, where pair_differences.json is there, and how near the queue is to the encoder of the moment."""
    told = {queue: curves for queue, curves in run.differences.items() if len(curves["steps"])}
    if not told:
        return ""
    drawn = []
    for kind, note in (("positive", "same person, other images"), ("negative", "other people")):
        drawn.append(_curves(told, kind, f"Mean difference of {kind} pairs", f"1 - cosine; {note}"))
    parts = []
    if with_cosine := {queue: curves for queue, curves in told.items() if "cosine" in curves}:
        drawn.append(_curves(with_cosine, "cosine", "Queue entry and encoder now", _ages(with_cosine)))
        means = [[queue, *(f"{np.nanmean(curves[key]):.4f}" if np.isfinite(curves[key]).any() else "–"
                           for key in ("positive", "negative", "cosine"))] for queue, curves in with_cosine.items()]  # fmt: skip
        parts.append(page.table(["mean over training", "positive", "negative", "cosine with now"], means))
    text = (
        "Entries of the queue against features that the encoder gives afresh: fresh augmented views against all entries, and "
        "entries against the same view of the same image, encoded again."
    )
    return page.section("differences", "Pair differences by queue", page.paragraph(text), page.figures(*drawn), *parts)


def _curves(told: dict[str, dict[str, np.ndarray]], key: str, title: str, note: str) -> str:
    series = [svg.Series(queue, curves["steps"], curves[key]) for queue, curves in told.items()]
    x = svg.axis("step", np.concatenate([each.x for each in series]))
    y = svg.axis("difference", np.concatenate([each.y for each in series]))
    return page.figure(title, svg.lines(series, x, y, f"{title}, by queue", partial(_fixed, svg.digits(y))), note)


def _fixed(digits: int, value: float) -> str:
    return f"{value:.{digits}f}"


def _ages(told: dict[str, dict[str, np.ndarray]]) -> str:
    ages = np.unique(np.concatenate([curves["age"] for curves in told.values() if "age" in curves] or [np.empty(0)]))
    if not len(ages):
        return "cosine, same view of the same image"
    span = f"{ages[0]:.0f}" if len(ages) == 1 else f"{ages[0]:.0f} to {ages[-1]:.0f}"
    return f"cosine, same view of the same image, {span} update{'' if span == '1' else 's'} later"


def gradients(run: Run) -> str:
    """The paper's figure 2, for runs with AdaFace's margin: by the run's own m, s, C, mu and sigma."""
    config, trained = run.config, run.training
    needed = ("margin_m", "scale", "num_classes", "quality_concentration")
    if config.get("margin") != "adaface" or not all(config.get(key) for key in needed) or "quality_std" not in trained:
        return ""
    mean, std = float(trained["quality_mean"][-1]), float(trained["quality_std"][-1])
    scale = AdaFaceScale(config["margin_m"], config["scale"], config["num_classes"], mean, std, config["quality_concentration"])
    marks = []
    if config.get("quality_threshold") is not None and config.get("partition", "norm") == "norm":
        threshold = 2 * config["quality_threshold"] - 1
        marks = [(scale.norm_of(threshold), f"u = {config['quality_threshold']:g}")]
    text = (
        f"How hard a sample pulls at its class: |g| = (1 - P) df/dcos of AdaFace's margin with m = {scale.margin:g}, "
        f"s = {scale.scale:g}, and the quality statistics that the run ended with, μ = {mean:.2f}, σ = {std:.2f}. P is that of "
        f"{scale.classes:,} classes, all others at 90 degrees."
    )
    shown = page.figures(_map(scale, marks), _slices(scale))
    return page.section("gradients", "Gradient scale by norm and angle", page.paragraph(text), shown)


def _map(scale: AdaFaceScale, marks: list[tuple[float, str]]) -> str:
    norm, degrees, values = scale.grid()
    x, y = svg.Axis("norm", float(norm[0]), float(norm[-1])), svg.Axis("angle", float(degrees[0]), float(degrees[-1]))
    chart = svg.heat(values, x, y, "gradient scale by norm and angle", _degrees, marks)
    return page.figure("|g| by norm and angle", chart, "upwards: angle to the own class; to the right: norm")


def _slices(scale: AdaFaceScale) -> str:
    degrees = np.linspace(1, _WIDEST, 240)
    series = [
        svg.Series(f"ẑ = {quality:g}, norm {_bound(quality)}{scale.norm_of(quality):.1f}", degrees,
                   np.abs(scale.term(np.radians(degrees), np.array(quality)))) for quality in _SHOWN_QUALITIES
    ]  # fmt: skip
    y = svg.axis("|g|", np.concatenate([each.y for each in series]), low=0.0)
    chart = svg.lines(series, svg.Axis("angle to the own class, degrees", 0.0, _WIDEST), y, "gradient scale by angle")
    return page.figure("|g| by angle", chart, "at five qualities")


def _bound(quality: float) -> str:
    return "" if math.fabs(quality) < 1 else ("≤ " if quality < 0 else "≥ ")


def _degrees(value: float) -> str:
    return f"{value:g}°"
