"""Realistic low quality: the effect of distance, lens, sensor and compression on a face."""

from __future__ import annotations

import cv2
import numpy as np

from utils.images import FACE_SIZE


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
