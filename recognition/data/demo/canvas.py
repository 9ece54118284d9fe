"""Vector drawing on an enlarged canvas. Points are in pixels of the 112x112 crop; a margin leaves room for hair and rotation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from utils.images import FACE_SIZE

MARGIN = 16
FIELD = FACE_SIZE + 2 * MARGIN  # side of fields with one sample per pixel: relief, soft masks
SCALE = 2
SIDE = FIELD * SCALE  # side of the painted canvas
_SHIFT = 4  # binary places of OpenCV's fixed-point coordinates

Points = Sequence[tuple[float, float]] | np.ndarray
Paint = Sequence[float] | np.ndarray  # red, green, blue; clipped to 0-255


def grid() -> tuple[np.ndarray, np.ndarray]:
    """The crop coordinates of a field's samples, float32: x as a row, y as a column."""
    along = np.arange(FIELD, dtype=np.float32) - MARGIN
    return along[None, :], along[:, None]


def to_field(points_N2: np.ndarray) -> np.ndarray:
    """Crop coordinates as indices into a field."""
    return points_N2 + MARGIN


def _fixed(points: Points, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    canvas = (np.asarray(points, float) + (MARGIN + 0.5)) * SCALE - 0.5 - np.asarray(origin, float)
    return np.round(canvas * (1 << _SHIFT)).astype(np.int32)


def _colour(value: Paint) -> tuple[float, ...]:
    red, green, blue = np.clip(value, 0, 255).tolist()
    return red, green, blue, 255.0


@lru_cache(maxsize=256)
def _catmull_rom(count: int, steps: int, closed: bool) -> np.ndarray:
    """Weights [samples, count] of a smooth curve through `count` points (Catmull and Rom, 1974)."""
    segments = count if closed else count - 1
    rows = []
    for segment in range(segments):
        for t in np.arange(steps) / steps:
            row = np.zeros(count)
            basis = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
            for place, weight in zip(range(segment - 1, segment + 3), basis, strict=True):
                row[place % count if closed else min(max(place, 0), count - 1)] += weight / 2
            rows.append(row)
    if not closed:
        rows.append(np.eye(count)[-1])
    return np.array(rows)


def curve(points: Points, closed: bool = False, steps: int = 6) -> np.ndarray:
    """A smooth curve through the points, [N, 2]."""
    points_N2 = np.asarray(points, float)
    return _catmull_rom(len(points_N2), steps, closed) @ points_N2


def mirrored(points: Points, axis: float = FACE_SIZE / 2) -> np.ndarray:
    """The points mirrored left to right, in reverse order, so that an outline followed by its mirror image is closed."""
    flipped = np.asarray(points, float)[::-1].copy()
    flipped[:, 0] = 2 * axis - flipped[:, 0]
    return flipped


def symmetric(half: Points, middle: Points = ()) -> np.ndarray:
    """The points of one half, then those in the middle, then the mirrored half."""
    return np.array([*half, *middle, *mirrored(half)])


def fill(image: np.ndarray, points: Points, colour: Paint, origin: tuple[int, int] = (0, 0)) -> None:
    """Fill a polygon. image: RGBA, the canvas or a part of it that begins at the canvas pixel `origin`."""
    cv2.fillPoly(image, [_fixed(points, origin)], _colour(colour), cv2.LINE_AA, _SHIFT)


def paste(image: np.ndarray, layer: np.ndarray, points: Points, origin: tuple[int, int] = (0, 0)) -> None:
    """Copy the part of `layer` that lies inside the polygon into `image`, which has the same shape."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [_fixed(points, origin)], (255,), cv2.LINE_8, _SHIFT)
    cv2.copyTo(layer, mask, image)


def stroke(image: np.ndarray, points: Points, colour: Paint, width: float, closed: bool = False) -> None:
    """Draw a line that is `width` crop pixels wide, and at least one canvas pixel."""
    thickness = max(1, round(width * SCALE))
    cv2.polylines(image, [_fixed(points)], closed, _colour(colour), thickness, cv2.LINE_AA, _SHIFT)


def ellipse_points(centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> np.ndarray:
    """The outline of an ellipse: [20, 2]."""
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    return np.stack(
        [centre[0] + x * np.cos(angle) - y * np.sin(angle), centre[1] + x * np.sin(angle) + y * np.cos(angle)], axis=1
    )


def spot(centre: tuple[float, float], spread: tuple[float, float]) -> np.ndarray:
    """A Gaussian of height 1, as a field: float32 [FIELD, FIELD]."""
    x, y = grid()
    return np.exp(-0.5 * ((y - centre[1]) / spread[1]) ** 2) * np.exp(-0.5 * ((x - centre[0]) / spread[0]) ** 2)


def noise(rng: np.random.Generator, shape: tuple[int, int], side: int) -> np.ndarray:
    """Smooth noise: normal random values of the given shape, enlarged to a square, float32 [side, side]."""
    return cv2.resize(rng.standard_normal(shape, dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
