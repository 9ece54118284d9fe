"""Writes `.rec` and `.idx` files as MXNet 1.9.1 does, byte for byte, and each only as a whole."""

from __future__ import annotations

import contextlib
from array import array
from pathlib import Path
from types import TracebackType

import numpy as np

from recognition.data.records.format import Label, frame, pack
from utils.errors import UserError
from utils.files import cannot_write, sync, temporary_path

_BUFFER = 1 << 20


class RecordWriter:
    """Writes records in the order given. Use it as a context manager.

    Both files grow under temporary names in the same folder. They get their final names only on a clean close, once they are on
    the disk; until then an older pair of the same name stays as it is. An exception removes them. A killed process leaves
    `.NAME.….partial` files, which nothing takes for record files.

    rec_path: the file to write. idx_path: by default next to it.
    Raises UserError if the folder is missing or not writable, the disk is full, the format cannot hold a label or key, or (on
    closing) a key was written twice.
    """

    def __init__(self, rec_path: str | Path, idx_path: str | Path | None = None):
        self.path = Path(rec_path)
        self.idx_path = self.path.with_suffix(".idx") if idx_path is None else Path(idx_path)
        if self.path == self.idx_path:
            raise UserError(f"{self.path}: records and index cannot share one name; name the records *.rec")
        self._offset = 0
        self._keys = array("q")
        self._partial = [temporary_path(path) for path in (self.path, self.idx_path)]
        self._open = False
        try:
            self._rec = self._partial[0].open("wb", buffering=_BUFFER)
            try:
                self._idx = self._partial[1].open("wb", buffering=_BUFFER)
            except OSError:
                self._rec.close()
                self._partial[0].unlink()
                raise
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
        self._open = True

    def write(self, key: int, label: Label, payload: bytes, id: int | None = None, id2: int = 0) -> None:
        """Append an image record.

        label: a scalar (flag 0) or a sequence of n labels (flag n). payload: the encoded image; empty for a record that
        describes an identity or the whole set. id: by default the key.
        """
        try:
            record = pack(label, payload, key if id is None else id, id2)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{self.path}: key {key}: {error}") from error
        self.write_raw(key, record)

    def write_raw(self, key: int, record: bytes) -> None:
        """Append a record of arbitrary bytes, such as `RecordReader.read_raw` returns."""
        if not self._open:
            raise ValueError(f"{self.path}: the writer is closed")
        if not 0 <= key < 10**18:
            raise UserError(f"{self.path}: key {key}: keys are integers from 0 to 10^18")
        try:
            framed = frame(record)
        except ValueError as error:
            raise UserError(f"{self.path}: key {key}: {error}") from error
        try:
            self._rec.write(framed)
            self._idx.write(b"%d\t%d\n" % (key, self._offset))
        except OSError as error:
            self.abort()
            raise cannot_write(self.path, error) from error
        self._keys.append(key)
        self._offset += len(framed)

    def __len__(self) -> int:
        return len(self._keys)

    def close(self) -> None:
        """Move both files to their final names. After an error neither exists."""
        if not self._open:
            return
        try:
            self._refuse_repeated_keys()
            for file, partial in zip((self._rec, self._idx), self._partial, strict=True):
                file.close()
                sync(partial)
            # In between, the .rec has no index, which readers rebuild; it never has another file's.
            self.idx_path.unlink(missing_ok=True)
            self._partial[0].replace(self.path)
            self._partial[1].replace(self.idx_path)
            self._open = False
        except OSError as error:
            raise cannot_write(self.path, error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove both files. Does nothing after a clean close."""
        if not self._open:
            return
        self._open = False
        for file, partial in zip((self._rec, self._idx), self._partial, strict=True):
            with contextlib.suppress(OSError):  # a full disk also refuses the last buffer; the file is removed anyway
                file.close()
            partial.unlink(missing_ok=True)

    def _refuse_repeated_keys(self) -> None:
        keys = np.sort(np.frombuffer(self._keys, np.int64)) if self._keys else np.empty(0, np.int64)
        repeated = np.flatnonzero(np.diff(keys) == 0)
        if len(repeated):
            raise UserError(f"{self.path}: key {keys[repeated[0]]} was written twice; nothing was kept")

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
