"""What the report computes with the run's encoder: curves and similarities that result files do not hold, and faces to look at.

Called on all ranks. What cannot be measured is a note on the page, never a silent gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.commands.common import Encoder, Reporting, TrainingViews
from eval.embedding import embed_images, embed_items
from eval.feature_cache import FeatureCache, fingerprint
from eval.protocols.identification import Search
from eval.protocols.scface import ScFace, find_scface
from eval.verification import TenFold, load_bin, ten_fold
from utils.errors import UserError


@dataclass
class Measured:
    folds: dict[str, TenFold] = field(default_factory=dict)  # verification set -> outcome
    searches: dict[str, Search] = field(default_factory=dict)  # SCface: d1 … d3
    views: TrainingViews | None = None
    norms: np.ndarray | None = None  # float32 [2, n] of originals, of augmented views
    u: np.ndarray | None = None  # float32 [2, n], quality
    threshold: float | None = None
    quality: Callable[[np.ndarray], np.ndarray] | None = None
    notes: dict[str, str] = field(default_factory=dict)  # section -> why it is missing


def measure(
    encoder: Encoder, bins: list[Path], scface: Path | None, views: Callable[[], TrainingViews], cache: Path, batch_size: int
) -> Measured:
    """Features are kept in `cache` and used again while the checkpoint and the images stay as they are."""
    kept = FeatureCache(cache, encoder.key)
    found = Measured(threshold=encoder.threshold, quality=encoder.quality)
    for path in bins:
        try:
            rows, issame = _bin_features(encoder, path, kept, batch_size)
            if len(rows):  # rank 0 has them
                found.folds[path.stem] = ten_fold(rows, issame)
        except UserError as fault:
            found.notes["roc"] = str(fault)
    if scface is not None:
        try:
            data = find_scface(scface)
            rows = _scface_features(encoder, data, kept, batch_size)
            if len(rows):
                found.searches = data.evaluate(rows)
        except UserError as fault:
            found.notes["similarity"] = str(fault)
    try:
        found.views = views()
    except (UserError, OSError) as fault:
        found.notes["pairs"] = f"The run's training images cannot be shown: {fault}"
        return found
    found.norms = np.stack([_norms(encoder, images, batch_size) for images in (found.views.originals, found.views.augmented)])
    if encoder.quality is not None:
        found.u = encoder.quality(found.norms.reshape(-1)).reshape(found.norms.shape)
    return found


def _bin_features(encoder: Encoder, path: Path, kept: FeatureCache, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    images, issame = load_bin(path)
    reporting = Reporting(encoder.embed, path.stem, 2 * len(images))
    embed = partial(embed_images, reporting, images, batch_size, describe=path.stem)
    return kept.get(path.stem, partial(fingerprint, [path]), embed), issame


def _scface_features(encoder: Encoder, data: ScFace, kept: FeatureCache, batch_size: int) -> np.ndarray:
    reporting = Reporting(encoder.embed, "SCface", 2 * len(data.images))
    embed = partial(embed_items, reporting, data.load, len(data.images), batch_size, torch.add, "SCface")
    return kept.get("scface", partial(fingerprint, data.images), embed)


def _norms(encoder: Encoder, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Of the images as they are, without mirror images: that is what the quality statistics are about."""
    rows = embed_items(encoder.embed, lambda index: images[index], len(images), batch_size, None, "training views")
    return np.linalg.norm(rows, axis=1)
