"""Writes images, in their order, to `train.rec` in insightface's layout or to shards in im2rec's layout (docs/DATA.md)."""

from __future__ import annotations

from array import array
from pathlib import Path
from types import TracebackType

import numpy as np

from recognition.data.records.format import EXACT_IN_FLOAT32, Label
from recognition.data.records.writer import RecordWriter
from utils.errors import UserError
from utils.files import write_file

MAX_SHARDS = 100_000
PROPERTY = "property"


class ShardWriter:
    """Writes a packed data set to a folder. Use it as a context manager.

    One file with images grouped by label gets insightface's layout: images have the keys 1 … N, and there are record 0 and one
    record per identity. In several shards, or with images in any order, every record is an image, with keys 0 … N-1 over all
    shards.

    expected: the number of images, which shards divide equally; images that are skipped may make it fewer. grouped: the labels
    are written in the order 0, 0, …, 1, 1, …
    """

    def __init__(self, folder: Path, expected: int, shards: int = 1, grouped: bool = True):
        if not 1 <= shards <= min(max(expected, 1), MAX_SHARDS):
            raise UserError(f"--shards {shards}: must be 1 to {min(max(expected, 1), MAX_SHARDS)}, for {expected} images")
        self.folder, self.expected, self.shards = folder, expected, shards
        self.identity_records = grouped and shards == 1
        self.images = 0
        self._starts = array("q")  # the first key of each identity
        self._writer: RecordWriter | None = None
        self._shard = -1

    def write(self, label: Label, payload: bytes, id2: int = 0) -> None:
        """Append an image. label: a class, or several numbers that begin with the class."""
        shard = min(self.images * self.shards // max(self.expected, 1), self.shards - 1)
        if shard != self._shard:
            self._next_shard(shard)
        assert self._writer is not None, "a shard is open"
        if self.identity_records:
            self._note_identity(int(np.ravel(label)[0]))
        self._writer.write(self.images + self.identity_records, label, payload, id2=id2)
        self.images += 1

    def _note_identity(self, label: int) -> None:
        if label == len(self._starts):
            self._starts.append(self.images + 1)
        assert label == len(self._starts) - 1, "labels are in order"
        if label >= EXACT_IN_FLOAT32:
            raise UserError(f"{self.folder}: more than {EXACT_IN_FLOAT32} classes; the format stores labels as float32")

    def _next_shard(self, shard: int) -> None:
        self._close_shard()
        self._shard = shard
        self._writer = RecordWriter(self.folder / ("train.rec" if self.shards == 1 else f"shard_{shard:05d}.rec"))

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        if self.identity_records and self._writer is not None:
            end = self.images + 1
            bounds = [*self._starts, end]
            for number in range(len(self._starts)):
                self._writer.write(end + number, bounds[number : number + 2], b"")
            self._writer.write(0, [end, end + len(self._starts)], b"", id2=1)  # last, and with id2 1, as in insightface's files
        self._close_shard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.abort()


def write_property(folder: Path, num_classes: int, size: tuple[int, int]) -> None:
    """Write insightface's `property` file: `C,height,width`. size: (height, width)."""
    write_file(folder / PROPERTY, f"{num_classes},{size[0]},{size[1]}")
