"""Faces cut out of photographs by their landmarks, as ArcFace's training data were."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from utils.errors import UserError
from utils.images import FACE_SIZE, Image

ARCFACE_TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
"""Left eye, right eye, nose, left and right corner of the mouth: (x, y) in a 112x112 face."""


def align_face(photo: Image, landmarks_K2: npt.NDArray[np.float64], where: object, size: int = FACE_SIZE) -> Image:
    """The face, uint8 [size, size, 3], with its landmarks nearest to ArcFace's template; black outside the photograph.

    photo: uint8 [H, W, 3]. landmarks_K2: (x, y) in pixels; five points as in `ARCFACE_TEMPLATE`, or four, with the centre of the
    mouth instead of its corners.

    Raises UserError, beginning with `where`, if the landmarks coincide or are not finite.
    """
    template = ARCFACE_TEMPLATE
    if len(landmarks_K2) == 4:
        template = np.vstack([template[:3], template[3:].mean(axis=0)])
    transform = similarity(landmarks_K2, template * (size / FACE_SIZE))
    if transform is None:
        shown = np.round(landmarks_K2, 1).tolist()
        raise UserError(f"{where}: the landmarks coincide or are not finite: {shown}; correct them")
    return np.asarray(cv2.warpAffine(photo, transform, (size, size), borderValue=0.0), np.uint8)


def similarity(points_K2: npt.NDArray[np.float64], targets_K2: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """The least-squares similarity from points to targets, float64 [2, 3]; None if the points coincide or are not finite.

    Source: Umeyama, *Least-squares estimation of transformation parameters between two point patterns* (1991).
    """
    from skimage.transform import SimilarityTransform  # loading it takes half a second, and most commands align nothing

    try:
        with np.errstate(all="ignore"):
            transform = SimilarityTransform.from_estimate(points_K2, targets_K2)
    except np.linalg.LinAlgError:  # points that are not finite
        return None
    return transform.params[:2] if transform and np.isfinite(transform.params).all() else None
