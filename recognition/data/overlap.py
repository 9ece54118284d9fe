"""Images that a verification set shares with the training set: equal pixels, or almost equal features.

A set with such images measures memory, not recognition. Shapes: N training images, M images of the set, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from eval.protocols.products import nearest
from recognition.data.dataset import FaceDataset
from recognition.data.parallel import cores
from recognition.data.records.format import RecordError
from utils.errors import UserError
from utils.images import Image, decode_image

NEAR = 0.95  # cosine from which on an image counts as almost the same: recompressed, slightly cropped, the next frame
_BLOCK = 2048  # training images whose features are in memory


def pixel_hash(image: Image) -> int:
    """A 64-bit hash of an image's pixels."""
    return int.from_bytes(blake2b(image.tobytes(), digest_size=8).digest(), "little")


def training_hashes(faces: FaceDataset) -> npt.NDArray[np.uint64]:
    """The `pixel_hash` of each training image, uint64 [N]; 0 for damaged ones. Decodes all of them, on all cores."""

    def hash_of(image: int) -> int:
        try:
            return pixel_hash(decode_image(faces.read(image)[0], ""))
        except (RecordError, UserError):
            return 0

    with ThreadPoolExecutor(cores()) as pool:
        return np.fromiter(pool.map(hash_of, range(len(faces))), np.uint64, len(faces))


def nearest_training_images(
    embed_training: Callable[[range], np.ndarray], count: int, features_MD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosine between each image of a set and any training image, float32 [M], and that image's number, int64 [M].

    embed_training: numbers of training images -> their raw features, float32 [n, D]. Collective if that is.
    """
    wanted = _unit(features_MD)
    cosine, number = np.full(len(wanted), -2.0, np.float32), np.zeros(len(wanted), np.int64)
    for start in range(0, count, _BLOCK):
        best, value = nearest(wanted, _unit(embed_training(range(start, min(start + _BLOCK, count)))))
        better = value > cosine
        cosine[better], number[better] = value[better], start + best[better]
    return cosine, number


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
