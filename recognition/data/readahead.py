"""Reads the pieces of a windowed shuffle into the operating system's page cache, in large sequential reads.

One thread per rank reads each piece once, in the order in which they are needed, at most one window ahead. The data stay in the
page cache, where all workers and ranks of the machine find them; this process does not keep them.
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
    """Reads `pieces` in its own thread."""

    def __init__(self, dataset: FaceDataset, pieces: Iterator[Piece]):
        self._dataset, self._pieces = dataset, pieces
        self._condition = threading.Condition()
        self._wanted = -1  # the latest batch that was requested
        self._read_below: float = 0  # the pieces of all batches below this have been read
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="readahead", daemon=True)
        self._thread.start()

    def need(self, batch: int) -> None:
        """Wait until everything that `batch` needs has been read."""
        with self._condition:
            self._wanted = max(self._wanted, batch)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._read_below > batch)

    def close(self) -> None:
        """Stop reading and end the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        buffer = bytearray(_BLOCK)
        window = previous = -1  # first batches of this window and the previous one
        try:
            for piece in self._pieces:
                if piece.batch != window:
                    previous, window = window, piece.batch
                    if not self._begin_window(window, previous):
                        return
                for path, begin, end in self._dataset.byte_ranges(piece.start, piece.stop):
                    self._read(path, begin, end, buffer)
                if self._closed:
                    return
        finally:
            with self._condition:
                self._read_below = float("inf")  # releases every waiting thread, also after an error
                self._condition.notify_all()

    def _begin_window(self, window: int, previous: int) -> bool:
        """Report that all windows before `window` are read, and wait until the previous one is in use. False if closed."""
        with self._condition:
            self._read_below = window
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._closed or self._wanted >= previous)
            return not self._closed

    def _read(self, path: Path, begin: int, end: int, buffer: bytearray) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the worker that reads a record here reports file, key and offset
            return
        try:
            for at in range(begin, end, _BLOCK):
                if self._closed:
                    return
                os.preadv(descriptor, [memoryview(buffer)[: min(_BLOCK, end - at)]], at)
        except OSError:  # as above
            return
        finally:
            os.close(descriptor)
