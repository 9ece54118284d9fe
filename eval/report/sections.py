"""The sections of the report, each from what was read and measured to HTML."""

from __future__ import annotations

import numpy as np

from eval.present import paper
from eval.present.benchmark_tables import summary_row
from eval.present.tables import NOT_MEASURED
from eval.protocols.scface import DISTANCES, METRES
from eval.report import page, svg
from eval.report.measure import Measured
from eval.report.read import Results, Run

PAIRS_SHOWN = 12  # of either kind

_CURVES = (
    ("Losses", "loss", {"loss": "total", "loss_classification": "classification", "loss_contrastive": "contrastive"}, False),
    ("What learns from what", "share", {"high_quality_share": "features classified (HQ)",
                                        "low_quality_pair_share": "pairs contrasted (LQ)"}, False),
    ("Feature norms", "norm", {"norm_mean": "mean of the step", "quality_mean": "moving mean μ",
                               "quality_std": "moving deviation σ"}, False),
    ("Learning rate", "", {"lr": "learning rate"}, False),
    ("Gradient norm", "", {"gradient_norm": "gradient norm"}, True),
    ("Speed", "images a second", {"images_per_second": "speed"}, False),
)  # fmt: skip


def training(run: Run) -> str:
    """Curves of metrics.jsonl. A quantity that is zero throughout, such as a loss that the run does not have, is left out."""
    if not len(run.training.get("step", ())):
        return page.section("training", "Training", page.paragraph("No step has been reported yet."))
    steps, drawn = run.training["step"], []
    for title, note, names, log in _CURVES:
        series = [svg.Series(label, steps, run.training[name], dashed=label == "classification") for name, label in names.items()
                  if name in run.training and (run.training[name] != 0).any()]  # fmt: skip
        if not series:
            continue
        values = np.concatenate([each.y for each in series])
        log = log and bool((values > 0).any()) and float(values.max()) / max(float(values[values > 0].min()), 1e-12) > 30
        low, high = (0.0, 1.0) if note == "share" else (None if log else min(0.0, float(np.nanmin(values))), None)
        y = svg.axis(title, values, log=log, low=low, high=high)
        chart = svg.lines(series, svg.axis("step", steps), y, title)
        drawn.append(page.figure(title, chart, ", ".join(filter(None, [note, "log scale" if log else ""]))))
    return page.section("training", "Training", page.figures(*drawn))


def verification(run: Run) -> str:
    if not run.verification:
        return ""
    drawn = []
    for title, metric in (("Accuracy, ten folds", "accuracy"), ("TAR at FAR 1e-3", "tar@far=1e-3")):
        series = [svg.Series(name, *metrics[metric]) for name, metrics in run.verification.items() if metric in metrics]
        if series:
            y = svg.axis(title, np.concatenate([each.y for each in series]))
            x = svg.axis("step", np.concatenate([each.x for each in series]).astype(np.float64), low=0)
            chart = svg.lines(series, x, y, f"{title} over training", svg.percent)
            drawn.append(page.figure(title, chart, "%, on people not trained on"))
    return page.section("verification", "Verification during training", page.figures(*drawn))


def results(run: Run) -> str:
    """Verification sets beside the paper's figures, the benchmarks beside its table I, and every figure there is."""
    if not run.results:
        return page.section("results", "Results", page.paragraph("No results.json, and no JSON in the run's eval folder."))
    parts = []
    sets = {name: metrics for name, metrics in run.results.items() if "accuracy" in metrics}
    if sets:
        rows = [[name, f"{_rate(metrics, 'accuracy')} ± {_rate(metrics, 'std')}", _rate(metrics, "tar@far=1e-3"),
                 _rate(metrics, "auc"), f"{metrics.get('pairs', 0):,.0f}"] for name, metrics in sets.items()]  # fmt: skip
        beside = [[f"{name} ({row})", f"{figures[published]:.2f}", *[NOT_MEASURED] * 3] for name in sets
                  if (published := paper.hq_set(name))
                  for row, figures in paper.rows(["II"], [published]) if row.startswith("queue: proxy")]  # fmt: skip
        parts.append(page.table(["verification, %", "accuracy", "TAR at FAR 1e-3", "AUC", "pairs"], rows, beside))
    parts.append(_summary(run))
    every = [[name, metric, f"{value:.6g}"] for name, metrics in run.results.items() for metric, value in metrics.items()
             if isinstance(value, (int, float))]  # fmt: skip
    parts.append(f"<details><summary>Every figure</summary>{page.table(['set', 'metric', 'value'], every)}</details>")
    return page.section("results", "Results", *parts)


def _summary(run: Run) -> str:
    benchmarks: Results = {name: metrics for name, metrics in run.results.items() if "accuracy" not in metrics}
    row = summary_row(benchmarks) if benchmarks else {}
    if not row:
        return ""
    beside = [
        [name, *(f"{figures[column]:.2f}" if column in figures else NOT_MEASURED for column in row)]
        for name, figures in paper.rows(["I"], row)
    ]
    return page.table(["benchmark, %", *row], [[run.path.name, *(f"{value:.2f}" for value in row.values())]], beside)


def _rate(metrics: dict[str, float], name: str) -> str:
    return f"{100 * metrics[name]:.2f}" if name in metrics else NOT_MEASURED


