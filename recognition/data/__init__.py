"""Packed face images: RecordIO files and the data sets made of them. Imports numpy only: loader workers start here."""

from __future__ import annotations

from recognition.data.dataset import FaceDataset
from recognition.data.record_format import Record, RecordError
from recognition.data.record_writer import RecordWriter
from recognition.data.recordio import RecordReader

__all__ = ["FaceDataset", "Record", "RecordError", "RecordReader", "RecordWriter"]
