"""A data set of labelled face images: one `.rec` file or a folder of shards, with images numbered 0 … len-1.

Record 0 tells the two layouts apart. insightface's: record 0 has flag 2, labels [N+1, N+C+1] and no image; keys 1 … N are the
images, and keys N+1 … N+C describe the C identities, without an image. im2rec's: every record is an image.

The counts are exact: N is found by looking where the images end, and C is the largest label + 1. Record 0 stores its labels as
float32, inexact from 2^24 on (42,474,558 reads back as 42,474,560), so they only tell where to look.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.records.format import EXACT_IN_FLOAT32, Record, RecordError
from recognition.data.records.reader import RecordReader
from utils.errors import UserError, warn
from utils.files import numbered_lines
from utils.images import ChannelOrder, Image, decode_face_into
from utils.labels import UNREADABLE

_HELD_OUT = re.compile(r"(?<![a-z])(val|valid|validation|test|testing|eval|evaluation|dev|holdout)(?![a-z])")
_NAME_IT = "give one .rec file by its name, or move the others to another folder"
_NAMES_SHOWN = 8


class FaceDataset:
    """Images and labels by number: shards in the order of their names, keys ascending within each.

    path: a `.rec` file, or a folder with `train.rec` or else any number of `*.rec`, each with its `.idx`.
    strict: refuse damage when it is first noticed. Otherwise a damaged record raises an error only when it is read, its label in
    `labels()` is `UNREADABLE`, and the caller counts the skipped records.

    shards: the readers. starts: int64 [shards + 1]; shard s contains the images starts[s] … starts[s + 1] - 1.
    Memory: two int64 per record, shared by forked processes; no Python object per record.
    """

    visits: npt.NDArray[np.int64] | None = None  # of several sets: images of each that an epoch visits (sets/union.py)

    def __init__(self, path: str | Path, *, strict: bool = True):
        self.path = Path(path)
        self.strict = strict
        self.shards = [RecordReader(file, strict=strict) for file in _shard_files(self.path)]
        spans = [_image_span(shard, strict) for shard in self.shards]
        self._first = [first for first, _, _ in spans]  # position of the first image in each shard
        self._identities = [identities for _, _, identities in spans]
        self.starts = np.cumsum([0] + [stop - first for first, stop, _ in spans], dtype=np.int64)
        self._start_list = self.starts.tolist()
        self._unreadable: list[int] = []  # images whose label in `labels()` is `UNREADABLE` because they are damaged

    def __len__(self) -> int:
        return self._start_list[-1]

    @property
    def possibly_same(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]] | None:
        """Which identities may be one person under two labels (sets/union.py); None if no two may be."""
        return None

    def locate(self, image: int) -> tuple[int, int]:
        """The shard of an image, and its position in that shard's `keys`."""
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        shard = bisect_right(self._start_list, image) - 1
        return shard, self._first[shard] + image - self._start_list[shard]

    def read(self, image: int) -> tuple[bytes, int]:
        """An image, encoded, and its label. Raises RecordError if the record is damaged or lacks an image or an integer label."""
        shard, position = self.locate(image)
        return _image_and_label(self.shards[shard], position)

    def decode_into(self, image: int, out_HWC: Image, channel_order: ChannelOrder = "RGB", mirror: bool = False) -> int:
        """Decode an image into `out_HWC`, as `decode_face_into` does, and return its label. Raises RecordError."""
        payload, label = self.read(image)
        try:
            decode_face_into(payload, out_HWC, channel_order, mirror)
        except ValueError as fault:
            raise self.record_error(image, str(fault)) from None
        return label

    def where(self, image: int) -> str:
        """`FILE: key K, byte offset O`, for messages."""
        shard, position = self.locate(image)
        return self.shards[shard].where(position)

    def record(self, image: int) -> tuple[str, int]:
        """The file and key of an image."""
        shard, position = self.locate(image)
        return str(self.shards[shard].path), int(self.shards[shard].keys[position])

    def record_error(self, image: int, problem: str) -> RecordError:
        """A RecordError that names the file, key and offset of an image."""
        shard, position = self.locate(image)
        return _record_error(self.shards[shard], position, problem)

    @cached_property
    def file_order(self) -> npt.NDArray[np.int64] | None:
        """int64 [images], the image numbers in the order of the files; None if that is 0, 1, 2, … anyway."""
        parts = [shard.offsets[first : first + count] for shard, first, count in self._shard_images()]
        if all((part[1:] > part[:-1]).all() for part in parts):
            return None
        return np.concatenate([start + part.argsort() for start, part in zip(self._start_list, parts, strict=False)])

    def byte_ranges(self, start: int, stop: int) -> list[tuple[Path, int, int]]:
        """(file, first byte, last byte + 1) of images start … stop-1 of `file_order`."""
        ranges = []
        for number in range(bisect_right(self._start_list, start) - 1, len(self.shards)):
            low, high = (max(start, self._start_list[number]), min(stop, self._start_list[number + 1]))
            if low < high:
                ranges.append(self._byte_range(number, low, high))
        return ranges

    def _byte_range(self, number: int, low: int, high: int) -> tuple[Path, int, int]:
        shard = self.shards[number]
        bounds = []
        for place in (low, high):
            if place == self._start_list[number + 1]:
                bounds.append(shard.size)
            else:
                image = place if self.file_order is None else int(self.file_order[place])
                bounds.append(int(shard.offsets[self.locate(image)[1]]))
        return shard.path, bounds[0], bounds[1]

    def _shard_images(self) -> list[tuple[RecordReader, int, int]]:
        """(reader, position of the first image, number of images) of each shard."""
        return list(zip(self.shards, self._first, np.diff(self.starts).tolist(), strict=True))

    @cached_property
    def num_classes(self) -> int:
        """The largest label + 1. Warns if a single insightface file has another number of identity records."""
        classes, identities = int(self.labels().max()) + 1, self._identities[0]
        if len(self.shards) == 1 and identities not in (0, classes):
            warn(f"{self.path}: has {identities} identity records, but its labels are of {classes} classes; the labels count")
        return classes

    @cached_property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels from the `property` file (`C,112,112`); None if there is none."""
        file = (self.path if self.path.is_dir() else self.path.parent) / "property"
        if not file.is_file():
            return None
        try:
            where, first_line = next(numbered_lines(file), (f"{file}: line 1", ""))  # RecBuilder adds a line with a count
            _, height, width = (int(number) for number in first_line.split(","))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{where}: must contain 'classes,height,width', such as 8631,112,112; fix it") from error
        return height, width

    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [images], read-only. They are read from the records' headers once (seconds for millions) and kept."""
        return self._labels

    @cached_property
    def _labels(self) -> npt.NDArray[np.int64]:
        labels = np.empty(len(self), np.int64)
        done = 0
        for shard, first, count in self._shard_images():
            at = first
            for rows in shard.headers(first, first + count):
                label = rows["label"]
                valid = rows["sound"] & (rows["bytes"] > 0) & np.isfinite(label)
                valid &= np.abs(label) <= EXACT_IN_FLOAT32
                valid &= np.floor(label) == label
                chunk = labels[done : done + len(rows)]
                chunk[valid] = label[valid]
                for odd in np.flatnonzero(~valid).tolist():
                    chunk[odd] = self._label_of_record(shard, at + odd, done + odd)
                at, done = at + len(rows), done + len(rows)
        labels.flags.writeable = False
        return labels

    def _label_of_record(self, shard: RecordReader, position: int, image: int) -> int:
        """The label, by reading the whole record. Of a damaged record it is `UNREADABLE`; if strict, it raises RecordError."""
        try:
            return _image_and_label(shard, position)[1]
        except RecordError:
            if self.strict:
                raise
            self._unreadable.append(image)
            return UNREADABLE

    def describe_files(self) -> str:
        """The names of the files, for messages."""
        return _names(shard.path for shard in self.shards)

    def check_training_files(self) -> None:
        """Raise UserError if a folder contains only files that are by name not for training."""
        others = held_out(shard.path for shard in self.shards) if self.path.is_dir() else []
        if others:
            raise UserError(f"{self.path}: contains only {_names(others)}, by name not for training; {_NAME_IT}")

    def check_labels(self, num_classes: int) -> None:
        """Raise UserError for the first image whose label is not an integer in [0, num_classes)."""
        if num_classes > EXACT_IN_FLOAT32:
            raise UserError(
                f"{self.path}: num_classes={num_classes}, but labels are stored as float32, exact only up to "
                f"{EXACT_IN_FLOAT32}; use fewer classes"
            )
        labels = self.labels()
        outside = (labels >= num_classes) | (labels < 0)
        outside[self._unreadable] = False
        if outside.any():
            first = int(outside.argmax())
            advice = f"set num_classes to {int(labels.max()) + 1} or fix the labels" if labels[first] >= 0 else "fix the labels"
            raise UserError(
                f"{self.where(first)}: label {labels[first]} is outside [0, {num_classes}) "
                f"({int(outside.sum())} of {len(self)} images are); {advice}"
            )


