"""The sections of the report, as HTML, from what was read and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from eval.present.plots import (
    Band,
    Curve,
    GradientMap,
    draw_curves,
    draw_det,
    draw_gradient_scale,
    draw_histograms,
    draw_roc,
    draw_similarities,
)
from eval.present.tables import NOT_MEASURED, Table, operating_table, summary_table, verification_table
from eval.protocols.scface import DISTANCES, METRES
from eval.report import page
from eval.report.read import Measured, Run

PAIRS_SHOWN = 12  # of either kind

_TRAINING = (  # title, note, quantity -> label, log scale if the values vary widely
    ("Losses", "", {"loss": "total", "loss_classification": "classification", "loss_contrastive": "contrastive"}, False),
    (
        "What learns from what",
        "",
        {"high_quality_share": "features classified (HQ)", "low_quality_pair_share": "pairs contrasted (LQ)"},
        False,
    ),
    (
        "Feature norms",
        "",
        {"norm_mean": "mean of the step", "quality_mean": "moving mean μ", "quality_std": "moving deviation σ"},
        False,
    ),
    ("Learning rate", "", {"lr": "learning rate"}, False),
    ("Gradient norm", "", {"gradient_norm": "gradient norm"}, True),
    ("Speed", "images per second", {"images_per_second": "speed"}, False),
)
_VIEWS = {"original": "originals", "augmented": "augmented views"}
_LEVELS = ("05", "25", "50", "75", "95")  # quantiles of the norms
_LAST_COLOUR = 6


# -------------------------------------------------------------------------------------------------- results


def results(run: Run) -> str:
    """Verification sets and benchmarks, with the paper's figures, and all figures in a list."""
    if not run.results:
        return page.section("results", "Results", page.paragraph("No results.json, and no JSON in the run's eval folder."))
    parts = []
    sets = {name: metrics for name, metrics in run.results.items() if "accuracy" in metrics}
    if sets:
        parts.append(page.table(verification_table(sets)))
    benchmarks = summary_table(run.path.name, {name: metrics for name, metrics in run.results.items() if name not in sets})
    if len(benchmarks.headings) > 1:
        parts.append(page.table(benchmarks))
    every = [
        [name, metric, f"{value:.6g}"]
        for name, metrics in run.results.items()
        for metric, value in metrics.items()
        if isinstance(value, (int, float))
    ]
    parts.append(f"<details><summary>All figures</summary>{page.table(Table(['set', 'metric', 'value'], every))}</details>")
    return page.section("results", "Results", *parts)


# -------------------------------------------------------------------------------------------------- training


def training(run: Run) -> str:
    """Curves of metrics.jsonl. A quantity that is zero throughout, such as a loss that the run does not have, is left out."""
    if not len(run.training.get("step", ())):
        return page.section("training", "Training", page.paragraph("No step has been reported yet."))
    drawn = []
    for title, note, names, may_be_log in _TRAINING:
        known = {name: label for name, label in names.items() if (run.training.get(name, np.zeros(1)) != 0).any()}
        if not known:
            continue
        curves = [
            Curve(label, run.training["step"], run.training[name], label == "classification") for name, label in known.items()
        ]
        values = np.concatenate([curve.y for curve in curves])
        values = values[np.isfinite(values)]
        shares = all(name.endswith("_share") for name in names)
        log = may_be_log and bool((values > 0).any()) and float(values.max() / values[values > 0].min()) > 30
        limits = (0.0, 1.02) if shares else (None if log else min(0.0, float(values.min(initial=0.0))), None)
        figure = draw_curves(curves, title, "step", "", log=log, percent=shares, y_limits=limits)
        drawn.append(page.chart(figure, title, "log scale" if log else note))
    return page.section("training", "Training", page.figures(*drawn))


def verification(run: Run) -> str:
    """Accuracy and TAR of the verification sets over training."""
    drawn = []
    for title, metric in (("Accuracy, ten folds", "accuracy"), ("TAR at FAR 1e-3", "tar@far=1e-3")):
        curves = [Curve(name, *metrics[metric]) for name, metrics in run.verification.items() if metric in metrics]
        if curves:
            figure = draw_curves(curves, title, "step", "", percent=True)
            drawn.append(page.chart(figure, title, curves[0].label if len(curves) == 1 else ""))
    return page.section("verification", "Verification during training", page.figures(*drawn)) if drawn else ""


# -------------------------------------------------------------------------------------------------- verification, SCface


def roc(found: Measured) -> str:
    """The ROC, and the similarities behind it."""
    if not found.folds:
        note = found.notes.get("roc", "None of the run's verification sets was found; --data-root names a folder with .bin sets.")
        return page.section("roc", "ROC", page.paragraph(note))
    curves = {name: fold.roc for name, fold in found.folds.items()}
    drawn = [page.chart(draw_roc(curves), "ROC"), page.chart(draw_det(curves), "DET", "error rates on normal-deviate axes")]
    for name, fold in found.folds.items():
        similarity = 1 - fold.distances / 2
        kinds = {"same person": similarity[fold.issame], "different people": similarity[~fold.issame]}
        mark = (fold.similarity_threshold, "threshold")
        drawn.append(page.chart(draw_histograms(kinds, "cosine similarity", density=True, mark=mark), f"Similarities, {name}"))
    thresholds = operating_table({name: fold.metrics() for name, fold in found.folds.items()})
    parts = [page.figures(*drawn), page.heading("Thresholds"), page.table(thresholds), page.paragraph(thresholds.note)]
    return page.section("roc", "ROC, thresholds and similarities", *parts)


