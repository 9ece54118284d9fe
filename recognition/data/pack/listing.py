"""The lists next to a packed data set, CSV files with a header line, and lists that users provide.

    classes.csv   label,name,images     one line per class, with labels 0, 1, 2, …
    images.csv    image,label,path      one line per image, in the data set's order; the path is that in the source folder;
                                        benchmark sets have more columns
    skipped.csv   reason                one line per image that was left out
    landmarks.csv path,x1,y1,…,x5,y5    one line per aligned image; the points are those in the photograph

Names and paths from any list are only used below one folder; those that lead out of it are errors.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from recognition.data.pack.output import CsvFile
from utils.errors import UserError, warn
from utils.files import open_text, path_inside, refuse_utf16

CLASSES, IMAGES, SKIPPED, LANDMARKS = "classes.csv", "images.csv", "skipped.csv", "landmarks.csv"
CLASS_COLUMNS, IMAGE_COLUMNS = ("label", "name", "images"), ("image", "label", "path")
_SKIPPED_SHOWN = 20


def inner_name(text: str, where: str) -> str:
    """`text` as a folder's name. Raises UserError, beginning with `where`, if it is not one."""
    if text in (".", "..") or len(path_inside(text, where).parts) != 1:
        raise UserError(f"{where}: {text!r} is not a folder's name")
    return text


def write_classes(folder: Path, names: Sequence[str], counts: Sequence[int]) -> None:
    """Write classes.csv: the name of each label, and its number of images."""
    with CsvFile(folder / CLASSES, CLASS_COLUMNS) as table:
        for label, (name, images) in enumerate(zip(names, counts, strict=True)):
            table.row(label, name, images)


def read_classes(path: Path, num_classes: int) -> list[str]:
    """The names of labels 0 … num_classes-1. Raises UserError, naming the line that is missing, repeated or malformed."""
    names: list[str] = []
    try:
        with open_text(path, errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            if tuple(next(reader, ())) != CLASS_COLUMNS:
                raise UserError(f"{path}: line 1 is not {','.join(CLASS_COLUMNS)}; is it a class map?")
            for row in filter(None, reader):
                where = f"{path}: line {reader.line_num}"
                if len(row) != len(CLASS_COLUMNS) or row[0] != str(len(names)):
                    raise UserError(f"{where}: expected label {len(names)}, its name and its count; fix or remove the file")
                names.append(inner_name(row[1], where))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: is not CSV ({error}); fix or remove the file") from error
    if len(names) != num_classes:
        raise UserError(f"{path}: lists {len(names)} classes, but the data set has {num_classes}; fix or remove the file")
    return names


def class_names(data: Path, num_classes: int) -> list[str] | None:
    """The names from the classes.csv next to a data set (a folder or a `.rec` file); None if there is none."""
    path = folder_of(data) / CLASSES
    return read_classes(path, num_classes) if path.exists() else None


class ImageList:
    """images.csv, kept in memory as text plus 8 bytes per line.

    Raises UserError if the file cannot be read or does not have one line for each of `num_images`.
    """

    def __init__(self, path: Path, num_images: int):
        self.path = path
        try:
            refuse_utf16(path)
            text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        header = ",".join(IMAGE_COLUMNS)
        if not text.startswith(tuple(f"{header}{end}".encode() for end in ("\n", "\r\n", ","))):
            raise UserError(f"{path}: line 1 is not {header}; is it an image list?")
        if not text.endswith(b"\n") or text.endswith((b"\n\n", b"\n\r\n")):
            text = text.rstrip() + b"\n"
        self._text, self._ends = text, np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        if len(blank := np.flatnonzero(np.diff(self._ends) <= 2)):  # a newline, perhaps with a carriage return
            raise UserError(f"{path}: line {blank[0] + 2} is blank; remove it")
        if len(self._ends) != num_images + 1:
            found = len(self._ends) - 1
            raise UserError(f"{path}: lists {found} images, but the data set has {num_images}; fix or remove the file")

    def path_of(self, image: int, label: int) -> PurePosixPath:
        """The path of an image. Raises UserError if its line is malformed or has another number or label."""
        line = self._text[self._ends[image] + 1 : self._ends[image + 1]].decode("utf-8", "surrogateescape")
        where = f"{self.path}: line {image + 2}"
        try:
            row = next(csv.reader([line]), [])
        except csv.Error as error:
            raise UserError(f"{where}: is not CSV ({error}); fix or remove the file") from error
        if len(row) < len(IMAGE_COLUMNS) or row[:2] != [str(image), str(label)]:
            raise UserError(f"{where}: expected image {image}, its label {label} and its path; fix or remove the file")
        return path_inside(row[2], where)


def image_list(data: Path, num_images: int) -> ImageList | None:
    """The images.csv next to a data set (a folder or a `.rec` file); None if there is none."""
    path = folder_of(data) / IMAGES
    return ImageList(path, num_images) if path.exists() else None


def folder_of(data: Path) -> Path:
    """The folder with the lists of a packed set (a folder or a `.rec` file)."""
    return data if data.is_dir() else data.parent


def write_skipped(folder: Path, skipped: Sequence[str]) -> None:
    """Write skipped.csv, unless no image was left out. skipped: the reasons, one per image."""
    if skipped:
        with CsvFile(folder / SKIPPED, ("reason",)) as table:
            for reason in skipped:
                table.row(reason)


def warn_of_skipped(skipped: Sequence[str], out: Path) -> None:
    """Print how many images were left out, and why the first of them."""
    for reason in skipped[:_SKIPPED_SHOWN]:
        warn(f"left out: {reason}")
    if skipped:
        warn(f"{len(skipped)} images left out in total, listed in {out / SKIPPED}")