def roc(found: Measured) -> str:
    """ROC over a logarithmic FAR axis, and the similarities that it comes from."""
    if not found.folds:
        note = found.notes.get("roc", "None of the run's verification sets is there; --data-root names a folder with .bin sets.")
        return page.section("roc", "ROC", page.paragraph(note))
    curves = {name: fold.roc for name, fold in found.folds.items()}
    least = min(1 / curve.different_pairs for curve in curves.values())
    x = svg.Axis("false accept rate", 10.0 ** np.floor(np.log10(least)), 1.0, log=True)
    series = []
    for name, curve in curves.items():
        visible = curve.far >= x.low
        left = float(curve.tar[~visible].max(initial=0.0))
        title = f"{name}, AUC {100 * curve.auc:.2f} %"
        series.append(svg.Series(title, np.append(x.low, curve.far[visible]), np.append(left, curve.tar[visible])))
    y = svg.Axis("TAR", 0.0, 1.0)
    chart = svg.lines(series, x, y, "ROC curves", marks=[(1e-3, "FAR 1e-3")], steps=True)
    drawn = [page.figure("ROC", chart, "true accept rate")]
    for name, fold in found.folds.items():
        similarity = 1 - fold.distances / 2
        kinds = [svg.Series("same person", similarity[fold.issame], np.empty(0)),
                 svg.Series("different people", similarity[~fold.issame], np.empty(0))]  # fmt: skip
        x, threshold = svg.axis("cosine similarity", similarity), (fold.similarity_threshold, "threshold")
        chart = svg.histogram(kinds, x, f"similarities of {name}", marks=[threshold])
        drawn.append(page.figure(f"Similarities, {name}", chart))
    return page.section("roc", "ROC and similarities", page.figures(*drawn))


def by_distance(found: Measured) -> str:
    """The paper's figure 6."""
    if not found.searches:
        note = found.notes.get("similarity", "Needs SCface: --data-root names a folder that holds scface/.")
        return page.section("similarity", "Similarity by distance", page.paragraph(note))
    metres = {name: METRES[distance] for distance, name in DISTANCES.items()}
    values = np.concatenate([np.concatenate([s.mate_score[s.mated], s.other_score[s.mated]]) for s in found.searches.values()])
    x, drawn = svg.axis("cosine similarity", values), []
    for name, search in found.searches.items():
        matched, unmatched = search.mate_score[search.mated], search.other_score[search.mated]
        series = [svg.Series("own mugshot", matched, matched), svg.Series("most similar other", unmatched, unmatched)]
        note = f"rank 1 {100 * search.rank_rate(1):.2f} %, gain {matched.mean() - unmatched.mean():+.3f}"
        chart = svg.histogram(series, x, f"similarities at {metres[name]} m", bins=24)
        drawn.append(page.figure(f"{name}, {metres[name]} m", chart, note))
    text = "SCface's probes against the frontal mugshots. Gain: mean similarity with the own one minus that with the best other."
    return page.section("similarity", "Similarity by distance", page.paragraph(text), page.figures(*drawn))


def norm_histograms(found: Measured) -> list[str]:
    """Figures of the finished encoder's norms by view and by quality; none where they were not measured."""
    if found.norms is None:
        return []
    original, augmented = found.norms
    x = svg.axis("norm of the feature", found.norms.reshape(-1))
    views = [svg.Series("originals", original, original), svg.Series("augmented", augmented, augmented)]
    by_view = svg.histogram(views, x, "norms by view", bins=28)
    drawn = [page.figure("By view", by_view, "training images, and their augmented views")]
    if found.u is not None and found.threshold is not None:
        low = found.u.reshape(-1) <= found.threshold
        both = found.norms.reshape(-1)
        grid = np.linspace(x.low, x.high, 2000)
        assert found.quality is not None
        border = float(grid[np.argmax(found.quality(grid) > found.threshold)])
        kinds = [svg.Series("HQ", both[~low], both), svg.Series("LQ", both[low], both)]
        chart = svg.histogram(kinds, x, "norms by quality", bins=28, marks=[(border, f"u = {found.threshold:g}")], density=False)
        drawn.append(page.figure("By quality", chart, "number of images of both views"))
    return drawn


def pairs(found: Measured) -> str:
    """The paper's figure 5: pairs of original and augmented image on both sides of the partition."""
    if found.views is None or found.u is None:
        note = found.notes.get("pairs", "The checkpoint holds no quality statistics.")
        return page.section("pairs", "High and low quality", page.paragraph(note))
    least = found.u.min(axis=0)
    parts = []
    if found.threshold is None:
        order = np.argsort(least)
        groups = [("No partition in this run. Pairs of the highest quality", order[::-1]), ("Pairs of the lowest quality", order)]
    else:
        order = np.arange(len(least))
        groups = [("HQ: both features are classified", order[least > found.threshold]),
                  ("LQ: the pair is contrasted", order[least <= found.threshold])]  # fmt: skip
    for title, chosen in groups:
        share = "" if found.threshold is None else f", {len(chosen)} of {len(least)} pairs"
        shown = "".join(
            page.pair(found.views.originals[i], found.views.augmented[i], found.u[:, i].tolist(), found.threshold)
            for i in chosen[:: 1 if found.threshold is None else max(1, len(chosen) // PAIRS_SHOWN)][:PAIRS_SHOWN].tolist()
        )
        parts.append(f'<h3>{title}{share}</h3><div class="pairs">{shown}</div>')
    limit = "" if found.threshold is None else f", threshold b = {found.threshold:g}"
    text = f"Original and augmented image, with the quality u of each{limit}, judged by the finished encoder."
    return page.section("pairs", "High and low quality", page.paragraph(text), *parts)
