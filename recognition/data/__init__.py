"""Packed face images: RecordIO files, and data sets made of them. A name is imported on its first use, so importing is fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recognition.data.dataset import FaceDataset
    from recognition.data.records.format import Record, RecordError
    from recognition.data.records.reader import RecordReader
    from recognition.data.records.writer import RecordWriter

__all__ = ["FaceDataset", "Record", "RecordError", "RecordReader", "RecordWriter"]

_MODULES = {
    "FaceDataset": "dataset",
    "Record": "records.format",
    "RecordError": "records.format",
    "RecordReader": "records.reader",
    "RecordWriter": "records.writer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
