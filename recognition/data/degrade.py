"""Real-world low quality: what distance, lens, sensor and compression make of a face."""

from __future__ import annotations

import cv2
import numpy as np


def degrade(image: np.ndarray, rng: np.random.Generator, low: int = 14, high: int = 24) -> np.ndarray:
    """Takes a sharp face to a far-away one and back to its size: blur, area downsampling, noise, JPEG, cubic up.

    Args:
        image: uint8 [H, W, 3], either channel order.
        rng: the only source of chance.
        low, high: bounds, both included, of the side of the small face in pixels.

    Returns:
        uint8, the shape of `image`.

    Raises:
        ValueError: not a uint8 colour image, or bounds that are not 1 <= low <= high.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not 1 <= low <= high:
        raise ValueError(
            f"expected a uint8 [H, W, 3] image and 1 <= low <= high, "
            f"found {image.dtype} {list(image.shape)}, low {low}, high {high}"
        )
    height, width = image.shape[:2]
    side = int(rng.integers(low, high + 1))
    out = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 2.0)) * max(height, width) / 112)
    small = (max(1, round(side * width / max(height, width))), max(1, round(side * height / max(height, width))))
    out = cv2.resize(out, small, interpolation=cv2.INTER_AREA)
    noisy = out + rng.normal(0.0, float(rng.uniform(1.0, 6.0)), out.shape)
    out = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 91))])[1]
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return cv2.resize(decoded, (width, height), interpolation=cv2.INTER_CUBIC)
