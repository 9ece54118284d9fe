"""Low quality for tests: `degrade`, a realistic mixture (distance, lens, sensor, compression), and `AXES`, one kind at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from recognition.data.augment import jpeg, rotation
from utils.images import FACE_SIZE
from utils.randomness import seed_for


def degrade(image: np.ndarray, rng: np.random.Generator, low: int = 14, high: int = 24) -> np.ndarray:
    """Degrade a sharp face as if seen from far away: blur, downsampling by area, noise, JPEG, cubic upsampling to its size.

    Args:
        image: uint8 [H, W, 3], RGB or BGR.
        rng: the only source of randomness.
        low, high: inclusive bounds of the small face's longer side, in pixels.

    Returns:
        uint8, of the shape of `image`.

    Raises:
        ValueError: `image` is not a uint8 colour image, or not 1 <= low <= high.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not 1 <= low <= high:
        raise ValueError(
            f"expected a uint8 [H, W, 3] image and 1 <= low <= high, "
            f"found {image.dtype} {list(image.shape)}, low {low}, high {high}"
        )
    height, width = image.shape[:2]
    side = int(rng.integers(low, high + 1))
    out = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 2.0)) * max(height, width) / FACE_SIZE)
    small = (max(1, round(side * width / max(height, width))), max(1, round(side * height / max(height, width))))
    out = cv2.resize(out, small, interpolation=cv2.INTER_AREA)
    noisy = out + rng.normal(0.0, float(rng.uniform(1.0, 6.0)), out.shape)
    out = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 91))])[1]
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return cv2.resize(decoded, (width, height), interpolation=cv2.INTER_CUBIC)


# ------------------------------------------------------------------------------------------------ one kind at a time


@dataclass(frozen=True)
class Axis:
    """One kind of degradation, in steps.

    unit: of the levels. unchanged: the level of the image as it is. levels: in the order in which they are drawn.
    function: (RGB uint8 [112, 112, 3], level, rng) -> the same shape.
    """

    unit: str
    unchanged: float
    levels: tuple[float, ...]
    function: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

    def __call__(self, image: np.ndarray, level: float, number: int) -> np.ndarray:
        """Degrade image `number` of a set; RGB uint8. Its random numbers depend on `number` only, so levels share them."""
        if level == self.unchanged:
            return image
        return self.function(image, level, np.random.default_rng(seed_for(number)))


def _resolution(image: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    small = cv2.resize(image, (int(side), int(side)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def _blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.rint(image + deviation * rng.standard_normal(image.shape)), 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    return jpeg(image, int(quality))


def _brightness(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=factor)  # saturates at 255


def _rotation(image: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    return rotation(image, [float(rng.integers(2))], degrees)  # 0 and 1 are the two ends of the range


def _shift(image: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    angle = 2 * math.pi * rng.random()
    matrix = np.array([[1, 0, pixels * math.cos(angle)], [0, 1, pixels * math.sin(angle)]])
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


AXES = {
    "resolution": Axis("pixels", FACE_SIZE, (FACE_SIZE, 56, 40, 28, 20, 14, 10, 7), _resolution),
    "blur": Axis("pixels, sigma", 0, (0, 1, 2, 3, 4, 6), _blur),
    "noise": Axis("grey levels, sigma", 0, (0, 5, 10, 20, 40, 60), _noise),
    "jpeg": Axis("quality, 100: as it is", 100, (100, 60, 30, 20, 10, 5), _jpeg),
    "brightness": Axis("factor", 1, (0.1, 0.2, 0.35, 0.6, 1, 1.5, 2, 3), _brightness),
    "rotation": Axis("degrees", 0, (0, 5, 10, 20, 30, 45), _rotation),
    "misalignment": Axis("pixels", 0, (0, 1, 2, 3, 5, 7, 10), _shift),
}
"""Name -> kind of degradation. Resolution: area average, then cubic enlargement. Rotation and misalignment go in a random
direction per image and replicate the border."""
