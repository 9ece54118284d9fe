"""Unlabelled photos (`unlabelled=`): a flat folder of aligned faces, or record files, whose labels are ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from recognition.data.dataset import FaceDataset
from recognition.data.records.format import RecordError
from utils.errors import UserError
from utils.images import FACE_SIZE
from utils.images.folders import LeftOut, scan_folder
from utils.images.headers import read_header
from utils.labels import UNLABELLED

_ALIGN = "align the faces first: python -m recognition.data.pack align"


class ImageSet(Protocol):
    """Images by number. `FaceDataset` is one."""

    path: Path

    @property
    def file_order(self) -> npt.NDArray[np.int64] | None:
        """int64 [images], the image numbers in the order of the files; None if that is 0, 1, 2, … anyway."""

    def __len__(self) -> int: ...

    def read(self, image: int) -> tuple[bytes, int]:
        """An image, encoded, and its label. Raises RecordError."""

    def where(self, image: int) -> str:
        """The image's place, for messages."""

    def record(self, image: int) -> tuple[str, int]:
        """The image's file, and its key there."""

    def record_error(self, image: int, problem: str) -> RecordError: ...


class UnlabelledRecords(FaceDataset):
    """Record files whose labels are ignored."""

    def read(self, image: int) -> tuple[bytes, int]:
        shard, position = self.locate(image)
        payload, _ = self.shards[shard].image_at(position)
        if not payload:
            raise self.record_error(image, "contains no image; pack or index the file again")
        return payload, UNLABELLED


class UnlabelledFolder:
    """The image files of a folder, in the order of their names.

    Raises UserError if there is none, or if the folder has subfolders: those may be identities.
    """

    file_order = None

    def __init__(self, path: Path):
        self.path, left_out = path, LeftOut()
        self._names, folders = scan_folder(path, left_out)
        if folders:
            raise UserError(
                f"{path}: unlabelled images must be in one flat folder, but it has subfolders ({folders[0]} is one of "
                f"{len(folders)}); move the images into one folder, or use rec= if a subfolder is an identity"
            )
        if not self._names:
            raise UserError(f"{path}: contains no image and no .rec file; give a folder of {FACE_SIZE}x{FACE_SIZE} photos")
        left_out.warn(path)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, image: int) -> tuple[bytes, int]:
        try:
            return (self.path / self._names[image]).read_bytes(), UNLABELLED
        except OSError as error:
            raise self.record_error(image, f"cannot be read ({error.strerror})") from error

    def where(self, image: int) -> str:
        return str(self.path / self._names[image])

    def record(self, image: int) -> tuple[str, int]:
        return self.where(image), image

    def record_error(self, image: int, problem: str) -> RecordError:
        return RecordError(self.where(image), None, 0, problem)


def open_unlabelled(path: str, *, strict: bool) -> ImageSet:
    """The unlabelled images that `path` names, of which the first has the size of a face. strict: as for `FaceDataset`.

    Raises UserError if they cannot be opened.
    """
    folder = Path(path)
    is_packed = not folder.is_dir() or any(folder.glob("*.rec"))
    images: ImageSet = UnlabelledRecords(folder, strict=strict) if is_packed else UnlabelledFolder(folder)
    try:
        header = read_header(images.read(0)[0])
    except (RecordError, ValueError):
        return images  # damage is met again where it is tolerated or not
    if (header.height, header.width) != (FACE_SIZE, FACE_SIZE):
        raise UserError(f"{images.where(0)}: is {header.width}x{header.height}, expected {FACE_SIZE}x{FACE_SIZE}; {_ALIGN}")
    return images