def by_distance(found: Measured) -> str:
    """The paper's figure 6."""
    if not found.searches:
        note = found.notes.get("similarity", "Needs SCface: --data-root names a folder that contains scface/.")
        return page.section("similarity", "Similarity by distance", page.paragraph(note))
    drawn = []
    for distance, name in DISTANCES.items():
        if name in found.searches:
            note = f"rank 1 {100 * found.searches[name].rank_rate(1):.2f} %"
            figure = draw_similarities({"own mugshot": found.searches}, [name])
            drawn.append(page.chart(figure, f"{name}, {METRES[distance]} m", note, narrow=True))
    text = (
        "SCface's probes against the frontal mugshots. Gain: mean similarity with the own mugshot minus that with the best other."
    )
    return page.section("similarity", "Similarity by distance", page.paragraph(text), page.figures(*drawn))


# -------------------------------------------------------------------------------------------------- quality


def pairs(found: Measured) -> str:
    """The paper's figure 5: pairs of original and augmented image on both sides of the partition."""
    if found.originals is None or found.augmented is None or found.u is None:
        note = found.notes.get("pairs", "The checkpoint has no quality statistics.")
        return page.section("pairs", "High and low quality", page.paragraph(note))
    least = found.u.min(axis=0)
    if found.threshold is None:
        order = np.argsort(least)
        groups = {"No partition in this run. Pairs of the highest quality": order[::-1], "Pairs of the lowest quality": order}
    else:
        kinds = {
            "HQ: both features are classified": least > found.threshold,
            "LQ: the pair is contrasted": least <= found.threshold,
        }
        groups = {}
        for title, mask in kinds.items():
            chosen = np.flatnonzero(mask)
            groups[f"{title}, {len(chosen)} of {len(least)} pairs"] = chosen[:: max(1, len(chosen) // PAIRS_SHOWN)]
    parts = []
    for title, chosen in groups.items():
        shown = "".join(
            page.pair(found.originals[i], found.augmented[i], found.u[:, i].tolist(), found.threshold)
            for i in chosen[:PAIRS_SHOWN].tolist()
        )
        parts.append(f'{page.heading(title)}<div class="pairs">{shown}</div>')
    limit = "" if found.threshold is None else f"; threshold b = {found.threshold:g}"
    text = f"Original and augmented image, with the quality u of each, by the finished encoder{limit}."
    return page.section("pairs", "High and low quality", page.paragraph(text), *parts)


def norms(run: Run, found: Measured) -> str:
    """Norms and shares of both views over training, and the finished encoder's norms."""
    parts = []
    if drawn := [*_norms_over_training(run), *_shares_over_training(run)]:
        text = "One batch every few steps. Bands: 5 to 95 % and 25 to 75 % of the images; the line between them is the median."
        parts += [page.heading("Over training"), page.paragraph(text), page.figures(*drawn)]
    if histograms := _norm_histograms(found):
        parts += [page.heading("Finished encoder"), page.figures(*histograms)]
    return page.section("norms", "Feature norms", *parts) if parts else ""


def _norms_over_training(run: Run) -> list[str]:
    seen = run.diagnostics
    views = {view: title for view, title in _VIEWS.items() if f"{view}/norm_p50" in seen}
    if not views:
        return []
    every = np.concatenate([values for name, values in seen.items() if "/norm_p" in name or name == "threshold_norm"])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)  # the same for both views
    drawn = []
    for colour, (view, title) in enumerate(views.items()):
        p05, p25, p50, p75, p95 = (seen[f"{view}/norm_p{level}"] for level in _LEVELS)
        bands = [Band(seen["step"], p05, p95, colour), Band(seen["step"], p25, p75, colour)]
        curves = [Curve("median", seen["step"], p50, colour=colour)]
        if "threshold_norm" in seen:
            label = f"threshold, u = {run.config.get('quality_threshold', 'b')}"
            curves.append(Curve(label, seen["step"], seen["threshold_norm"], dashed=True, colour=_LAST_COLOUR))
        figure = draw_curves(curves, "", "step", "norm", bands, y_limits=limits)
        drawn.append(page.chart(figure, f"Norms of {title}"))
    return drawn


def _shares_over_training(run: Run) -> list[str]:
    seen = run.diagnostics
    shares = {f"{view}/high_quality_share": f"HQ, {title}" for view, title in _VIEWS.items()}
    shares["low_quality_pair_share"] = "LQ pairs"
    figures = {
        "Above the threshold": (shares if "threshold_norm" in seen else {}, "images of each view, and pairs at or below it"),
        "Does the norm measure the quality?": (
            {"augmented_norm_smaller_share": "augmented below original"},
            "pairs whose augmented view has the smaller norm; 50 %: the norm says nothing about the quality, 100 %: everything",
        ),
    }
    drawn = []
    for title, (shown, note) in figures.items():
        curves = [Curve(label, seen["step"], seen[name], "pair" in name) for name, label in shown.items() if name in seen]
        if curves:
            drawn.append(page.chart(draw_curves(curves, title, "step", "", percent=True, y_limits=(0.0, 1.02)), title, note))
    return drawn


def _norm_histograms(found: Measured) -> list[str]:
    if found.norms is None:
        return []
    original, augmented = found.norms
    by_view = draw_histograms({"originals": original, "augmented": augmented}, "norm of the feature")
    drawn = [page.chart(by_view, "By view", "training images, and their augmented views")]
    if found.u is not None and found.threshold is not None:
        low = found.u <= found.threshold
        mark = None if found.border is None else (found.border, f"u = {found.threshold:g}")
        by_quality = draw_histograms({"HQ": found.norms[~low], "LQ": found.norms[low]}, "norm of the feature", mark=mark)
        drawn.append(page.chart(by_quality, "By quality", "images of both views"))
    return drawn


# -------------------------------------------------------------------------------------------------- queue, gradients


def differences(run: Run) -> str:
    """The paper's figure 3b, and how close the queue's entries are to the current encoder, from pair_differences.json."""
    known = {queue: curves for queue, curves in run.differences.items() if len(curves["steps"])}
    if not known:
        return ""
    kinds = {
        "positive": ("positive pairs", "same person, other images"),
        "own_key": ("queries and own keys", "the paper's positive pairs: augmented view and own original"),
        "negative": ("negative pairs", "other people"),
    }
    drawn = []
    for kind, (title, note) in kinds.items():
        if measured := {queue: curves for queue, curves in known.items() if kind in curves}:
            drawn.append(_difference_curves(measured, kind, f"Mean difference of {title}", f"1 - cosine; {note}"))
    parts = []
    if with_cosine := {queue: curves for queue, curves in known.items() if "cosine" in curves}:
        drawn.append(_difference_curves(with_cosine, "cosine", "Queue entry and current encoder", _age_note(with_cosine)))
        keys = ("positive", "own_key", "negative", "cosine")
        means = [[queue, *(_mean(curves.get(key, np.empty(0))) for key in keys)] for queue, curves in with_cosine.items()]
        headings = ["mean over training", "positive", "own key", "negative", "cosine with current"]
        parts.append(page.table(Table(headings, means)))
    text = (
        "Entries of the queue against features from the current encoder: new augmented views against all entries, and entries "
        "against the same view of the same image, encoded again."
    )
    return page.section("differences", "Pair differences by queue", page.paragraph(text), page.figures(*drawn), *parts)


def _difference_curves(known: Mapping[str, Mapping[str, np.ndarray]], key: str, title: str, note: str) -> str:
    curves = [Curve(queue, values["steps"], values[key]) for queue, values in known.items()]
    note += "" if len(curves) > 1 else f"; {curves[0].label}"
    return page.chart(draw_curves(curves, title, "step", ""), title, note, narrow=True)


def _mean(values: np.ndarray) -> str:
    return f"{np.nanmean(values):.4f}" if np.isfinite(values).any() else NOT_MEASURED


def _age_note(known: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    ages = np.unique(np.concatenate([np.empty(0), *(curves["age"] for curves in known.values() if "age" in curves)]))
    if not len(ages):
        return "cosine, same view of the same image"
    span = f"{ages[0]:.0f}" if len(ages) == 1 else f"{ages[0]:.0f} to {ages[-1]:.0f}"
    return f"cosine, same view of the same image, {span} update{'' if span == '1' else 's'} later"


def gradients(run: Run, shown: GradientMap | None) -> str:
    """The paper's figure 2, for runs with AdaFace's margin and the quality statistics at the end of the run."""
    if shown is None:
        return ""
    config, mean, std = run.config, run.training["quality_mean"][-1], run.training["quality_std"][-1]
    text = (
        f"The weight of a sample in the gradient, |g| = (1 - P) df/dcos of AdaFace's margin with m = {config['margin_m']:g}, "
        f"s = {config['scale']:g}, and the run's last quality statistics, μ = {mean:.2f}, σ = {std:.2f}. P is that of "
        f"{config['num_classes']:,} classes, all others at 90 degrees."
    )
    curves = []
    for quality, (norm, values) in shown.slices.items():
        bound = "" if math.fabs(quality) < 1 else ("≤ " if quality < 0 else "≥ ")
        curves.append(Curve(f"ẑ = {quality:g}, norm {bound}{norm:.1f}", shown.degrees, values))
    by_angle = draw_curves(curves, "", "angle to own class, degrees", "|g|", y_limits=(0.0, None))
    drawn = [
        page.chart(draw_gradient_scale(shown), "|g| by norm and angle"),
        page.chart(by_angle, "|g| by angle", "at five qualities"),
    ]
    return page.section("gradients", "Gradient scale by norm and angle", page.paragraph(text), page.figures(*drawn))
