"""IJB-S: people in surveillance videos, searched among photographs or other videos.

A template's feature is the sum of the raw features of its crops, normalised when it is searched. Each probe is searched in the
two galleries together (closed set: ranks, over probes whose subject is there), and in each of them (open set: the other's
subjects are unknown). A template without crops cannot be found: a mated probe without crops, and one whose mates have none, are
failures at every rank. An unmated probe without crops raises no false alarm.

Shapes: A appearances (a subject in a video or image), T templates, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eval.protocols.identification import NEVER, NOBODY, Search, search, search_metrics
from eval.protocols.ijbs_files import PROTOCOLS, Crops, Protocol, Template
from utils.errors import UserError

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
CROPS_AT_ONCE = 1 << 16  # 134 MB of features of size 512


def sum_features(crops: Crops, embed: Callable[[range], np.ndarray]) -> np.ndarray:
    """The sums of raw and of normalised features per appearance: float64 [A, 2 D].

    embed: crops -> features [n, D]. It receives `CROPS_AT_ONCE` crops at a time, so that never all features are in memory.
    """
    sums = np.zeros((0, 0))
    for first in range(0, len(crops), CROPS_AT_ONCE):
        part = range(first, min(first + CROPS_AT_ONCE, len(crops)))
        rows = embed(part).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.hstack([rows, rows / np.where(lengths == 0, 1.0, lengths)])
        sums = sums if sums.size else np.zeros((len(crops.folders), rows.shape[1]))
        owners = crops.owners[part.start : part.stop]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        np.add.at(sums, owners[starts], np.add.reduceat(rows, starts, axis=0))
    return sums


def check_protocols(protocols: Sequence[Protocol], crops: Crops) -> None:
    """Raise UserError unless probes and galleries have crops, and each gallery contains some of the probes' subjects."""
    for protocol in protocols:
        title = f"{crops.root}: IJB-S, {PROTOCOLS[protocol.name]}"
        probes = _subjects(protocol.probes)
        for name, templates in (("probes", protocol.probes), *zip(("g1", "g2"), protocol.galleries, strict=True)):
            if not any(_rows(template, crops) for template in templates):
                raise UserError(f"{title}: none of the {len(templates)} templates of {name} has crops")
            mated = np.isin(probes, _subjects(templates))
            if name != "probes" and (mated.all() or not mated.any()):
                raise UserError(
                    f"{title}: {name} contains {'all' if mated.all() else 'none'} of the probes' subjects; expected some"
                )


def search_protocol(protocol: Protocol, crops: Crops, sums_AD: np.ndarray) -> tuple[dict[str, float], Search]:
    """Search the probes. Returns the metrics, and the search in both galleries together.

    Metrics: rank1, rank5, rank10; `dir@fpir=0.01`, `dir@fpir=0.1` (`Search.detection_rate`, mean of the two galleries);
    `mated_probes`, `unmated_probes`; `probes_without_crops`, `gallery_without_crops`: templates.
    """
    together = [template for gallery in protocol.galleries for template in gallery]
    closed = _search(protocol.probes, together, crops, sums_AD)
    opened = [_search(protocol.probes, gallery, crops, sums_AD) for gallery in protocol.galleries]
    rates = {f"dir@fpir={fpir:g}": float(np.mean([found.detection_rate(fpir) for found in opened])) for fpir in FPIRS}
    lost = {
        f"{name}_without_crops": sum(not _rows(template, crops) for template in templates)
        for name, templates in (("probes", protocol.probes), ("gallery", together))
    }
    return {**search_metrics(closed, RANKS), **rates, **lost}, closed


def _search(probes: Sequence[Template], gallery: Sequence[Template], crops: Crops, sums_AD: np.ndarray) -> Search:
    probe_ids, gallery_ids = _subjects(probes), _subjects(gallery)
    probe_places, probes_TD = _features(probes, crops, sums_AD)
    gallery_places, gallery_TD = _features(gallery, crops, sums_AD)
    found = search(probes_TD, probe_ids[probe_places], gallery_TD, gallery_ids[gallery_places], "IJB-S")
    mate_score, other_score = np.full(len(probes), NOBODY), np.full(len(probes), NOBODY)
    mate_score[probe_places], other_score[probe_places] = found.mate_score, found.other_score
    rank = np.where(np.isin(probe_ids, gallery_ids), NEVER, 0)
    rank[probe_places] = np.where(found.mated, found.rank, rank[probe_places])
    return Search(mate_score, other_score, rank)


def _features(templates: Sequence[Template], crops: Crops, sums_AD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The templates that have crops, int64 [T], and their sums, float64 [T, D]."""
    rows = {place: found for place, template in enumerate(templates) if (found := _rows(template, crops))}
    return np.array(list(rows)), np.array([sums_AD[found].sum(axis=0) for found in rows.values()])


def _rows(template: Template, crops: Crops) -> list[int]:
    """The appearances of a template that have crops."""
    keys = ((template.subject, source) for source in template.sources)
    return [crops.row_of[key] for key in keys if key in crops.row_of]


def _subjects(templates: Sequence[Template]) -> np.ndarray:
    return np.array([template.subject for template in templates], np.int64)
