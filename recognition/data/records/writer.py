"""Writing `.rec` and `.idx` files, byte for byte as MXNet 1.9.1 does, and never half of one under its final name."""

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
    """Writes records in the order given; use it as a context manager.

    Both files grow under temporary names in the same folder and get their own names only on a clean close, after they
    have reached the disk. An exception removes them; a killed process leaves `.NAME.….partial` files, which nothing
    takes for a record file. An older pair of the same name stays whole until then.

    rec_path: the file to write. idx_path: by default beside it. `UserError`: a folder that is missing or not writable,
    a full disk, a label or key that the format cannot hold, a key written twice (found on closing).
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
        """Appends an image record.

        label: a scalar (flag 0) or a sequence of n (flag n). payload: the encoded image, empty for a record that
        describes an identity or the whole set. id: by default the key.
        """
        try:
            record = pack(label, payload, key if id is None else id, id2)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{self.path}: key {key}: {error}") from error
        self.write_raw(key, record)

    def write_raw(self, key: int, record: bytes) -> None:
        """Appends a record of any bytes, such as `RecordReader.read_raw` returns."""
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
        """Puts both files in their places. On any error nothing is left of them."""
        if not self._open:
            return
        try:
            self._refuse_repeated_keys()
            for file, partial in zip((self._rec, self._idx), self._partial, strict=True):
                file.close()
                sync(partial)
            # Between these steps there is a .rec without an index, which readers rebuild; never one with another's.
            self.idx_path.unlink(missing_ok=True)
            self._partial[0].replace(self.path)
            self._partial[1].replace(self.idx_path)
            self._open = False
        except OSError as error:
            raise cannot_write(self.path, error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Removes what was written. Does nothing after a clean close."""
        if not self._open:
            return
        self._open = False
        for file, partial in zip((self._rec, self._idx), self._partial, strict=True):
            with contextlib.suppress(OSError):  # a full disk refuses the last buffer too, and the file goes anyway
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
