"""Several data sets as one: `rec=("ms1m", "mine")`. Nothing is rewritten or copied.

The images of the sets are numbered one set after the other, and so are the identities, unless a map joins some of them. How a
set's identities relate to those of the other sets (`rec_identities`, one entry per set, or one for all):

    separate      other people than in any other set
    overlapping   possibly the same people as in other sets: an identity of this set is never a negative for an image of another
                  set, and the reverse
    by_name       identities of equal names are the same person; the names are those of the folders, or of the classes.csv next to
                  a packed set
    a CSV file    the same, with the names from a file with the columns label,name; labels that are not listed stay separate

An epoch visits each image once, or as `rec_proportions` says: 0.5 is a random half of the set, another one each epoch; 2 is the
whole set twice.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.dataset import UNREADABLE, FaceDataset
from recognition.data.pack.listing import class_names
from recognition.data.records.format import RecordError
from recognition.data.sets.pictures import PictureFaces
from utils.errors import UserError
from utils.files import open_text

SEPARATE, OVERLAPPING, BY_NAME = "separate", "overlapping", "by_name"
_MOST_SETS = 60  # a bit each in an int64
_SETS_SHOWN = 3


class UnionFaces(FaceDataset):
    """The images of `members`. identities, proportions: one entry per member, see above.

    visits: int64 [sets], images of each set that an epoch visits. Raises UserError for a set that is given twice, labels that are
    not classes, different image sizes, and malformed maps.
    """

    def __init__(self, members: Sequence[FaceDataset], identities: Sequence[str], proportions: Sequence[float]):
        self.members, self.strict = list(members), all(member.strict for member in members)
        shown = [str(member.path) for member in members[:_SETS_SHOWN]] + ["…"] * (len(members) > _SETS_SHOWN)
        self.path = Path(" + ".join(shown))
        self._check_members()
        self.shards = [shard for member in self.members for shard in member.shards]
        self._first, self._identities, self._unreadable = [], [0], []
        self.starts = np.cumsum([0] + [len(member) for member in self.members])
        self._start_list = self.starts.tolist()
        self.visits = self._visits(proportions)
        self._classes = _join([_names(member, relation) for member, relation in zip(self.members, identities, strict=True)])
        self._overlapping = [relation == OVERLAPPING for relation in identities]

    def _check_members(self) -> None:
        if len(self.members) > _MOST_SETS:
            raise UserError(f"rec names {len(self.members)} data sets; at most {_MOST_SETS} can be used at once")
        places: dict[Path, FaceDataset] = {}
        for member in self.members:
            if member.path.resolve() in places:
                raise UserError(f"{member.path}: is given twice; set rec_proportions to visit a data set more often")
            places[member.path.resolve()] = member
            member.check_labels(member.num_classes)
        sizes = {member.image_size: member for member in self.members if member.image_size is not None}
        if len(sizes) > 1:
            found = ", ".join(f"{member.path}: {size[1]}x{size[0]}" for size, member in sizes.items() if size is not None)
            raise UserError(f"rec names data sets of different image sizes ({found}); pack them in one size")

    def _visits(self, proportions: Sequence[float]) -> npt.NDArray[np.int64]:
        visits = [round(proportion * len(member)) for proportion, member in zip(proportions, self.members, strict=True)]
        for member, proportion, count in zip(self.members, proportions, visits, strict=True):
            if not count:
                raise UserError(f"{member.path}: rec_proportions={proportion:g} selects none of {len(member)} images; raise it")
        return np.array(visits)

    def _member(self, image: int) -> tuple[int, FaceDataset, int]:
        """The number of the set that holds an image, the set, and the image's number in it."""
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        number = bisect_right(self._start_list, image) - 1
        return number, self.members[number], image - self._start_list[number]

    def read(self, image: int) -> tuple[bytes, int]:
        number, member, inside = self._member(image)
        payload, label = member.read(inside)
        classes = self._classes[number]
        if not 0 <= label < len(classes):
            raise member.record_error(inside, f"label {label} is not the one that was read at the start; do not change the files")
        return payload, int(classes[label])

    def where(self, image: int) -> str:
        _, member, inside = self._member(image)
        return member.where(inside)

    def record(self, image: int) -> tuple[str, int]:
        _, member, inside = self._member(image)
        return member.record(inside)

    def record_error(self, image: int, problem: str) -> RecordError:
        _, member, inside = self._member(image)
        return member.record_error(inside, problem)

    @cached_property
    def file_order(self) -> npt.NDArray[np.int64] | None:
        orders = [member.file_order for member in self.members]
        if all(order is None for order in orders):
            return None
        pairs = zip(orders, self.members, self._start_list, strict=False)
        return np.concatenate([start + (np.arange(len(member)) if order is None else order) for order, member, start in pairs])

    def byte_ranges(self, start: int, stop: int) -> list[tuple[Path, int, int]]:
        ranges = []
        for member, first in zip(self.members, self._start_list, strict=False):
            low, high = max(start - first, 0), min(stop - first, len(member))
            if low < high:
                ranges += member.byte_ranges(low, high)
        return ranges

    @cached_property
    def num_classes(self) -> int:
        return max(int(classes.max()) for classes in self._classes) + 1

    @property
    def image_size(self) -> tuple[int, int] | None:
        return next((member.image_size for member in self.members if member.image_size is not None), None)

    @cached_property
    def _labels(self) -> npt.NDArray[np.int64]:
        # the appended entry is that of UNREADABLE, which is -1
        parts = [
            np.append(classes, UNREADABLE)[member.labels()] for classes, member in zip(self._classes, self.members, strict=True)
        ]
        labels = np.concatenate(parts)
        self._unreadable = np.flatnonzero(labels == UNREADABLE).tolist()
        labels.flags.writeable = False
        return labels

    @cached_property
    def possibly_same(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]] | None:
        """Which identities may be one person under two labels: (group of each class, uint8 [C]; whether a class of one group and
        a class of another may be the same person, bool [groups, groups]). None if no two may be."""
        if not any(self._overlapping):
            return None
        sets_C = np.zeros(self.num_classes, np.int64)  # bit s: the class is one of set s
        for number, classes in enumerate(self._classes):
            sets_C[classes] |= 1 << number
        overlapping = sum(1 << number for number, may in enumerate(self._overlapping) if may)
        kinds, group_C = np.unique(sets_C, return_inverse=True)
        apart = (kinds[:, None] & kinds[None, :]) == 0
        return group_C.astype(np.uint8), apart & (((kinds[:, None] | kinds[None, :]) & overlapping) != 0)

    def describe_files(self) -> str:
        return "; ".join(f"{member.path}: {member.describe_files()}" for member in self.members)

    def check_training_files(self) -> None:
        for member in self.members:
            member.check_training_files()


