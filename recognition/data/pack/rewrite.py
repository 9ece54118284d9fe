"""Images of packed data sets into a new one, with new labels and in a new order: what shuffle, merge and subset share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.dataset import FaceDataset
from recognition.data.pack.listing import IMAGE_COLUMNS, IMAGES, ImageList, class_names, image_list, write_classes
from recognition.data.pack.output import CsvFile
from recognition.data.pack.parallel import chunks, in_order, shared_object
from recognition.data.pack.shard_writer import ShardWriter, write_property
from utils.errors import UserError

CHUNK = 256
Int64Array = npt.NDArray[np.int64]


@dataclass
class Source:
    """A packed data set with its lists. names: of its labels; where there is no class map, the labels as seven digits."""

    path: Path
    faces: FaceDataset
    names: list[str]
    images: ImageList | None

    @classmethod
    def open(cls, path: Path, strict: bool = True) -> Source:
        """`UserError`: damaged files (where `strict`), labels outside [0, classes), lists that do not fit the set."""
        faces = FaceDataset(path, strict=strict)
        classes = faces.num_classes
        faces.check_labels(classes)
        names = class_names(path, classes) or [f"{label:07d}" for label in range(classes)]
        return cls(path, faces, names, image_list(path, len(faces)))


@dataclass
class Selection:
    """What the new set holds, in its order: int64 [N] each. source: number of the source. image: in that source. label: new."""

    source: Int64Array
    image: Int64Array
    label: Int64Array

    def grouped(self) -> Selection:
        """The same by label; the order within a label is kept."""
        order = np.argsort(self.label, kind="stable")
        return Selection(self.source[order], self.image[order], self.label[order])


Rewritten = list[tuple[npt.NDArray[np.float32] | float, bytes, int]]


def write_selection(
    folder: Path, sources: Sequence[Source], selection: Selection, names: Sequence[str], *,
    shards: int, grouped: bool, workers: int, prefix: str = "",
) -> None:  # fmt: skip
    """Writes records, class map, image list (where every source has one) and property into a draft folder.

    prefix: "folder" or "file" puts the source's number and "_" before the first or last part of the images' paths, so that
    sources cannot share paths.
    """
    total = len(selection.label)
    if not total:
        raise UserError("no image is left; nothing was written")
    parts = [
        (selection.source[start:stop], selection.image[start:stop], selection.label[start:stop])
        for start, stop in chunks(total, CHUNK)
    ]
    with (
        ShardWriter(folder, total, shards, grouped) as writer,
        in_order(read_part, parts, workers, "writing", total, advance=len, shared=[s.faces for s in sources]) as records,
    ):
        for part in records:
            for label, payload, id2 in part:
                writer.write(label, payload, id2)
    counts = np.bincount(selection.label, minlength=len(names)).tolist()
    write_classes(folder, names, counts)
    if all(source.images is not None for source in sources):
        _write_list(folder, sources, selection, prefix)
    size = sources[0].faces.image_size
    if size is not None and all(source.faces.image_size == size for source in sources):
        write_property(folder, len(names), size)


def read_part(part: tuple[Int64Array, Int64Array, Int64Array]) -> Rewritten:
    """Runs in a worker: (label or labels with the new class, payload, id2) of some images."""
    records: Rewritten = []
    for source, image, label in zip(*(column.tolist() for column in part), strict=True):
        faces: FaceDataset = shared_object()[source]
        shard, position = faces.locate(image)
        faces.read(image)  # refuses what is no image with a label
        record = faces.shards[shard].read_at(position)
        if record.flag:
            labels = record.label.copy()
            labels[0] = label
            records.append((labels, record.payload, record.id2))
        else:
            records.append((float(label), record.payload, record.id2))
    return records


def _write_list(folder: Path, sources: Sequence[Source], selection: Selection, prefix: str) -> None:
    old_labels = [source.faces.labels() for source in sources]
    with CsvFile(folder / IMAGES, IMAGE_COLUMNS) as table:
        for number in range(len(selection.label)):
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
