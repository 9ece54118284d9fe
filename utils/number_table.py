"""Tables of numbers in text files of millions of lines, read by `numpy.loadtxt`; errors name the line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import numbered_lines, open_text, refuse_utf16

_LONGEST_LINE = 1 << 20  # bytes; lines up to twice as long may pass
_LINES_AT_ONCE = 10_000  # when searching for the malformed line


def read_numbers(
    path: Path,
    columns: int,
    expected: str,
    dtype: type = np.int64,
    *,
    delimiter: str | None = None,
    usecols: Sequence[int] | None = None,
    skip_lines: int = 0,
) -> np.ndarray:
    """Read a text file as a table [lines, columns], without blank lines. Integers must be at least 0, floats finite.

    expected: what a line should contain, for errors. delimiter: None means any whitespace. usecols: the columns to read; None
    means all. skip_lines: the number of heading lines.

    Raises UserError if the file cannot be read or a line is malformed, naming the first such line.
    """
    parse = partial(_parse, columns=columns, dtype=dtype, delimiter=delimiter, usecols=usecols)
    try:
        refuse_utf16(path)
        _refuse_endless_line(path)
        return parse(path, skiprows=skip_lines)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        number, line = _first_malformed(path, parse, skip_lines)
        raise UserError(f"{path}: line {number}: {line[:60].strip()!r} is not {expected}") from None


def place_of_row(path: Path, row: int, heading_lines: int = 0) -> str:
    """`PATH: line N` of a table's row, numbered from 0, for errors."""
    return next(islice(numbered_lines(path), heading_lines + row, None))[0]


def _parse(source: Path | list[str], *, columns: int, dtype: type, **options: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="loadtxt: input contained no data")
        table: np.ndarray = np.loadtxt(source, dtype, comments=None, ndmin=2, encoding="utf-8-sig", **options)
    if table.size == 0:
        return table.reshape(0, columns)
    if table.shape[1] != columns or not (table.min() >= 0 if table.dtype.kind == "i" else np.isfinite(table).all()):
        raise ValueError
    return table


def _first_malformed(path: Path, parse: Callable[[list[str]], object], skip_lines: int) -> tuple[int, str]:
    """The number, from 1, and the text of the first line that `parse` refuses."""

    def is_sound(lines: list[str]) -> bool:
        try:
            parse(lines)
        except ValueError:
            return False
        return True

    with open_text(path, errors="replace") as file:
        number = 1 + len(list(islice(file, skip_lines)))
        while lines := list(islice(file, _LINES_AT_ONCE)):
            if not is_sound(lines):
                return next((n, line) for n, line in enumerate(lines, number) if not is_sound([line]))
            number += len(lines)
    raise UserError(f"{path}: not UTF-8 text")


def _refuse_endless_line(path: Path) -> None:
    """Raise UserError for a line of megabytes, which `loadtxt` would hold in memory several times."""
    number = 1
    with open(path, "rb") as file:
        while block := file.read(_LONGEST_LINE):
            newlines = block.count(b"\n")
            if not newlines and len(block) == _LONGEST_LINE:
                raise UserError(f"{path}: line {number}: more than {_LONGEST_LINE:,} bytes long; is this a text file?")
            number += newlines
