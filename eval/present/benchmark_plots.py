"""Figures of the identification benchmarks: cumulative match curves, and SCface's similarities (the paper's figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eval.present.plots import COLOURS, INK, LINE_STYLES, new_figure, save_figure
from eval.protocols.identification import Search
from eval.protocols.scface import DISTANCES, METRES

MOST_RANKS = 50


def plot_cmc(searches: Mapping[str, Search], path: str | Path, title: str) -> list[Path]:
    """Draws the share of probes whose mate is among the first n, n = 1 … 50, name -> search; returns the files written."""
    figure, axes = new_figure(title, "rank (log scale)", "identification rate")
    axes.set_xscale("log")
    axes.set_xlim(0.93, MOST_RANKS)
    axes.set_xticks([1, 2, 5, 10, 20, 50], labels=["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    ranks = np.arange(1, MOST_RANKS + 1)
    bottom = 1.0
    for index, (name, found) in enumerate(searches.items()):
        rates = found.cmc(MOST_RANKS)
        bottom = min(bottom, rates[0])
        colour, style = COLOURS[index % len(COLOURS)], LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
        label = f"{name}   rank 1 {100 * rates[0]:.2f} %"
        axes.plot(ranks, rates, color=colour, linestyle=style, linewidth=1.8, label=label)
        axes.plot([1], rates[:1], "o", color=colour, markersize=5, markeredgecolor="white", clip_on=False, zorder=4)
    bottom = np.floor(10 * bottom) / 10
    axes.set_ylim(max(0.0, bottom - 0.05), 1.02 if bottom < 0.9 else 1.005)
    axes.legend(loc="lower right", fontsize=8.5, framealpha=0.9, edgecolor="none", labelcolor=INK)
    return save_figure(figure, path)


def plot_similarities(encoders: Mapping[str, Mapping[str, Search]], path: str | Path) -> list[Path]:
    """The paper's figure 6: histograms of the similarity of SCface's probes with their own mugshot, a panel a distance, for
    each of up to a few encoders (name -> distance d1 … d3 -> search). The gain is how far the mean lies above the mean
    similarity with the most similar other person. Returns the files written.
    """
    figure, axes = new_figure("", "", "")
    axes.remove()
    figure.set_size_inches(10.5, 3.8)
    names = [name for name in DISTANCES.values() if all(name in searches for searches in encoders.values())]
    metres = {name: METRES[distance] for distance, name in DISTANCES.items()}
    values = [found.mate_score[found.mated] for searches in encoders.values() for found in searches.values()]
    low, high = min(part.min() for part in values), max(part.max() for part in values)
    edges = np.linspace(low - 0.02, high + 0.02, 41)
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        for index, (encoder, searches) in enumerate(encoders.items()):
            found, colour = searches[name], COLOURS[index % len(COLOURS)]
            matched = found.mate_score[found.mated]
            gain = matched.mean() - found.other_score[found.mated].mean()
            panel.hist(matched, edges, density=True, color=colour, alpha=0.45, label=f"{encoder}\ngain {gain:+.3f}")
            panel.axvline(matched.mean(), color=colour, linewidth=1.6)
            panel.axvline(found.other_score[found.mated].mean(), color=colour, linewidth=1.3, linestyle=(0, (2, 2)))
        panel.set_title(f"{name} ({metres[name]} m)", loc="left", fontsize=11, fontweight="bold", color=INK)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=INK, labelsize=9)
        panel.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left")
        panel.set_xlabel("cosine similarity with the own mugshot", color=INK, fontsize=9)
    panels[0].set_ylabel("density", color=INK)
    panels[0].set_ylim(top=1.3 * max(panel.dataLim.y1 for panel in panels))  # room for the legends
    figure.suptitle(
        "SCface, matched similarity by distance   (line: its mean, dotted: mean of the most similar other person)",
        fontsize=10, color=INK,
    )  # fmt: skip
    return save_figure(figure, path)
