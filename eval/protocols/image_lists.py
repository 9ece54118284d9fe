"""CSV files with one line per image of a set: quality scores (image,score) or groups (image,group)."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import open_text


def read_scores(path: Path, names: Sequence[str]) -> np.ndarray:
    """The scores of a CSV file with the columns image,score in the order of `names`: float64 [N]; higher is better.

    Raises UserError for an image that is unknown, repeated or missing, and for a score that is not a finite number.
    """
    return np.array(_read(path, names, "score", _finite), np.float64)


def read_groups(path: Path, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The groups of a CSV file with the columns image,group, in the order in which they first appear, and each image's group.

    Returns their names, and int64 [N], in the order of `names`. Raises UserError as `read_scores`, and for an empty name.
    """
    groups: dict[str, int] = {}
    numbers = _read(path, names, "group", lambda text, where: groups.setdefault(_not_empty(text, where), len(groups)))
    return list(groups), np.array(numbers, np.int64)


def _read(path: Path, names: Sequence[str], column: str, convert: Callable[[str, str], float]) -> list[float]:
    """The converted values in the order of `names`. convert: receives the text and where it is."""
    numbers = {name: number for number, name in enumerate(names)}
    values: list[float | None] = [None] * len(names)
    with open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            if next(reader, []) != ["image", column]:
                raise UserError(f"{path}: line 1 is not image,{column}; is it a list of quality {column}s?")
            for row in filter(None, reader):
                where = f"{path}: line {reader.line_num}"
                if len(row) != 2 or row[0] not in numbers:
                    raise UserError(f"{where}: {row[0]!r} is not an image of the set, whose images are {names[0]} … {names[-1]}")
                if values[numbers[row[0]]] is not None:
                    raise UserError(f"{where}: {row[0]} has a {column} already; remove one")
                values[numbers[row[0]]] = convert(row[1], where)
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: is not CSV ({error}); fix or remove the file") from error
    if missing := [name for name, value in zip(names, values, strict=True) if value is None]:
        raise UserError(f"{path}: {len(missing)} of {len(names)} images have no {column}, the first: {missing[0]}; add them")
    return [value for value in values if value is not None]


def _finite(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}: the score {text!r} is not a finite number; correct it")
    return score


def _not_empty(text: str, where: str) -> str:
    if not text.strip():
        raise UserError(f"{where}: the group has no name; add one")
    return text.strip()
