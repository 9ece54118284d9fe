"""Keys and byte offsets of a file's records: two int64 arrays, parsed from the `.idx` or rebuilt from the `.rec`.

Ten million records take seconds and 160 MB. There is no Python object per record.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.records.format import (
    FIRST,
    HEADER,
    LAST,
    LENGTH_BITS,
    LENGTH_MASK,
    MAGIC,
    MIDDLE,
    PART_AND_HEADER,
    WHOLE,
    RecordError,
)
from utils.errors import UserError
from utils.number_table import read_numbers

Int64Array = npt.NDArray[np.int64]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]

_SCAN_BLOCK = 1 << 24  # bytes of .rec searched at a time
# One row per record, from `RecordReader.headers`. `sound` is false if these few bytes are not conclusive: the record is damaged
# or its header is split, and only reading it can tell. `bytes` is the payload's length (a lower bound if it is split).
HEADER_ROW = np.dtype([("sound", "?"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("bytes", "<i8")])
_RAW_HEADER = np.dtype("<u4, <u4, <u4, <f4, <u8, <u8, <f4")
_RAW_HEADER.names = ("magic", "part", "flag", "label", "id", "id2", "first")
HEADER_BYTES = _RAW_HEADER.itemsize


@dataclass(frozen=True, slots=True)
class RecordIndex:
    """keys: ascending and unique. offsets: the byte offset of each key's record."""

    keys: Int64Array
    offsets: Int64Array