def _join(names: Sequence[list[str | None]]) -> list[npt.NDArray[np.int64]]:
    """For each set, the class of each of its labels. names: of each set's labels; labels of equal names share a class."""
    total, classes_of, known = 0, [], dict[str, int]()
    for labels in names:
        classes = np.empty(len(labels), np.int64)
        for label, name in enumerate(labels):
            if name is not None and name in known:
                classes[label] = known[name]
                continue
            classes[label] = total
            if name is not None:
                known[name] = total
            total += 1
        classes_of.append(classes)
    return classes_of


def _names(member: FaceDataset, relation: str) -> list[str | None]:
    """The names by which a set's labels are joined with those of other sets; None for labels that are not."""
    if relation in (SEPARATE, OVERLAPPING):
        return [None] * member.num_classes
    if relation != BY_NAME:
        return _read_map(Path(relation), member)
    names = member.names if isinstance(member, PictureFaces) else class_names(member.path, member.num_classes)
    if names is None:
        raise UserError(f"{member.path}: rec_identities='{BY_NAME}' needs a classes.csv next to it, or give a map: a CSV file")
    return list(names)


def _read_map(path: Path, member: FaceDataset) -> list[str | None]:
    """The names in a CSV file with the columns label,name (more columns are ignored). None for labels that are not listed."""
    names: list[str | None] = [None] * member.num_classes
    line_of: dict[str, int] = {}
    with open_text(path, newline="") as file:
        reader = csv.reader(file)
        if next(reader, [])[:2] != ["label", "name"]:
            raise UserError(f"{path}: line 1 must be label,name; a map has one line per identity")
        for row in filter(None, reader):
            where = f"{path}: line {reader.line_num}"
            if len(row) < 2 or not row[0].isdecimal() or not row[1]:
                raise UserError(f"{where}: expected label,name; fix the line")
            label = int(row[0])
            if label >= len(names):
                raise UserError(f"{where}: {member.path} has no label {label}; its labels are 0 … {len(names) - 1}")
            if names[label] is not None:
                raise UserError(f"{where}: label {label} is listed twice; remove one line")
            if row[1] in line_of:
                raise UserError(f"{where}: {row[1]!r} is also on line {line_of[row[1]]}; one set must list each identity once")
            names[label], line_of[row[1]] = row[1], reader.line_num
    return names
