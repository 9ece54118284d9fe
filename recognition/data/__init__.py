"""Packed face images: RecordIO files, and data sets made of them. Imports only numpy, so that importing it is fast."""

from __future__ import annotations

from recognition.data.dataset import FaceDataset
from recognition.data.records.format import Record, RecordError
from recognition.data.records.reader import RecordReader
from recognition.data.records.writer import RecordWriter

__all__ = ["FaceDataset", "Record", "RecordError", "RecordReader", "RecordWriter"]
