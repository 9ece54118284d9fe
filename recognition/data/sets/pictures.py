"""Face images in files of their own, without packing: a folder with one subfolder per identity, or a text list.

A list has one image per line: its path, blanks, and its label. Paths are relative to the list's folder and may contain blanks.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from recognition.data.dataset import FaceDataset
from recognition.data.records.format import RecordError
from utils.errors import UserError
from utils.files import numbered_lines, path_inside
from utils.images import FACE_SIZE, LeftOut, image_names, read_header, read_image_file, scan_folder

LISTS = (".txt", ".lst")  # suffixes of text lists
_CHECKED = 64  # images whose sizes are checked at the start, evenly spaced
_ALIGN = "align the faces: python -m recognition.data.pack align"


class PictureError(RecordError):
    """An image file that cannot be used. key: None; offset: 0."""

    def __init__(self, path: str | Path, key: int | None, offset: int, problem: str):
        super().__init__(path, key, offset, problem)
        self.args = (f"{path}: {problem}",)


class PictureFaces(FaceDataset):
    """Images in files, with the interface of packed sets; damaged files are treated like damaged records.

    files: paths below `root`, sorted by label or in the order of the list; labels: int64, one per file; names: the identities'
    names, None if there are none. Memory: the bytes of the longest path, and 8 bytes, per image.
    Raises UserError if there is no image, or if one of a sample of images does not have the size of a face.
    """

    def __init__(self, path: Path, root: Path, files: list[str], labels: list[int], names: list[str] | None, strict: bool = True):
        self.path, self.root, self.strict, self.names = path, root, strict, names
        self.shards, self._first, self._identities, self._unreadable = [], [], [0], []
        if not files:
            raise UserError(f"{path}: contains no image; give a folder with one subfolder of images per identity, or a list")
        self._start_list = [0, len(files)]
        self.starts = np.array(self._start_list)
        self._files = np.array([os.fsencode(file) for file in files])
        self._file_labels = np.array(labels, np.int64)
        self._file_labels.flags.writeable = False
        self._check_sizes()

    def _check_sizes(self) -> None:
        for image in np.unique(np.linspace(0, len(self) - 1, _CHECKED).astype(np.int64)).tolist():
            try:
                header = read_header(self.read(image)[0])
            except (RecordError, ValueError):
                continue  # reported when it is read for training
            if (header.height, header.width) != (FACE_SIZE, FACE_SIZE):
                found = f"{header.width}x{header.height} pixels, expected {FACE_SIZE}x{FACE_SIZE}"
                raise UserError(f"{self.where(image)}: the image has {found}; {_ALIGN} {self.root} OUT")

    def read(self, image: int) -> tuple[bytes, int]:
        try:
            return read_image_file(self._file(image)), int(self._file_labels[image])
        except UserError as error:
            raise self.record_error(image, str(error).removeprefix(f"{self._file(image)}: ")) from None

    def _file(self, image: int) -> Path:
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        return self.root / os.fsdecode(self._files[image])

    def where(self, image: int) -> str:
        return str(self._file(image))

    def record(self, image: int) -> tuple[str, int]:
        """The file of an image, and its number."""
        return self.where(image), image

    def record_error(self, image: int, problem: str) -> RecordError:
        return PictureError(self._file(image), None, 0, problem)

    @property
    def file_order(self) -> None:
        return None

    def byte_ranges(self, start: int, stop: int) -> list[tuple[Path, int, int]]:
        files = [self._file(image) for image in range(start, stop)]
        return [(file, 0, file.stat().st_size) for file in files if file.is_file()]

    @property
    def image_size(self) -> tuple[int, int]:
        return FACE_SIZE, FACE_SIZE

    @property
    def inside(self) -> bool:
        """Whether all paths are below `root`: those of a list may lead out of it."""
        return not (np.char.startswith(self._files, b"/") | (np.char.find(self._files, b"..") >= 0)).any()

    def path_of(self, image: int, label: int) -> PurePosixPath:
        """The path of an image below `root`, as in images.csv. Raises UserError if such a list cannot contain it."""
        return path_inside(os.fsdecode(self._files[image]), self.where(image))

    def labels(self) -> npt.NDArray[np.int64]:
        return self._file_labels

    def describe_files(self) -> str:
        return f"{len(self):,} image files"

    def check_training_files(self) -> None:
        """Nothing to check: files of their own have no names that tell training from validation."""


def is_pictures(path: Path) -> bool:
    """Whether a path is a text list, or a folder with subfolders or image files and without `.rec` files."""
    if not path.is_dir():
        return path.suffix.lower() in LISTS
    if not os.access(path, os.R_OK | os.X_OK) or any(path.glob("*.rec")):
        return False
    return any(scan_folder(path))


def open_pictures(path: Path, *, strict: bool = True) -> PictureFaces:
    """A folder with one subfolder per identity, labelled in the order of their names, or a text list. UserError: see above."""
    return _open_folder(path, strict) if path.is_dir() else _open_list(path, strict)


def _open_folder(path: Path, strict: bool) -> PictureFaces:
    left_out = LeftOut()
    loose, people = scan_folder(path, left_out)
    if loose and not people:
        raise UserError(
            f"{path}: contains images but no subfolders; rec= needs one subfolder per identity (photos without identities: "
            "unlabelled=)"
        )
    for name in loose:
        left_out.add("image outside the identities' folders", path / name)
    files, labels, names = [], [], list[str]()
    for name in people:
        if pictures := image_names(path / name, left_out):
            files += [f"{name}/{picture}" for picture in pictures]
            labels += [len(names)] * len(pictures)
            names.append(name)
        else:
            left_out.add("folder without images", path / name)
    left_out.warn(path)
    return PictureFaces(path, path, files, labels, names, strict)


def _open_list(path: Path, strict: bool) -> PictureFaces:
    files, labels, missing = [], [], []
    for where, line in numbered_lines(path):
        name, _, label = line.replace("\t", " ").rpartition(" ")
        name = name.strip().strip('"')
        if not name or not label.isdecimal():
            raise UserError(f"{where}: expected a path and a label (a whole number), such as 'ada/1.jpg 0', found {line!r}")
        if not (path.parent / name).is_file():
            missing.append(f"{where}: {path.parent / name} is not a file")
        files.append(name)
        labels.append(int(label))
    if missing:
        raise UserError(f"{missing[0]} ({len(missing)} of {len(files)} are missing); correct the list or add the files")
    return PictureFaces(path, path.parent, files, labels, None, strict)
