"""Writes images of data sets into a new packed one, with new labels and in a new order.

Shared by the commands `shuffle`, `merge`, `subset`, `split`, `convert` and `degrade`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from recognition.data.dataset import FaceDataset
from recognition.data.pack.face_encoding import FaceFormat, encode_file
from recognition.data.pack.listing import (
    CLASSES,
    IMAGE_COLUMNS,
    IMAGES,
    ImageList,
    class_names,
    folder_of,
    image_list,
    write_classes,
)
from recognition.data.pack.output import CsvFile
from recognition.data.pack.shard_writer import PROPERTY, ShardWriter, write_property
from recognition.data.parallel import chunks, in_order, shared_object
from recognition.data.sets.opening import open_faces
from recognition.data.sets.pictures import PictureFaces
from utils.errors import UserError
from utils.files import write_file

CHUNK = 256
Int64Array = npt.NDArray[np.int64]


@dataclass
class Source:
    """A data set (packed, a folder or a list) with its lists. names: one per label; if unknown, the labels as seven digits."""

    path: Path
    faces: FaceDataset
    names: list[str]
    images: ImageList | PictureFaces | None

    @classmethod
    def open(cls, path: Path, strict: bool = True, any_labels: bool = False) -> Source:
        """Raises UserError for damaged files (if `strict`), lists that do not fit the set, and, unless `any_labels`, for labels
        outside [0, classes)."""
        faces = open_faces(path, strict=strict)
        classes = faces.num_classes
        if not any_labels:
            faces.check_labels(classes)
        names = faces.names if isinstance(faces, PictureFaces) else class_names(path, classes)
        names = names or [f"{label:07d}" for label in range(classes)]
        if isinstance(faces, PictureFaces):
            return cls(path, faces, names, faces if faces.inside else None)
        return cls(path, faces, names, image_list(path, len(faces)))


@dataclass
class Selection:
    """The images of the new set, in its order: int64 [N] each.

    source: number of the source. image: number of the image in that source. label: the new label.
    """

    source: Int64Array
    image: Int64Array
    label: Int64Array

    def grouped(self) -> Self:
        """The same images, sorted by label; the order within a label is kept."""
        return self.take(np.argsort(self.label, kind="stable"))

    def take(self, places: Int64Array | slice) -> Self:
        """The images at these places."""
        return type(self)(*(getattr(self, field.name)[places] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.label)


Rewritten = list[tuple[npt.NDArray[np.float32] | float, bytes, int]]  # label or labels, payload, id2


def read_records(part: Selection, face_format: FaceFormat | None = None) -> Rewritten:
    """Runs in a worker: the records of a part of the selection, under their new labels. face_format: of image files."""
    records: Rewritten = []
    for source, image, label in zip(part.source.tolist(), part.image.tolist(), part.label.tolist(), strict=True):
        faces: FaceDataset = shared_object()[source]
        if not faces.shards:
            records.append((float(label), _encoded_picture(Path(faces.where(image)), face_format or FaceFormat()), 0))
            continue
        shard, position = faces.locate(image)
        faces.read(image)  # refuses a record without an image or a label
        record = faces.shards[shard].read_at(position)
        if record.flag:
            labels = record.label.copy()
            labels[0] = label
            records.append((labels, record.payload, record.id2))
        else:
            records.append((float(label), record.payload, record.id2))
    return records


def _encoded_picture(path: Path, face_format: FaceFormat) -> bytes:
    """The bytes to pack for an image file. Raises UserError if it is not a face of the right size."""
    payload, odd_size = encode_file(path, face_format)
    if odd_size:
        raise UserError(f"{path}: the image is {odd_size}; align the faces: python -m recognition.data.pack align")
    return payload


def write_selection(
    folder: Path,
    sources: Sequence[Source],
    selection: Selection,
    names: Sequence[str],
    *,
    workers: int,
    shards: int = 1,
    grouped: bool = True,
    with_list: bool = True,
    copy_lists: bool = False,
    prefix: str = "",
    title: str = "writing",
    work: Callable[[Any], Rewritten] = read_records,
) -> None:
    """Write a packed data set: records, class map, and the property file if all images have one size.

    names: of the new labels. grouped: the selection is sorted by label, and every label has an image.
    work: makes the records of a part of the selection, in a worker; `title` describes it in the progress bar.
    with_list: also write images.csv, if every source has one. copy_lists: labels and order are those of the only source, which is
    packed: copy its lists and its property file.
    prefix: "folder" or "file" puts the source's number and "_" before the first or last part of each path in images.csv, so that
    no two sources share a path.
    """
    total = len(selection)
    if not total:
        raise UserError("no image is left; nothing was written")
    parts = [selection.take(slice(start, stop)) for start, stop in chunks(total, CHUNK)]
    shared = [source.faces for source in sources]
    with (
        ShardWriter(folder, total, shards, grouped) as writer,
        in_order(work, parts, workers, title, total, advance=len, shared=shared) as records,
    ):
        for part in records:
            for label, payload, id2 in part:
                writer.write(label, payload, id2)
    if copy_lists:
        for path in map(folder_of(sources[0].path).joinpath, (CLASSES, IMAGES, PROPERTY)):
            if path.is_file():
                write_file(folder / path.name, path.read_bytes())
        return
    write_classes(folder, names, np.bincount(selection.label, minlength=len(names)).tolist())
    if with_list and all(source.images is not None for source in sources):
        _write_image_list(folder, sources, selection, prefix)
    size = sources[0].faces.image_size
    if size is not None and all(source.faces.image_size == size for source in sources):
        write_property(folder, len(names), size)


def _write_image_list(folder: Path, sources: Sequence[Source], selection: Selection, prefix: str) -> None:
    old_labels = [source.faces.labels() for source in sources]
    with CsvFile(folder / IMAGES, IMAGE_COLUMNS) as table:
        for number in range(len(selection)):
            source, image, label = (int(column[number]) for column in (selection.source, selection.image, selection.label))
            listed = sources[source].images
            assert listed is not None, "checked by the caller"
            path = str(listed.path_of(image, int(old_labels[source][image])))
            if prefix == "folder":
                path = f"{source + 1}_{path}"
            elif prefix == "file":
                parent, _, name = path.rpartition("/")
                path = f"{parent}/{source + 1}_{name}"
            table.row(number, label, path)
