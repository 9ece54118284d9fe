"""The files of an IJB-B or IJB-C release, and feature files.

    DIR/loose_crop/                           the images
    DIR/meta/ijbb_name_5pts_score.txt         image, five landmarks, detector score
    DIR/meta/ijbb_face_tid_mid.txt            image, template, media (a photograph, or all frames of one video)
    DIR/meta/ijbb_template_pair_label.txt     template, template, 1 if they show the same person, else 0
    DIR/meta/ijbb_1N_gallery_S1.csv …_S2.csv  galleries for identification (IJB-C: _G1, _G2): template, subject, …
    DIR/meta/ijbb_1N_probe_mixed.csv          probes

Shapes: N images, P pairs, D embedding.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import UNREADABLE_NPZ, numbered_lines, path_inside
from utils.images import decode_image, read_image_file
from utils.images.alignment import align_face
from utils.number_table import place_of_row, read_numbers

TARGETS = ("IJBB", "IJBC")


@dataclass(frozen=True)
class Images:
    """The template and the media that each image belongs to, in the file's order; int64 [N] each."""

    path: Path
    names: list[str]
    templates: np.ndarray
    medias: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Pairs:
    """The ids of the two templates of each pair, int64 [P], and whether they show the same person, bool [P]."""

    path: Path
    first: np.ndarray
    second: np.ndarray
    issame: np.ndarray

    def place(self, row: int) -> str:
        """File and line of a pair."""
        return place_of_row(self.path, row)


@dataclass(frozen=True)
class TemplateSubjects:
    """The templates of a gallery or of the probes, each once, and the subjects they show; int64 [T] each."""

    path: Path
    templates: np.ndarray
    subjects: np.ndarray

    def place(self, row: int) -> str:
        """File and line of a template."""
        lines = read_numbers(self.path, 1, "a template", delimiter=",", usecols=(0,), skip_lines=1)
        return place_of_row(self.path, int(np.argmax(lines == self.templates[row])), heading_lines=1)


class Meta:
    """The meta folder of a release. Raises UserError, listing what was looked for, if a file is missing."""

    def __init__(self, folder: str | Path, target: str):
        self.folder, self.target = Path(folder), target
        self.images_file = self.folder / f"{target.lower()}_face_tid_mid.txt"
        self.pairs_file = self.folder / f"{target.lower()}_template_pair_label.txt"
        self.landmarks_file = self.folder / f"{target.lower()}_name_5pts_score.txt"
        galleries = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}[target]
        self.gallery_files = [self.folder / f"{target.lower()}_1N_gallery_{name}.csv" for name in galleries]
        self.probe_file = self.folder / f"{target.lower()}_1N_probe_mixed.csv"

    def need(self, *files: Path) -> None:
        """Raises UserError unless all these files exist."""
        missing = [file for file in files if not file.exists()]
        if not missing:
            return
        other = next((name for name in TARGETS if list(self.folder.glob(f"{name.lower()}_*")) and name != self.target), None)
        advice = (
            f"it contains files of {other}: give --target {other}?" if other else "complete the release, or give another folder"
        )
        looked = ", ".join(f"{file.name} ({'missing' if file in missing else 'found'})" for file in files)
        raise UserError(f"{self.folder}: the {self.target} release is incomplete; looked for {looked}; {advice}")

    def has_identification(self) -> bool:
        """Whether the files for identification (one to many) exist."""
        return all(file.is_file() for file in [*self.gallery_files, self.probe_file])

    def images(self) -> Images:
        """Reads which template and media each image belongs to."""
        self.need(self.images_file)
        expected = "image, template, media (the last two whole numbers)"
        names = _names(self.images_file, 3, expected)
        if not names:
            raise UserError(f"{self.images_file}: contains no images")
        numbers = read_numbers(self.images_file, 2, expected, usecols=(1, 2))
        return Images(self.images_file, names, numbers[:, 0], numbers[:, 1])

    def pairs(self) -> Pairs:
        """Reads the pairs of templates to compare."""
        self.need(self.pairs_file)
        table = read_numbers(self.pairs_file, 3, "template, template, 1 (same person) or 0")
        if len(table) == 0:
            raise UserError(f"{self.pairs_file}: contains no pairs")
        label = table[:, 2]
        if label.max() > 1:
            row = int(np.argmax(label > 1))
            where = place_of_row(self.pairs_file, row)
            raise UserError(f"{where}: the pair is marked {label[row]}, neither 1 (same) nor 0 (different)")
        return Pairs(self.pairs_file, table[:, 0].copy(), table[:, 1].copy(), label == 1)

    def landmarks(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """Reads the landmarks, float64 [N, 5, 2], and the detector's scores, float32 [N], of the images, in their order."""
        self.need(self.landmarks_file)
        expected = "image, ten coordinates, score (finite numbers)"
        names = _names(self.landmarks_file, 12, expected)
        if len(names) != len(images):
            raise UserError(f"{self.landmarks_file}: {len(names)} images, but {len(images)} in {images.path.name}")
        for index, (name, wanted) in enumerate(zip(names, images.names, strict=True), 1):
            if name != wanted:
                raise UserError(
                    f"{self.landmarks_file}: image {index} is {name}, but {wanted} in {images.path.name}: "
                    "the two files must list the images in the same order"
                )
        numbers = read_numbers(self.landmarks_file, 11, expected, np.float64, usecols=range(1, 12))
        return numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10].astype(np.float32)

    def gallery(self, number: int) -> TemplateSubjects:
        """Reads gallery 0 or 1."""
        return _template_subjects(self.gallery_files[number])

    def probes(self) -> TemplateSubjects:
        """Reads the probes."""
        return _template_subjects(self.probe_file)