def _image_and_label(shard: RecordReader, position: int) -> tuple[bytes, int]:
    payload, label = shard.image_at(position)
    if not label.is_integer():  # nor is NaN or infinity
        raise _record_error(shard, position, f"label {label} is not a class: labels are whole numbers; pack it again")
    if abs(label) > EXACT_IN_FLOAT32:
        raise _record_error(shard, position, f"label {label:.0f} is not exact in float32; pack it with smaller labels")
    if not payload:
        raise _record_error(shard, position, "contains no image, but the layout requires one; pack or index the file again")
    return payload, int(label)


def _record_error(shard: RecordReader, position: int, problem: str) -> RecordError:
    return RecordError(shard.path, int(shard.keys[position]), int(shard.offsets[position]), problem)


def _shard_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a .rec file, or a folder with train.rec or *.rec shards")
    if not path.is_dir():
        return [path]  # the reader checks it
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == ".rec" and not file.name.startswith("."))
    except OSError as error:
        raise UserError(f"{path}: the data folder cannot be read ({error.strerror})") from error
    if not files:
        raise UserError(f"{path}: contains no .rec file; give a .rec file, or a folder with train.rec or *.rec shards")
    whole = path / "train.rec"
    if whole not in files:
        others = held_out(files)
        if 0 < len(others) < len(files):
            mixed = f"{_names(others)}, by name not for training, and {_names(set(files) - set(others))}"
            raise UserError(f"{path}: contains {mixed}; {_NAME_IT}")
        return files
    if len(files) > 1:
        others = [file for file in files if file != whole]
        warn(f"{path}: train.rec is used, {len(others)} other .rec files are not ({_names(others)})")
    return [whole]


