"""Files with five facial landmarks an image."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.pack.listing import numbered_lines
from utils.errors import UserError
from utils.files import path_inside

NUMBERS = 10
LandmarkTable = dict[str, npt.NDArray[np.float64]]


def read_landmarks(path: Path) -> LandmarkTable:
    """Path in the file -> float64 [5, 2], (x, y) in pixels.

    A line is a path and ten numbers, with commas, tabs or blanks between; an eleventh (a detector's score) is passed over.
    Paths with blanks need commas or tabs. A first line without numbers is a header.
    `UserError` names the line that is something else, leads out of the folder, or repeats a path.
    """
    table: LandmarkTable = {}
    first = True
    for where, line in numbered_lines(path):
        name, numbers = _split(line)
        header = first and not any(_is_number(text) for text in numbers)
        first = False
        if header:
            continue
        if len(numbers) not in (NUMBERS, NUMBERS + 1) or not name or not all(_is_number(text) for text in numbers):
            raise UserError(f"{where}: {line[:80]!r} is not a path and {NUMBERS} numbers; mend it")
        points = np.array(numbers[:NUMBERS], np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise UserError(f"{where}: holds a number that is not finite; mend it")
        key = str(path_inside(name, where))
        if key in table:
            raise UserError(f"{where}: {key!r} is listed a second time; keep one face an image")
        table[key] = points
    if not table:
        raise UserError(f"{path}: lists no landmarks")
    return table


def _split(line: str) -> tuple[str, list[str]]:
    """(path, the fields after it)."""
    if "," in line:
        fields = next(csv.reader([line], skipinitialspace=True))
    else:
        fields = line.split("\t") if "\t" in line else line.split()
    return fields[0], fields[1:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
