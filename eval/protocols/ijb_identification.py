"""IJB-B and IJB-C, one to many: the probes of the protocol searched in its galleries.

Two definitions. The protocol's: each probe is searched in each of the two galleries, which share no person; it has a mate in
one, and is a stranger to the other; figures are averaged over the galleries. And `pooled`: what insightface's `ijb_1n`
prints, both galleries in one.
"""

from __future__ import annotations

import numpy as np

from eval.protocols.identification import Search, pooled_metrics, search, search_metrics
from eval.protocols.ijb import Templates
from eval.protocols.ijb_files import Meta, TemplateSubjects
from utils.errors import UserError

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)


def identify(meta: Meta, templates: Templates) -> tuple[dict[str, float], list[Search]]:
    """Figures by both definitions (the second's begin with `pooled_`), and the search in each gallery."""
    meta.need(*meta.gallery_files, meta.probe_file)
    probes, galleries = meta.probes(), [meta.gallery(0), meta.gallery(1)]
    shared = np.intersect1d(galleries[0].subjects, galleries[1].subjects)
    if len(shared):
        raise UserError(f"{galleries[0].path} and {galleries[1].path.name}: subject {shared[0]} is in both galleries")
    probe_features = _features(templates, probes)
    searches, figures = [], []
    for gallery in galleries:
        features = _features(templates, gallery)
        found = search(probe_features, probes.subjects, features, gallery.subjects, gallery.path.name)
        searches.append(found)
        figures.append(search_metrics(found, RANKS, FPIRS))
    metrics = {name: float(np.mean([each[name] for each in figures])) for name in figures[0] if "probes" not in name}
    metrics["probes"] = len(probes.templates)
    both = np.concatenate([_features(templates, gallery) for gallery in galleries])
    subjects = np.concatenate([gallery.subjects for gallery in galleries])
    together = search(probe_features, probes.subjects, both, subjects, "both galleries")
    metrics.update(pooled_metrics(together, probe_features, probes.subjects, both, subjects, RANKS, FPIRS))
    return metrics, searches


def _features(templates: Templates, wanted: TemplateSubjects) -> np.ndarray:
    return templates.features[templates.rows(wanted.templates, str(wanted.path))]
