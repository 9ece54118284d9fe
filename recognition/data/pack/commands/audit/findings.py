"""The findings of an audit, and audit.csv, which lists them: to be edited, and acted on by `subset --drop`.

A row with `drop` 1 drops its image or, if it has no image, the whole identity.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.pack.commands.audit.faces import Faces
from recognition.data.pack.output import CsvFile
from utils.errors import UserError
from utils.files import open_text

LIST = "audit.csv"
COLUMNS = (
    "kind", "drop", "score", "file", "key", "image", "label", "other_file", "other_key", "other_image", "other_label", "note",
)  # fmt: skip
KINDS = {
    "exact": ("images with the pixels of another, perhaps mirrored", ""),
    "near": ("copies that were re-encoded, mirrored or cropped differently", "near_pixels"),
    "suspect": ("images that are more similar to another identity than to their own", "suspect_margin"),
    "split": ("two identities that look like one person", "split_score"),
    "merged": ("an identity that looks like two people", "merged_score"),
    "shared_image": ("images that another set contains too", "near_pixels"),
    "shared_person": ("identities that another set contains too", "shared_cosine"),
}
"""Kind -> what it is, and the name of its threshold."""


@dataclass(frozen=True)
class Finding:
    """One row of audit.csv, and what its row of the contact sheet shows.

    label: the identity. image: the image to drop; None: the whole identity. other, other_image, other_label: what it resembles;
    other None: in the same set. left, right: images to show, of the audited set and of `other`.
    """

    kind: str
    drop: bool
    score: float
    label: int
    image: int | None = None
    other_label: int | None = None
    other_image: int | None = None
    other: Faces | None = None
    note: str = ""
    left: Sequence[int] = ()
    right: Sequence[int] = ()


def place(faces: Faces, image: int) -> tuple[str, int]:
    """The file of an image, relative to the data set if it is inside, and its key."""
    file, key = faces.record(image)
    path = Path(file)
    return str(path.relative_to(faces.path) if path.is_relative_to(faces.path) and path != faces.path else path.name), key


def write_list(folder: Path, faces: Faces, findings: Iterable[Finding]) -> None:
    """Write audit.csv."""
    with CsvFile(folder / LIST, COLUMNS) as table:
        for found in findings:
            here = ("", "") if found.image is None else place(faces, found.image)
            other = found.other or faces
            there = ("", "") if found.other_image is None else place(other, found.other_image)
            other_file = there[0] if found.other is None else str(other.path)
            table.row(
                found.kind, int(found.drop), f"{found.score:.4f}", *here, _cell(found.image), found.label, other_file, there[1],
                _cell(found.other_image), _cell(found.other_label), found.note,
            )  # fmt: skip


def _cell(number: int | None) -> object:
    return "" if number is None else number


def dropped(path: Path, faces: Faces) -> npt.NDArray[np.bool_]:
    """Read an audit.csv: bool [images], which images of the set it drops.

    Raises UserError, naming the line, if it is not such a list, or names images that the set does not contain.
    """
    labels = faces.labels()
    drop = np.zeros(len(labels), bool)
    try:
        with open_text(path, errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = {"drop", "file", "key", "image", "label"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path}: line 1 lacks the columns {', '.join(sorted(missing))}; is it a list of `pack audit`?")
            for row in reader:
                _drop_row(row, f"{path}: line {reader.line_num}", faces, labels, drop)
    except csv.Error as error:
        raise UserError(f"{path}: after line {reader.line_num}: is not CSV ({error}); fix it") from error
    return drop


def _drop_row(row: dict[str, str], where: str, faces: Faces, labels: npt.NDArray[np.int64], drop: npt.NDArray[np.bool_]) -> None:
    if None in row or None in row.values():  # how DictReader reports too many or too few
        raise UserError(f"{where}: has fewer or more fields than line 1; fix the line")
    if row["drop"] not in ("0", "1"):
        raise UserError(f"{where}: drop is {row['drop']!r}; write 1 to drop, 0 to keep")
    try:
        label, image = int(row["label"]), int(row["image"]) if row["image"] else None
    except (TypeError, ValueError):
        raise UserError(f"{where}: image {row['image']!r} and label {row['label']!r} must be numbers; fix the line") from None
    if image is None:
        if not (labels == label).any():
            raise UserError(f"{where}: label {label} is no identity of {faces.path}; was the list made for another set?")
        drop |= (labels == label) & (row["drop"] == "1")
        return
    listed = row["file"], row["key"]
    known = 0 <= image < len(labels) and labels[image] == label
    if not known or listed != tuple(map(str, place(faces, image))):
        raise UserError(
            f"{where}: image {image} of {faces.path} is not key {row['key']} of {row['file']} with label {label}; "
            "was the list made for another set?"
        )
    drop[image] |= row["drop"] == "1"
