"""What an audit needs of each image: its feature, a thumbnail, and hashes of its pixels, in files that are read block by block.

Shapes: N images, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from eval.embedding import embed_items
from recognition.data.overlap import pixel_hash
from recognition.data.pack.commands.audit.faces import Faces
from recognition.encoders.load import LoadedEncoder
from utils.images import Image, decode_face

THUMBNAIL = 16  # side in pixels
IMAGES_AT_ONCE = 4096  # whose features are in memory while they are computed
FEATURES, THUMBNAILS, HASHES = "features.npy", "thumbnails.npy", "hashes.npy"


@dataclass(frozen=True)
class Evidence:
    """The evidence of a data set.

    features: float16 [N, D], of length 1, of an image and its mirror image together: mirroring an image does not change it.
    thumbnails: uint8 [N, 16, 16], grey. Both are files. hashes: uint64 [N, 2], of the pixels and of the mirrored pixels.
    """

    faces: Faces
    features: npt.NDArray[np.float16]
    thumbnails: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def load(cls, faces: Faces, folder: Path) -> Evidence:
        """Open the files that `collect` wrote."""
        features, thumbnails = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (FEATURES, THUMBNAILS))
        return cls(faces, features, thumbnails, np.load(folder / HASHES, allow_pickle=False))

    def __len__(self) -> int:
        return len(self.features)


def collect(faces: Faces, encoder: LoadedEncoder, folder: Path, batch_size: int, on_images: Callable[[int], object]) -> None:
    """Decode and embed every image, and write the evidence to `folder`. `on_images` receives how many more are done.

    Raises UserError for an image that cannot be read or decoded, or is not 112x112, and for features that are not finite.
    """
    total = len(faces)
    shape = (total, THUMBNAIL, THUMBNAIL)
    thumbnails = np.lib.format.open_memmap(folder / THUMBNAILS, "w+", np.uint8, shape)
    hashes = np.empty((total, 2), np.uint64)
    features = None
    for start in range(0, total, IMAGES_AT_ONCE):
        count = min(IMAGES_AT_ONCE, total - start)

        def load(index: int, start: int = start) -> Image:
            image = decode_face(faces.read(start + index)[0], faces.where(start + index))
            thumbnails[start + index] = grey(image, THUMBNAIL)
            hashes[start + index] = pixel_hash(image), pixel_hash(image[:, ::-1])
            return image

        def embed(images: torch.Tensor) -> torch.Tensor:
            rows = encoder.embed(images)
            on_images(len(images))
            return rows

        rows = embed_items(embed, load, count, batch_size, torch.add, str(faces.path))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if features is None:
            features = np.lib.format.open_memmap(folder / FEATURES, "w+", np.float16, (total, rows.shape[1]))
        features[start : start + count] = rows / np.maximum(lengths, 1e-12)
    np.save(folder / HASHES, hashes)


def grey(image: Image, side: int) -> Image:
    """A grey thumbnail of an RGB image: uint8 [side, side]."""
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)
