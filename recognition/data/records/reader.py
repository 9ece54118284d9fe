"""RecordIO without MXNet: random and sequential access to image records. format.py describes the bytes.

Reads are positioned (`os.pread`) rather than memory-mapped: if the file is truncated or the disk fails, the error names file,
key and byte offset, whereas a mapping would kill the process. A reader opens its file on the first read, so it can be passed to
worker processes: forked ones share the index's pages, unpickled ones open the file again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from recognition.data.records.format import (
    FIRST,
    FLOAT32,
    HEADER,
    LAST,
    LENGTH_BITS,
    LENGTH_MASK,
    MAGIC,
    MAGIC_BYTES,
    MIDDLE,
    PART,
    PART_AND_HEADER,
    WHOLE,
    Record,
    RecordError,
    padded,
    unpack,
)
from recognition.data.records.index import HEADER_BYTES, RecordIndex, header_rows, load_index, scan_file
from utils.errors import UserError, warn

_BIG = 1 << 20  # the end of a longer part is checked before memory is allocated for it
_LIKELY = 1 << 16  # a longer distance to the next record is unlikely to be one image
_FIRST_LABEL = struct.Struct("<f")
_HEADERS_AT_ONCE = 1 << 16
_DAMAGED_INDEX = "the index is damaged or belongs to another file; move it away to have it rebuilt"


class RecordReader:
    """The records of one `.rec` file, by key.

    keys: int64 [records], ascending, read-only. offsets: int64 [records], the byte offset of each key.

    rec_path: the file. idx_path: `key<TAB>offset` lines in any order, by default next to the file. A missing index is rebuilt in
    memory from the `.rec` file, with a warning on stderr; nothing is written.
    strict: check on opening that the index fits the file and that the file is complete. Otherwise such damage is only found when
    a damaged record is read, and all other records remain readable.

    Every failure is a UserError; if it concerns a single record, a RecordError with its key and offset.
    """

    def __init__(self, rec_path: str | Path, idx_path: str | Path | None = None, *, strict: bool = True):
        self.path = Path(rec_path)
        self.idx_path = self.path.with_suffix(".idx") if idx_path is None else Path(idx_path)
        self._descriptor: int | None = None
        self._size = self._measure()
        index = load_index(self.idx_path) if self.idx_path.exists() else self._rebuild_index(strict)
        self.keys, self.offsets = index.keys, index.offsets
        first, last = int(self.keys[0]), int(self.keys[-1])
        self._first_key = first if last - first + 1 == len(self.keys) else None  # of an unbroken range
        if strict:
            self._check_index()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._size

    def position(self, key: int) -> int:
        """The position of `key` in `keys`. Raises UserError if there is no such key."""
        position = int(self.keys.searchsorted(key)) if self._first_key is None else int(key) - self._first_key
        if not 0 <= position < len(self.keys) or self.keys[position] != key:
            present = f"its {len(self)} keys lie in {self.keys[0]} to {self.keys[-1]}"
            raise UserError(f"{self.path}: has no record with key {key}; {present}")
        return position

    def read(self, key: int) -> Record:
        """The record with this key. Raises UserError if there is no such key, RecordError if the record is damaged."""
        return self.read_at(self.position(key))

    def read_at(self, position: int) -> Record:
        """The record of `keys[position]`. Raises RecordError if it is damaged."""
        offset = int(self.offsets[position])
        common = self._read_common(position, offset)
        if common is None:
            return self._read_any(int(self.keys[position]), offset)
        data, begin, end, flag, id_, id2 = common
        label = np.frombuffer(data[PART_AND_HEADER.size : begin] if flag else data[12:16], FLOAT32)
        return Record(label, data[begin:end], id_, id2, flag)

    def image_at(self, position: int) -> tuple[bytes, float]:
        """The payload and first label of `keys[position]`: less than `read_at` returns, but faster."""
        offset = int(self.offsets[position])
        common = self._read_common(position, offset)
        if common is None:
            record = self._read_any(int(self.keys[position]), offset)
            return record.payload, float(record.label[0])
        data, begin, end, flag, _, _ = common
        return data[begin:end], _FIRST_LABEL.unpack_from(data, PART_AND_HEADER.size if flag else 12)[0]

    def read_raw(self, key: int) -> bytes:
        """The whole record as bytes, including its header, without interpreting them."""
        position = self.position(key)
        return self._join(int(key), int(self.offsets[position]))[0]

    def sequential(self) -> Iterator[tuple[int, bytes]]:
        """Yield (byte offset, whole record) in the order of the file, without using the index."""
        offset = 0
        while offset < self._size:
            record, end = self._join(None, offset)
            yield offset, record
            offset = end

    def where(self, position: int) -> str:
        """`FILE: key K, byte offset O` of `keys[position]`, for messages."""
        return f"{self.path}: key {self.keys[position]}, byte offset {self.offsets[position]}"

    def headers(self, start: int = 0, stop: int | None = None) -> Iterator[npt.NDArray[np.void]]:
        """Yield the headers of positions start … stop-1, in arrays of `HEADER_ROW`s; 36 bytes are read per record."""
        stop = len(self) if stop is None else stop
        for begin in range(start, stop, _HEADERS_AT_ONCE):
            offsets = self.offsets[begin : min(begin + _HEADERS_AT_ONCE, stop)]
            yield header_rows([self._pread(HEADER_BYTES, offset) for offset in offsets.tolist()], offsets, self._size)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}  # a file descriptor is only valid in its own process

    # -- the file

    def _measure(self) -> int:
        try:
            if self.path.is_dir():
                raise UserError(f"{self.path}: is a folder, not a .rec file")
            size = self.path.stat().st_size
        except OSError as error:
            raise UserError(f"{self.path}: the .rec file cannot be opened ({error.strerror})") from error
        if size == 0:
            raise UserError(f"{self.path}: the .rec file is empty (0 bytes); copy or pack it again")
        return size

    def _open(self) -> int:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{self.path}: the .rec file cannot be opened ({error.strerror})") from error
        size = os.fstat(self._descriptor).st_size
        if size != self._size:
            self.close()
            raise UserError(
                f"{self.path}: has {size} bytes now, but had {self._size} when its index was read; "
                "start again when the file is complete"
            )
        return self._descriptor

    def _pread(self, count: int, offset: int) -> bytes:
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._open()
        try:
            return os.pread(descriptor, count, offset)
        except OSError as error:
            keys = self.keys[self.offsets == offset].tolist()
            problem = f"the file cannot be read ({error.strerror}); check the disk"
            raise RecordError(self.path, keys[0] if keys else None, offset, problem) from error

    # -- one record

    def _read_common(self, position: int, offset: int) -> tuple[bytes, int, int, int, int, int] | None:
        """Read a record that consists of one part, usually with one system call.

        Returns (bytes, start and end of the payload in them, flag, id, id2), or None for any other or any damaged record.
        """
        data = self._pread(self._expected_bytes(position, offset) + 4, offset)
        if len(data) < PART_AND_HEADER.size:
            return None
        magic, length, flag, _, id_, id2 = PART_AND_HEADER.unpack_from(data)
        labels = 4 * flag
        if magic != MAGIC or not HEADER.size + labels <= length <= _BIG:  # then cflag is 0 as well
            return None
        end = PART.size + padded(length)
        if len(data) < end + 4:
            data += self._pread(end + 4 - len(data), offset + len(data))
        # A damaged length that spans whole records, up to the start of a later one, is not noticed here: it would only append
        # bytes to the image, and searching for magics would take longer than the read.
        if data[end : end + 4] != MAGIC_BYTES and (len(data) != end or offset + end != self._size):
            return None
        return data, PART_AND_HEADER.size + labels, PART.size + length, flag, id_, id2

    def _expected_bytes(self, position: int, offset: int) -> int:
        """The record's size if the record of the next key follows it, as it usually does; otherwise the header's size."""
        if position + 1 < len(self.offsets):
            distance = int(self.offsets[position + 1]) - offset
            if PART_AND_HEADER.size <= distance <= _LIKELY:
                return distance
        return PART_AND_HEADER.size

    def _read_any(self, key: int, offset: int) -> Record:
        """Read any record. Raises RecordError, which says what is wrong with it."""
        record, _ = self._join(key, offset)
        try:
            return unpack(record)
        except ValueError as error:
            raise RecordError(self.path, key, offset, str(error)) from error

    def _join(self, key: int | None, offset: int) -> tuple[bytes, int]:
        """The record at `offset`, its parts joined by the magic, and the offset of its end."""
        parts: list[bytes] = []
        at = offset
        while True:
            head = self._pread(PART.size, at)
            if len(head) < PART.size:
                raise RecordError(self.path, key, offset, f"the file ends at byte {self._size}: it is truncated")
            magic, word = PART.unpack(head)
            cflag, length = word >> LENGTH_BITS, word & LENGTH_MASK
            if magic != MAGIC or cflag not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
                problem = f"its part {len(parts) + 1} is missing at byte {at}" if parts else "no record starts here"
                raise RecordError(self.path, key, offset, f"{problem}: {_damage(None if parts else key)}")
            if at - offset > LENGTH_MASK + PART.size * len(parts):
                raise RecordError(self.path, key, offset, f"its parts exceed {LENGTH_MASK} bytes: {_damage(None)}")
            parts.append(self._body(key, offset, at + PART.size, length))
            at += PART.size + padded(length)
            if cflag in (WHOLE, LAST):
                return MAGIC_BYTES.join(parts), at

    def _body(self, key: int | None, offset: int, begin: int, length: int) -> bytes:
        """A part's bytes, after checking that another part, or the end of the file, follows."""
        body = padded(length)
        end = begin + body
        if end > self._size:
            problem = f"it announces {length} bytes, but the file ends at byte {self._size}: it is truncated or damaged"
            raise RecordError(self.path, key, offset, f"{problem}; copy the file again")
        rest = b""
        if length <= _BIG or self._ends_at(self._pread(4, end), 0, end):
            rest = self._pread(body + 4, begin)
        if length <= _BIG and len(rest) < body:
            problem = f"it ends at byte {end}, but the file was shortened after it was opened: it is truncated"
            raise RecordError(self.path, key, offset, f"{problem}; copy the file again")
        if not self._ends_at(rest, body, end) and not self._index_ends_it(rest, body, end):
            problem = f"no record follows at byte {end}, where this one of {length} bytes ends: {_damage(None)}"
            raise RecordError(self.path, key, offset, problem)
        return rest[:length]

    def _ends_at(self, rest: bytes, body: int, end: int) -> bool:
        """Whether a part is `rest[:body]`, ending at byte `end` of the file: the first aligned magic or the file's end is there.

        This detects any wrong length, except one that only differs within the padding.
        """
        at = _first_magic(rest, body)
        if at == body:
            return True
        tail = rest[body:]
        cut = len(tail) < 4 and MAGIC_BYTES.startswith(tail) and end + len(tail) == self._size  # within the next magic
        return at < 0 and cut and len(rest) >= body

    def _index_ends_it(self, rest: bytes, body: int, end: int) -> bool:
        """Whether the index has a record at `end`. Then that record's magic is damaged, not this one's length."""
        inside = _first_magic(rest, body)
        return len(rest) >= body and not 0 <= inside < body and bool((self.offsets == end).any())

    # -- the index

    def _rebuild_index(self, strict: bool) -> RecordIndex:
        scan = scan_file(self.path, strict)
        if not len(scan.offsets):
            raise RecordError(self.path, None, 0, "the file contains no complete record: it is truncated or damaged")
        keys = "positions in the file" if scan.ids is None else "the records' ids"
        lost = f"; {len(scan.damaged)} damaged places left out, the first at byte {scan.damaged[0]}" if len(scan.damaged) else ""
        warn(
            f"{self.idx_path}: missing; index of {len(scan.offsets)} records rebuilt in memory from {self.path.name}, "
            f"keys are {keys}{lost}"
        )
        return scan.index(self.path)

    def _check_index(self) -> None:
        beyond = np.flatnonzero(self.offsets > self._size - PART.size)
        if len(beyond):
            key, offset = int(self.keys[beyond[0]]), int(self.offsets[beyond[0]])
            problem = f"past the end of the .rec file ({self._size} bytes): the file is truncated, or {_DAMAGED_INDEX}"
            raise RecordError(self.path, key, offset, problem)
        last = int(self.offsets.argmax())
        _, end = self._join(int(self.keys[last]), int(self.offsets[last]))
        first = int(self.offsets.min())
        if first or end != self._size:
            warn(
                f"{self.idx_path}: covers bytes {first} to {end} of the {self._size} in {self.path.name}; "
                "records outside are not used"
            )


def _first_magic(data: bytes, stop: int) -> int:
    """The offset of the first magic at a multiple of 4, if it is before `stop`; otherwise some offset from `stop` on, or -1."""
    at = data.find(MAGIC_BYTES)
    while at % 4 and 0 <= at < stop:
        at = data.find(MAGIC_BYTES, at + 4)
    return at


def _damage(key: int | None) -> str:
    return "the file is damaged; copy or pack it again" if key is None else _DAMAGED_INDEX
