"""The images that an audit reads: a data set, or a verification set."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eval.verification import load_bin
from recognition.data.sets import opening


class Faces(Protocol):
    """The part of `FaceDataset` that an audit uses."""

    path: Path

    def __len__(self) -> int: ...
    def labels(self) -> npt.NDArray[np.int64]: ...
    def read(self, image: int) -> tuple[bytes, int]: ...
    def where(self, image: int) -> str: ...
    def record(self, image: int) -> tuple[str, int]: ...


class BinFaces:
    """The images of a verification set (.bin). Both images of a pair of one person have the same label, all others their own."""

    def __init__(self, path: Path):
        self.path = path
        self._images, issame = load_bin(path)
        self._labels = np.arange(len(self._images))
        self._labels[1::2][issame] -= 1

    def __len__(self) -> int:
        return len(self._images)

    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    def read(self, image: int) -> tuple[bytes, int]:
        return self._images[image], int(self._labels[image])

    def where(self, image: int) -> str:
        return f"{self.path}: image {image}"

    def record(self, image: int) -> tuple[str, int]:
        return str(self.path), image


def open_faces(path: Path) -> Faces:
    """A verification set (.bin), or a data set: packed, a folder or a list. Raises UserError if it cannot be opened."""
    return BinFaces(path) if path.suffix == ".bin" else opening.open_faces(path)
