"""Images in the colours of others (`colour_transfer=`)."""

from __future__ import annotations

import cv2
import numpy as np

from recognition.data.dataset import FaceDataset
from recognition.data.records.format import RecordError
from utils.errors import UserError
from utils.images import FACE_SIZE
from utils.randomness import uniforms

Colours = tuple[np.ndarray, np.ndarray]
"""Mean [3] and covariance [3, 3] of an image's pixels: float64, in grey levels."""

_LENDERS = 4096  # evenly spread over the set
_STREAM = 2  # of `uniforms`; the two views draw from 0 and 1
_LEAST_VARIANCE = 1.0  # of an image along any axis, in grey levels squared; bounds the amplification of noise


def colours_of(image: np.ndarray) -> Colours:
    """The colours of a uint8 image, from exact integer sums."""
    pixels = image.reshape(-1, 3)
    mean = np.array(cv2.mean(image)[:3])
    return mean, cv2.mulTransposed(pixels, True, dtype=cv2.CV_64F) / len(pixels) - np.outer(mean, mean)


def with_colours(image: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The image with this mean and covariance of its pixels: a new array, rounded and clipped to uint8.

    x' = T (x - mean_x) + mean with T = S_x^-1/2 (S_x^1/2 S S_x^1/2)^1/2 S_x^-1/2, the linear map that moves the pixels least
    (Pitié and Kokaram, "The linear Monge-Kantorovitch linear colour mapping for example-based colour transfer", CVMP 2007).
    """
    own_mean, own = colours_of(image)
    variances, axes = np.linalg.eigh(own)
    scale = np.sqrt(np.maximum(variances, _LEAST_VARIANCE))
    root, inverse = (axes * scale) @ axes.T, (axes / scale) @ axes.T
    variances, axes = np.linalg.eigh(root @ covariance @ root)
    transport = inverse @ (axes * np.sqrt(np.maximum(variances, 0))) @ axes.T @ inverse
    offset = mean - transport @ own_mean
    mapped = cv2.transform(image.astype(np.float32), np.column_stack([transport, offset]))  # of uint8, it would be less exact
    np.clip(np.rint(mapped, out=mapped), 0, 255, out=mapped)  # in place: fresh memory costs more than the arithmetic
    return mapped.astype(np.uint8)


class ColourBank:
    """The colours of up to 4,096 images of a set, spread evenly over it.

    Of a set that is not strict, damaged images are left out; in a strict set they raise RecordError. Raises UserError
    if none is left. probability: with which an image takes the colours of one of them.
    """

    def __init__(self, images: FaceDataset, probability: float):
        self._probability = probability
        self._colours: list[Colours] = []
        decoded = np.empty((FACE_SIZE, FACE_SIZE, 3), np.uint8)
        numbers = np.linspace(0, len(images) - 1, min(_LENDERS, len(images)), dtype=np.int64)
        for number in numbers.tolist():
            try:
                images.decode_into(number, decoded)
            except RecordError:
                if images.strict:
                    raise
            else:
                self._colours.append(colours_of(decoded))
        if not self._colours:
            raise UserError(f"{images.path}: none of the {len(numbers)} images that should lend their colours can be read")

    def lend(self, seed: int, epoch: int, positions: np.ndarray) -> list[Colours | None]:
        """The colours that the images at `positions` take; None: they keep their own."""
        draws_N2 = uniforms(seed, epoch, positions, 2, _STREAM).tolist()
        return [self._colours[int(v * len(self._colours))] if u < self._probability else None for u, v in draws_N2]