@dataclass(frozen=True)
class LooseCrops:
    """The photographs of a release, and the landmarks by which to align them, float64 [N, 5, 2]."""

    folder: Path
    images: Images
    landmarks: np.ndarray

    def find(self, index: int) -> Path:
        """The file of an image. Raises UserError if it is missing or empty."""
        path = self._path(index)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); complete the release") from error
        if not path.is_file() or not size:
            raise UserError(f"{path}: an empty file or a folder instead of an image; complete the release")
        return path

    def _path(self, index: int) -> Path:
        return self.folder / path_inside(self.images.names[index], f"{self.images.path}: image {index + 1}")

    def load(self, index: int) -> np.ndarray:
        """The aligned face of an image, uint8 RGB [112, 112, 3]."""
        path = self._path(index)
        return align_face(decode_image(read_image_file(path), path), self.landmarks[index], path)


def _names(path: Path, columns: int, expected: str) -> list[str]:
    """The first column of a file whose lines have `columns` columns. Blank lines are skipped."""
    names = []
    for where, line in numbered_lines(path):
        words = line.split()
        if len(words) != columns:
            spaces = "; names must not contain spaces" if len(words) > columns else ""
            raise UserError(f"{where}: {line[:60]!r} is not {expected}{spaces}")
        names.append(words[0])
    return names


def _template_subjects(path: Path) -> TemplateSubjects:
    """The first two columns of a CSV file with a header. A template that is listed once per image counts once."""
    table = read_numbers(path, 2, "a template and a subject number", delimiter=",", usecols=(0, 1), skip_lines=1)
    if len(table) == 0:
        raise UserError(f"{path}: contains no templates below its header")
    templates, first = np.unique(table[:, 0], return_index=True)
    subjects = table[first, 1]
    disagree = subjects[np.searchsorted(templates, table[:, 0])] != table[:, 1]
    if disagree.any():
        row = int(np.argmax(disagree))
        raise UserError(f"{place_of_row(path, row, heading_lines=1)}: template {table[row, 0]} is listed with two subjects")
    return TemplateSubjects(path, templates, subjects)


# -------------------------------------------------------------------------------------------------- features


class FeatureRows:
    """Features [N, D] that are read block by block, so that they need not fit in memory."""

    def __init__(self, name: str, shape: Sequence[int], dtype: np.dtype):
        self.name, self.shape, self.dtype = name, tuple(shape), np.dtype(dtype)
        if len(self.shape) != 2 or not self.shape[1] or not np.issubdtype(self.dtype, np.floating):
            raise UserError(f"{name}: {self.dtype} of shape {self.shape}; expected floating-point features [images, size]")

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError


class ArrayRows(FeatureRows):
    """Features in memory."""

    def __init__(self, array: np.ndarray, name: str = "features"):
        super().__init__(name, array.shape, array.dtype)
        self.array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]


class StoredRows(FeatureRows):
    """Uncompressed features in a file, from a byte offset on. Several threads may read at the same time."""

    def __init__(self, path: Path, name: str, offset: int, shape: Sequence[int], dtype: np.dtype):
        super().__init__(name, shape, dtype)
        self.path, self.offset = path, offset
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, start: int, stop: int) -> np.ndarray:
        row_bytes = self.shape[1] * self.dtype.itemsize
        wanted = (min(stop, len(self)) - start) * row_bytes
        data = os.pread(self.descriptor, wanted, self.offset + start * row_bytes)
        if len(data) != wanted:
            raise UserError(f"{self.name}: the file ends within the array; copy it again")
        return np.frombuffer(data, self.dtype).reshape(-1, self.shape[1])

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def read_feature_file(path: str | Path) -> dict[str, FeatureRows | np.ndarray]:
    """The arrays of a features.npz: `features` and, if present, `features_flip` as FeatureRows, `scores` as float [N].

    Arrays written by `np.savez` are read from the file on demand; those of `np.savez_compressed` are unpacked into memory. Object
    arrays are refused, so nothing is unpickled. Raises UserError for any other file.
    """
    path = Path(path)
    found: dict[str, FeatureRows | np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name == "scores":
                    found[name] = arrays[name]
                elif name in ("features", "features_flip"):
                    stored = member.compress_type == zipfile.ZIP_STORED
                    label = f"{path}, array {name!r}"
                    found[name] = _stored(path, member, label) if stored else ArrayRows(arrays[name], label)
    except UserError:
        raise
    except UNREADABLE_NPZ as fault:
        raise UserError(f"{path}: cannot be read as an .npz file of features ({fault})") from fault
    if "features" not in found:
        raise UserError(f"{path}: contains no array 'features'; expected 'features', and optionally 'features_flip' and 'scores'")
    return found


def _stored(path: Path, member: zipfile.ZipInfo, label: str) -> FeatureRows:
    """The rows of an uncompressed member, whose numbers follow the headers of the archive and of the array."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise UserError(f"{label}: the archive is damaged at byte {member.header_offset}")
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if fortran_order or dtype.hasobject:
            raise UserError(f"{label}: {dtype} in column order; save it again with np.ascontiguousarray")
        return StoredRows(path, label, file.tell(), shape, dtype)