def held_out(files: Iterable[Path]) -> list[Path]:
    """The files whose names contain a word such as `val` or `test`, as im2rec's parts of a list do."""
    return [file for file in files if _HELD_OUT.search(file.stem.lower())]


def _names(files: Iterable[Path]) -> str:
    names = sorted(file.name for file in files)
    shown = names if len(names) <= _NAMES_SHOWN else [*names[: _NAMES_SHOWN - 2], "…", f"{names[-1]} ({len(names)} files)"]
    return ", ".join(shown)


def _image_span(shard: RecordReader, strict: bool) -> tuple[int, int, int]:
    """One file's position of the first image, position after the last image, and number of identity records."""
    first = shard.read_at(0)
    if first.payload:
        return 0, len(shard), 0
    if shard.keys[0] != 0 or first.flag != 2:
        problem = "the first record has neither an image nor insightface's labels [N+1, N+C+1]"
        raise _record_error(shard, 0, f"{problem}; pack or index it again")
    stop = _end_of_images(shard, first, strict)
    keys = shard.keys[1:stop]
    gaps = np.flatnonzero(keys != np.arange(1, stop))
    if len(gaps):
        missing = int(gaps[0]) + 1
        raise UserError(f"{shard.idx_path}: key {missing}, an image, is missing; move the index away to have it rebuilt")
    identities = len(shard) - stop
    if identities:
        claimed = float(first.label[1]) - float(first.label[0])
        if abs(identities - claimed) > _slack(float(first.label[0])) + _slack(float(first.label[1])):
            raise UserError(
                f"{shard.path}: record 0 announces {claimed:.0f} identities, but the index lists {identities}; "
                "move the index away to have it rebuilt"
            )
    return 1, stop, identities


def _end_of_images(shard: RecordReader, header: Record, strict: bool) -> int:
    """The position of the first identity record, searched for around the position that record 0 announces."""
    claim = float(header.label[0])
    if not 1 < claim < 1 << 62:
        raise _record_error(shard, 0, f"announces images up to key {claim} - 1; pack the file again")
    # From just before the earliest possible position to the latest, there must be images and then identity records.
    around = [max(1, int(claim) - _slack(claim) - 1), int(claim) + _slack(claim) + 1]
    low, high = np.searchsorted(shard.keys, around).tolist()
    images = [_holds_image(shard, position, strict) for position in range(max(low, 1), high)]
    stop = max(low, 1) + sum(images)
    ends_here = stop < high or stop == len(shard)  # the latter if there are no identity records
    if not ends_here or not any(images[:1]) or images != sorted(images, reverse=True):
        problem = f"announces that the images end before key {claim:.0f}, but they do not"
        raise _record_error(shard, 0, f"{problem}; move the index away to have it rebuilt, or pack the file again")
    return stop


def _holds_image(shard: RecordReader, position: int, strict: bool) -> bool:
    try:
        return bool(shard.read_at(position).payload)
    except RecordError:
        if strict:
            raise
        return True  # it stays in the set, so that readers can count it as skipped


def _slack(value: float) -> int:
    """How far `value`, read from a float32, may be from the integer that was written."""
    return 0 if value < EXACT_IN_FLOAT32 else int(np.spacing(np.float32(value)))
