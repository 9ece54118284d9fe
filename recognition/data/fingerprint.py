"""What identifies a training set when a run resumes: counts, sizes, all labels and a sample of the images; not its path."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from recognition.data.dataset import FaceDataset
from recognition.data.records.format import RecordError
from utils.labels import UNREADABLE

_SAMPLE = 64  # images, evenly spaced
_LONGEST = 80  # characters of a value in a message
_NAMES = {
    "images": "the number of images",
    "bytes": "the size of the .rec files",
    "labels": "the labels",
    "sample": f"the bytes of {_SAMPLE} images",
    "unlabelled_images": "the number of unlabelled images",
    "unlabelled_sample": f"the bytes of {_SAMPLE} unlabelled images",
    "relations": "which identities may be the same person",
}


def fingerprint(dataset: FaceDataset, unlabelled: FaceDataset | None = None) -> dict[str, Any]:
    """The fingerprint as plain JSON values. A part that damaged records hide is None.

    Takes less than half a second for ten million images whose labels have been read.
    """
    labels = dataset.labels()
    others = {"unlabelled_images": len(unlabelled), "unlabelled_sample": _sample(unlabelled)} if unlabelled is not None else {}
    return {
        "images": len(dataset),
        "bytes": [shard.size for shard in dataset.shards],
        "labels": None if (labels == UNREADABLE).any() else _digest([labels.astype("<i8").tobytes()]),
        "sample": _sample(dataset),
        **others,
        "relations": _relations(dataset),
    }


def _relations(dataset: FaceDataset) -> str:
    return "" if dataset.possibly_same is None else _digest(part.tobytes() for part in dataset.possibly_same)


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two data sets, with both values; "" if nothing does, or if one of them is unknown."""
    parts = [
        f"{name} ({_short(before[key])}, now {_short(now[key])})"
        for key, name in _NAMES.items()
        if before.get(key) is not None and now.get(key) is not None and before[key] != now[key]
    ]
    return ", ".join(parts)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _sample(dataset: FaceDataset) -> str | None:
    images = np.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset)), dtype=np.int64)
    try:
        return _digest(dataset.read(image)[0] for image in images.tolist())
    except RecordError:
        return None


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
