"""The two lists beside a packed data set, both CSV with a header line.

    classes.csv   label,name,images     a line a class, labels 0, 1, 2, …
    images.csv    image,label,path      a line an image in the data set's order; path as it was in the source folder;
                                        benchmark sets have further columns

Names and paths from such files, and from any other list, are used below one folder only: what would lead out is an error.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from recognition.data.pack.output import CsvFile
from utils.errors import UserError
from utils.files import path_inside

CLASSES, IMAGES = "classes.csv", "images.csv"
CLASS_COLUMNS, IMAGE_COLUMNS = ("label", "name", "images"), ("image", "label", "path")


def inner_name(text: str, where: str) -> str:
    """`text` as the name of a folder. `UserError` names `where` it stands."""
    if text in (".", "..") or len(path_inside(text, where).parts) != 1:
        raise UserError(f"{where}: {text!r} is no name of a folder")
    return text


def write_classes(folder: Path, names: Sequence[str], counts: Sequence[int]) -> None:
    with CsvFile(folder / CLASSES, CLASS_COLUMNS) as table:
        for label, (name, images) in enumerate(zip(names, counts, strict=True)):
            table.row(label, name, images)


def read_classes(path: Path, num_classes: int) -> list[str]:
    """The names of the labels 0 … num_classes-1. `UserError` names the line that is missing, repeated or malformed."""
    names: list[str] = []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            if tuple(next(reader, ())) != CLASS_COLUMNS:
                raise UserError(f"{path}: line 1 is not {','.join(CLASS_COLUMNS)}; is it a class map?")
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(CLASS_COLUMNS) or row[0] != str(len(names)):
                    raise UserError(f"{where}: expected label {len(names)}, its name and its count; mend or remove the file")
                names.append(inner_name(row[1], where))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV file ({error}); mend or remove it") from error
    if len(names) != num_classes:
        raise UserError(f"{path}: names {len(names)} classes, the data set has {num_classes}; mend or remove the file")
    return names


def class_names(data: Path, num_classes: int) -> list[str] | None:
    """The names beside a data set (a folder or a `.rec` file); None where there is no classes.csv."""
    path = _beside(data) / CLASSES
    return read_classes(path, num_classes) if path.exists() else None


class ImageList:
    """images.csv in memory as it is on disk, with 8 bytes a line on top.

    `UserError`: it cannot be read, or has not a line for each of `num_images`; and from `path_of`, for a malformed line.
    """

    def __init__(self, path: Path, num_images: int):
        self.path = path
        try:
            self._text = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        header = ",".join(IMAGE_COLUMNS)
        if not self._text.startswith((f"{header}\n".encode(), f"{header},".encode())):
            raise UserError(f"{path}: line 1 is not {header}; is it an image list?")
        self._ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n"))
        if len(self._ends) != num_images + 1 or not self._text.endswith(b"\n"):
            raise UserError(f"{path}: lists {len(self._ends) - 1} images, the data set has {num_images}; mend or remove the file")

    def path_of(self, image: int, label: int) -> PurePosixPath:
        """The path of an image, once its line agrees with number and label."""
        line = self._text[self._ends[image] + 1 : self._ends[image + 1]].decode("utf-8", "surrogateescape")
        row = next(csv.reader([line]), [])
        where = f"{self.path}: line {image + 2}"
        if len(row) < len(IMAGE_COLUMNS) or row[:2] != [str(image), str(label)]:
            raise UserError(f"{where}: expected image {image}, its label {label} and its path; mend or remove the file")
        return path_inside(row[2], where)


def image_list(data: Path, num_images: int) -> ImageList | None:
    """The list beside a data set (a folder or a `.rec` file); None where there is no images.csv."""
    path = _beside(data) / IMAGES
    return ImageList(path, num_images) if path.exists() else None


def _beside(data: Path) -> Path:
    return data if data.is_dir() else data.parent


def numbered_lines(path: Path) -> Iterable[tuple[str, str]]:
    """(`PATH: line N`, text) of the lines that are not blank. `UserError` where the file cannot be read or is no text."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}: line {number}", line.strip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); save it as such") from error
