"""The byte format of RecordIO and of the image records in it, as dmlc-core and MXNet 1.9.1 write them.

A record consists of one or more parts:  u32 magic | u32 (cflag << 29 | length) | `length` bytes | zeros to a multiple of 4.
cflag is 0 for a whole record, 1 for the first part, 2 for a middle part, 3 for the last. A record is split wherever its bytes
contain the magic at a multiple of 4; the writer drops that magic, and the reader puts it back between the parts. So in an
undamaged file an aligned magic always starts a part, and a part ends where the next one starts or at the end of the file.

An image record is `<IfQQ` (flag, label, id, id2), then `flag` float32 labels if flag > 0, then the encoded image.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from utils.errors import UserError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
PART = struct.Struct("<II")  # magic, cflag << 29 | length
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
PART_AND_HEADER = struct.Struct("<IIIfQQ")
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
FLOAT32 = np.dtype("<f4")
EXACT_IN_FLOAT32 = 1 << 24  # float32 represents every integer up to here exactly

Label = float | Sequence[float] | npt.NDArray[np.generic]


class RecordError(UserError):
    """A record that cannot be read: `path`, `key` (None if there is no index), byte `offset` and `problem`."""

    def __init__(self, path: str | Path, key: int | None, offset: int, problem: str):
        self.path, self.key, self.offset, self.problem = str(path), key, offset, problem
        named = "" if key is None else f"key {key}, "
        super().__init__(f"{path}: {named}byte offset {offset}: {problem}")

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, int | None, int, str]]:
        return type(self), (self.path, self.key, self.offset, self.problem)  # for worker processes, which send it to their parent


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """An image record.

    label: float32 [max(flag, 1)], read-only; the first entry is the class.
    payload: the encoded image, as packed; empty in a record that describes an identity.
    id, id2: as written; `id` is usually the key.
    flag: the number of labels after the header; 0 if the only label is the one in the header.
    """

    label: npt.NDArray[np.float32]
    payload: bytes
    id: int
    id2: int
    flag: int


def padded(length: int) -> int:
    """`length` rounded up to a multiple of 4."""
    return (length + 3) & ~3


def frame(record: bytes) -> bytes:
    """A record's bytes on disk: split at every aligned magic, and padded. Raises ValueError from 512 MiB on."""
    if len(record) > LENGTH_MASK:
        raise ValueError(f"a record of {len(record)} bytes is too long; the format's limit is {LENGTH_MASK}")
    pieces = []
    begin = 0
    at = record.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            cflag = FIRST if begin == 0 else MIDDLE
            pieces += [PART.pack(MAGIC, cflag << LENGTH_BITS | (at - begin)), record[begin:at]]
            begin = at + 4
        at = record.find(MAGIC_BYTES, at + 4)  # the magic cannot overlap itself
    cflag = LAST if begin else WHOLE
    length = len(record) - begin
    pieces += [PART.pack(MAGIC, cflag << LENGTH_BITS | length), record[begin:], bytes(padded(length) - length)]
    return b"".join(pieces)


def pack(label: Label, payload: bytes, id: int, id2: int = 0) -> bytes:
    """The bytes of an image record. A scalar label is stored with flag 0, a sequence of n labels with flag n.

    Raises ValueError if there is no label, a label is not finite, or float32 would turn the class (the first label of a record
    with an image) into another one.
    """
    exact = np.asarray(label, dtype=np.float64)
    if exact.ndim > 1 or exact.size == 0 or not np.isfinite(exact).all():
        raise ValueError(f"label {label!r} is neither a finite number nor a non-empty list of them")
    stored = exact.astype(FLOAT32)
    given, first = float(exact.flat[0]), float(stored.flat[0])
    if payload and given.is_integer() and given != first:
        raise ValueError(f"label {given:.0f} would be stored as {first:.0f}: float32 is exact up to {EXACT_IN_FLOAT32}")
    if exact.ndim == 0:
        return HEADER.pack(0, first, id, id2) + payload
    return HEADER.pack(exact.size, 0.0, id, id2) + stored.tobytes() + payload


def unpack(record: bytes) -> Record:
    """The inverse of `pack`. Raises ValueError if the bytes end within the header or its labels."""
    if len(record) < HEADER.size:
        raise ValueError(f"holds {len(record)} bytes, fewer than an image record's header ({HEADER.size})")
    flag, label, id_, id2 = HEADER.unpack_from(record)
    begin = HEADER.size + 4 * flag
    if len(record) < begin:
        raise ValueError(f"its flag announces {flag} labels, but it holds {len(record)} bytes: the header is damaged")
    labels = np.frombuffer(record[HEADER.size : begin] if flag else struct.pack("<f", label), FLOAT32)
    return Record(labels, record[begin:], id_, id2, flag)
