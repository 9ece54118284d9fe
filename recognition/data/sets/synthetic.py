"""`rec="synthetic"`: random images and labels, to measure a machine without data. They teach an encoder nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from recognition.data.dataset import FaceDataset
from recognition.data.pack.face_encoding import FaceFormat, encode
from recognition.data.records.reader import RecordReader
from utils.errors import UserError
from utils.images import FACE_SIZE
from utils.randomness import seed_for

SYNTHETIC = "synthetic"
_PICTURES = 256  # different JPEGs
_CELLS = 12  # per side of a picture: such JPEGs have about 5 kB, like those of faces, and take as long to decode
_MOST_IMAGES = 1 << 31  # labels take 8 bytes each


class SyntheticFaces(FaceDataset):
    """Smooth random JPEGs of a face's size, read and decoded like those of a record file. A function of the three numbers alone.

    The labels are spread evenly over the classes, and so over the ranks. Raises UserError if a number is missing or too large.
    """

    def __init__(self, num_image: int, num_classes: int, seed: int):
        if num_image < 1 or num_classes < 2:
            raise UserError(
                f"rec={SYNTHETIC!r}: random images and labels; set num_image (now {num_image}) and num_classes (now "
                f"{num_classes}, at least 2), such as num_image=100000 num_classes=93431"
            )
        if num_image > _MOST_IMAGES:
            raise UserError(f"rec={SYNTHETIC!r}: num_image={num_image}: at most {_MOST_IMAGES} synthetic images")
        self.path, self.strict = Path(SYNTHETIC), True
        self.shards, self._first, self._identities, self._unreadable = [], [], [0], []
        self._start_list = [0, num_image]
        self.starts = np.array(self._start_list)
        random = np.random.default_rng(seed_for(seed, num_image, num_classes))
        cells = random.integers(0, 256, (min(_PICTURES, num_image), _CELLS, _CELLS, 3), np.uint8)
        enlarged = (cv2.resize(picture, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_CUBIC) for picture in cells)
        self._pictures = [encode(np.asarray(picture, np.uint8), FaceFormat()) for picture in enlarged]
        self._random_labels = np.arange(num_image) * num_classes // num_image
        random.shuffle(self._random_labels)
        self._random_labels.flags.writeable = False

    def read(self, image: int) -> tuple[bytes, int]:
        return self._pictures[image % len(self._pictures)], int(self._random_labels[image])

    def where(self, image: int) -> str:
        return f"{SYNTHETIC}: image {image}"

    def record(self, image: int) -> tuple[str, int]:
        return SYNTHETIC, image

    def _shard_images(self) -> list[tuple[RecordReader, int, int]]:
        return []

    def labels(self) -> npt.NDArray[np.int64]:
        return self._random_labels
