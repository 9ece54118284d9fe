"""Faces cut out of photographs by five landmarks, as ArcFace's training data were.

The transform is the least-squares similarity (rotation, scale, shift) of Umeyama, *Least-squares estimation of
transformation parameters between two point patterns* (1991), as scikit-image's `SimilarityTransform` estimates it; in the
plane it has a closed form, computed here for any number of faces at once.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from utils.errors import UserError
from utils.images import FACE_SIZE, decode_image, read_image_file

SIZE = FACE_SIZE
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)
"""Where ArcFace puts left eye, right eye, nose, left and right corner of the mouth: (x, y) in a 112x112 image."""


def similarity_transforms(landmarks_NK2: np.ndarray, template_K2: np.ndarray = TEMPLATE) -> np.ndarray:
    """The similarity that brings each face's K landmarks (x, y in pixels) nearest to the template's: float64 [N, 2, 3],
    matrices as `cv2.warpAffine` takes them. NaN where a face's landmarks coincide or are not finite."""
    points = np.asarray(landmarks_NK2, np.float64)
    goal = template_K2 - template_K2.mean(axis=0)
    centre_N2 = points.mean(axis=1)
    x, y = np.moveaxis(points - centre_N2[:, None], 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (x * x + y * y).sum(axis=1)
        spread = np.where(spread > 0, spread, np.nan)
        cosine = (x @ goal[:, 0] + y @ goal[:, 1]) / spread  # scale times cosine and sine of the turn
        sine = (x @ goal[:, 1] - y @ goal[:, 0]) / spread
    turn_N22 = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
    shift_N2 = template_K2.mean(axis=0) - np.einsum("nij,nj->ni", turn_N22, centre_N2)
    return np.concatenate([turn_N22, shift_N2[:, :, None]], axis=2)


def read_photo(path: str, where: str) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]; UserError, beginning with `where`, if it cannot be read."""
    try:
        encoded = read_image_file(Path(path))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return decode_image(encoded, f"{where}: {path}")


def read_photo_inside(folder: Path, name: str, where: str) -> np.ndarray:
    """`read_photo` of a file that a list names; UserError where that name would lead out of `folder`."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise UserError(f"{where}: {name!r} is no path inside {folder}; write it without '..' and leading '/'")
    return read_photo(str(folder / name), where)


def warp(image: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """The aligned face, uint8 RGB [112, 112, 3]: bilinear, black outside the photograph."""
    return cv2.warpAffine(image, transform, (SIZE, SIZE), borderValue=0.0)