def make_index(keys: Int64Array, offsets: Int64Array, source: Path) -> RecordIndex:
    """Sort by key. Raises UserError if a key or an offset occurs twice."""
    if (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
    repeated = np.flatnonzero(keys[1:] == keys[:-1])
    if len(repeated):
        at = repeated[0]
        raise UserError(
            f"{source}: key {keys[at]} occurs twice (byte offsets {offsets[at]} and {offsets[at + 1]}); "
            "move the index away to have it rebuilt from the .rec file"
        )
    ascending = np.sort(offsets) if (offsets[1:] < offsets[:-1]).any() else offsets
    repeated = np.flatnonzero(ascending[1:] == ascending[:-1])
    if len(repeated):
        shared = ascending[repeated[0]]
        first, second = keys[offsets == shared][:2]
        raise UserError(
            f"{source}: keys {first} and {second} share byte offset {shared}; "
            "move the index away to have it rebuilt from the .rec file"
        )
    keys.flags.writeable = offsets.flags.writeable = False
    return RecordIndex(keys, offsets)


def load_index(path: Path) -> RecordIndex:
    """Read `key\\toffset` lines, in any order. Raises UserError, naming the first malformed line."""
    rebuild = "move the index away to have it rebuilt from the .rec file"
    table = read_numbers(path, 2, f"key<TAB>offset; {rebuild}", delimiter="\t")
    if len(table) == 0:
        raise UserError(f"{path}: the index is empty; {rebuild}")
    return make_index(table[:, 0].copy(), table[:, 1].copy(), path)


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of searching a whole `.rec` file. ids: the records' ids; None if they cannot serve as keys."""

    offsets: Int64Array
    ids: Int64Array | None
    damaged: Int64Array  # offsets of parts that do not belong to an undamaged record

    def index(self, path: Path) -> RecordIndex:
        """The index. Its keys are the records' ids, or positions in the file if the ids cannot serve as keys."""
        keys = np.arange(len(self.offsets), dtype=np.int64) if self.ids is None else self.ids
        return make_index(keys, self.offsets, path)


def scan_file(path: Path, strict: bool = True) -> Scan:
    """Find every record by its magic, reading the file once from start to end.

    A record is valid if each of its parts ends exactly where the next one begins. If `strict`, the first other place raises
    RecordError; otherwise such places are listed in `damaged`. Raises UserError if there is no record at all, or the file cannot
    be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            parts = _find_parts(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path}: the .rec file cannot be read ({error.strerror})") from error
    return _join_parts(path, size, strict, *parts)


def _find_parts(descriptor: int, size: int) -> tuple[Int64Array, UInt32Array, Int64Array, UInt64Array]:
    """Byte offset, second word, flag and id of everything that begins with an aligned magic."""
    found = []
    for base in range(0, size, _SCAN_BLOCK):
        data = os.pread(descriptor, _SCAN_BLOCK + PART_AND_HEADER.size, base)  # the last header may extend beyond the block
        words = np.frombuffer(data.ljust(_SCAN_BLOCK + PART_AND_HEADER.size, b"\0"), "<u4")
        at = np.flatnonzero(words[: _SCAN_BLOCK // 4] == MAGIC)
        at = at[base + 4 * at + 8 <= size]
        ids = words[at + 4] | words[at + 5].astype(np.uint64) << np.uint64(32)
        found.append((base + 4 * at, words[at + 1], words[at + 2].astype(np.int64), ids))
    offsets, part_words, flags, ids = (np.concatenate(column) for column in zip(*found, strict=True))
    return offsets, part_words, flags, ids


def _join_parts(
    path: Path, size: int, strict: bool, offsets: Int64Array, part_words: UInt32Array, flags: Int64Array, ids: UInt64Array
) -> Scan:
    """Join the parts to records. Takes what `_find_parts` returns; raises what `scan_file` raises."""
    cflags, lengths = part_words >> LENGTH_BITS, (part_words & LENGTH_MASK).astype(np.int64)
    if not len(offsets):
        raise UserError(f"{path}: contains no RecordIO record (no aligned 0x{MAGIC:08x}); is it a .rec file?")
    ends = offsets + 8 + ((lengths + 3) & ~3)
    opens, continues = cflags <= FIRST, (cflags == FIRST) | (cflags == MIDDLE)  # begin a record; have a successor
    expected = np.concatenate([[False], continues[:-1]])
    orphan = ~opens & ~expected
    broken = (ends != np.append(offsets[1:], size)) | (continues & np.append(opens[1:], True)) | orphan | (cflags > LAST)
    begins = np.flatnonzero(opens | orphan)  # an orphan is a record of its own, so that it does not invalidate another
    if begins[0] != 0:
        begins = np.concatenate([[0], begins])
    sound = ~np.logical_or.reduceat(broken, begins)
    damaged = offsets[begins[~sound]]
    if offsets[0] != 0:
        damaged = np.concatenate([[0], damaged])
    if len(damaged) and strict:
        raise RecordError(path, None, int(damaged[0]), "there is no complete record here: the file is truncated or damaged")
    kept = begins[sound]
    split = cflags[kept] != WHOLE
    long_enough = (lengths[kept] >= HEADER.size) & (split | (HEADER.size + 4 * flags[kept] <= lengths[kept]))
    keys = ids[kept]
    usable = long_enough.all() and (keys < 1 << 63).all() and len(np.unique(keys)) == len(keys)
    return Scan(offsets[kept], keys.astype(np.int64) if usable else None, damaged)


def header_rows(starts: list[bytes], offsets: Int64Array, size: int) -> npt.NDArray[np.void]:
    """`HEADER_ROW`s from the first `HEADER_BYTES` bytes of the records at `offsets`, in a file of `size` bytes."""
    raw = b"".join(starts)
    if len(raw) != HEADER_BYTES * len(starts):  # the last record of the file may be shorter
        raw = b"".join([start.ljust(HEADER_BYTES, b"\0") for start in starts])
    table = np.frombuffer(raw, _RAW_HEADER)
    length = (table["part"] & LENGTH_MASK).astype(np.int64)
    cflag = table["part"] >> LENGTH_BITS
    payload = length - HEADER.size - 4 * table["flag"].astype(np.int64)
    rows = np.empty(len(starts), HEADER_ROW)
    rows["sound"] = (table["magic"] == MAGIC) & (payload >= 0)
    rows["sound"] &= (cflag == WHOLE) | ((cflag == FIRST) & (payload > 0))
    rows["sound"] &= offsets + 8 + ((length + 3) & ~3) <= size
    rows["flag"], rows["id"], rows["bytes"] = table["flag"], table["id"], payload
    rows["label"] = np.where(table["flag"] > 0, table["first"], table["label"])
    return rows
