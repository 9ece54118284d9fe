"""Brings the pieces of a windowed shuffle into the operating system's page cache, in large sequential reads.

One thread a rank reads each piece once, in the order in which they are needed, and at most one window ahead. What it reads
stays in the page cache, where all workers and ranks of the machine find it; no memory of ours holds it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from recognition.data.dataset import FaceDataset
from recognition.data.order import Piece

_BLOCK = 1 << 20


class Readahead:
    """Reads `pieces` in a thread of its own. `need(batch)` waits until all that the batch needs has been read."""

    def __init__(self, dataset: FaceDataset, pieces: Iterator[Piece]):
        self._dataset, self._pieces = dataset, pieces
        self._condition = threading.Condition()
        self._wanted = -1  # the newest batch that was asked for
        self._read_below: float = 0  # batches below this find their pieces in memory
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="readahead", daemon=True)
        self._thread.start()

    def need(self, batch: int) -> None:
        with self._condition:
            self._wanted = max(self._wanted, batch)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._read_below > batch)

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        buffer = bytearray(_BLOCK)
        window = previous = -1  # first batches of this window and of the one before
        try:
            for piece in self._pieces:
                if piece.batch != window:
                    previous, window = window, piece.batch
                    if not self._arrive(window, previous):
                        return
                for path, begin, end in self._dataset.byte_ranges(piece.start, piece.stop):
                    self._read(path, begin, end, buffer)
                if self._closed:
                    return
        finally:
            with self._condition:
                self._read_below = float("inf")  # whatever happened, nobody is to wait any longer
                self._condition.notify_all()

    def _arrive(self, window: int, previous: int) -> bool:
        """All windows before `window` are read: says so, and waits until the last of them is in use."""
        with self._condition:
            self._read_below = window
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._closed or self._wanted >= previous)
            return not self._closed

    def _read(self, path: Path, begin: int, end: int, buffer: bytearray) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # merely not in memory: the worker that reads a record here reports its file, key and offset
            return
        try:
            for at in range(begin, end, _BLOCK):
                if self._closed:
                    return
                os.preadv(descriptor, [memoryview(buffer)[: min(_BLOCK, end - at)]], at)
        except OSError:  # likewise
            return
        finally:
            os.close(descriptor)
