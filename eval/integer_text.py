"""Whole numbers from text files of many millions of lines, at the speed of arrays.

The numbers of a block of text are found and put together digit by digit for all of them at once: about a second for the
eight million lines of IJB-B's pairs, where splitting lines takes a minute.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from utils.errors import UserError

_BLOCK_BYTES = 1 << 18  # the work arrays of a block stay in the cache
_THREADS = 2
_MOST_DIGITS = 18  # of an int64


def read_integers(path: str | Path, columns: int) -> np.ndarray:
    """A text file of non-negative whole numbers, `columns` a line between blanks: [lines, columns], int32 where all numbers
    have at most nine digits, else int64. Empty lines do not count.

    Raises UserError, naming the line, for anything else.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror}") from fault
    with file, ThreadPoolExecutor(_THREADS) as pool:
        size = os.fstat(file.fileno()).st_size
        cuts = _cuts(file.fileno(), size)
        blocks = list(itertools.pairwise(cuts))
        parts = list(pool.map(lambda cut: _block(file.fileno(), cut[0], cut[1], columns), blocks))
    for part, (start, _) in zip(parts, blocks, strict=True):
        if part is None:
            raise UserError(_complaint(path, start, columns))
    kept = [part for part in parts if part is not None]
    return np.concatenate(kept) if kept else np.empty((0, columns), np.int32)


def _cuts(descriptor: int, size: int) -> list[int]:
    """Offsets 0 … size between which blocks lie, each just after a line's end."""
    cuts = [0]
    while cuts[-1] < size:
        wanted = cuts[-1] + _BLOCK_BYTES
        while wanted < size:
            line_end = os.pread(descriptor, 4096, wanted).find(b"\n")
            if line_end >= 0:
                wanted += line_end + 1
                break
            wanted += 4096
        cuts.append(min(wanted, size))
    return cuts


def _block(descriptor: int, start: int, stop: int, columns: int) -> np.ndarray | None:
    """The numbers of one block, or None where it holds something else."""
    return parse_integers(os.pread(descriptor, stop - start, start), columns)


def parse_integers(text: bytes, columns: int) -> np.ndarray | None:
    """The numbers of whole lines of text, [lines, columns]; None where the text is not that."""
    characters = np.frombuffer(text if text.endswith(b"\n") else text + b"\n", np.uint8)
    blank = (characters == 32) | (characters - np.uint8(9) < 5)  # as for bytes.split
    digits = characters - np.uint8(48)  # wraps round: whatever is no digit is above 9
    if ((digits > 9) & ~blank).any():
        return None
    blanks = np.flatnonzero(blank)
    before = np.append(-1, blanks[:-1])
    lengths = blanks - before - 1
    if lengths.min() == 0:  # blanks in a row: only the first ends a number
        ends, lengths = blanks[lengths > 0], lengths[lengths > 0]
    else:
        ends = blanks
    if len(ends) % columns or not _one_row_a_line(characters, blanks, ends, columns):
        return None
    longest = int(lengths.max(initial=1))
    if longest > _MOST_DIGITS:
        return None
    values = _short_numbers(characters, ends, lengths) if longest <= 8 else _long_numbers(digits, ends, lengths, longest)
    return values.reshape(-1, columns)


def _short_numbers(characters: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Numbers of at most eight digits, int32: the eight bytes before each end as one integer, whose digits are put together
    in pairs, then pairs of pairs, then those (the usual arithmetic within a machine word)."""
    padded = np.concatenate([np.zeros(8, np.uint8), characters])
    words = np.ndarray(len(characters), dtype="<u8", buffer=padded.data, strides=(1,))[ends]
    unwanted = ((8 - lengths) << 3).astype(np.uint64)
    words >>= unwanted
    words <<= unwanted  # what precedes the number, in the low bytes, is gone
    for mask, factor, shift in _DIGIT_PAIRS:
        words &= mask
        words *= factor
        words >>= shift
    return words.astype(np.int32)


_DIGIT_PAIRS = [
    (np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(1 + (10 << 8)), np.uint64(8)),
    (np.uint64(0x00FF00FF00FF00FF), np.uint64(1 + (100 << 16)), np.uint64(16)),
    (np.uint64(0x0000FFFF0000FFFF), np.uint64(1 + (10000 << 32)), np.uint64(32)),
]


def _long_numbers(digits: np.ndarray, ends: np.ndarray, lengths: np.ndarray, longest: int) -> np.ndarray:
    """Numbers of any length that an int64 holds, digit by digit."""
    values = digits.take(ends - 1, mode="clip").astype(np.int32 if longest < 10 else np.int64)
    for place in range(1, longest):
        digit = digits.take(ends - (place + 1), mode="clip")
        digit[lengths <= place] = 0
        values = values + digit * values.dtype.type(10**place)
    return values


def _one_row_a_line(characters: np.ndarray, blanks: np.ndarray, ends: np.ndarray, columns: int) -> bool:
    """Whether each line holds `columns` numbers, or none."""
    newline = characters[blanks] == 10
    if len(blanks) == len(ends):  # single blanks: every `columns`-th is a line's end, and no other
        return bool(newline.reshape(-1, columns)[:, -1].all()) and np.count_nonzero(newline) * columns == len(ends)
    numbers_so_far = np.searchsorted(ends, blanks[newline], side="right")
    in_line = np.diff(numbers_so_far, prepend=0)
    return bool(np.isin(in_line, (0, columns)).all())


def _complaint(path: str | Path, start: int, columns: int) -> str:
    """What is wrong with the first bad line at or after the byte `start`."""
    with open(path, "rb") as file:
        before = 0
        while file.tell() < start:
            before += file.read(min(1 << 20, start - file.tell())).count(b"\n")
        for number, line in enumerate(file, before + 1):
            if parse_integers(line.rstrip(b"\r\n"), columns) is None:
                shown = line[:60].strip().decode(errors="replace")
                return f"{path}, line {number}: {columns} whole numbers between blanks are needed, not {shown!r}"
    return f"{path}: a line holds something else than {columns} whole numbers"
