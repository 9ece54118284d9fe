"""The face in a photo and its five landmarks, by YuNet through OpenCV. The model is the user's own file.

Source: Wu, Peng, Yu, *YuNet: A Tiny Millisecond-level Face Detector* (Machine Intelligence Research, 2023);
`cv2.FaceDetectorYN`.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from utils.errors import UserError
from utils.images import Image

LONGEST_SIDE = 640  # photos are shrunk to this for the search: YuNet finds faces of about 10 to 300 pixels
_LANDMARKS = slice(4, 14)  # of a row: x, y, width, height, five points, score; points in ArcFace's order


class FaceDetector:
    """model: YuNet's `.onnx`. min_score: in (0, 1), of a face that counts. `UserError`: no such model."""

    def __init__(self, model: Path, min_score: float = 0.6):
        if not 0 < min_score < 1:
            raise UserError(f"--min-score {min_score}: must lie between 0 and 1")
        if not model.is_file():
            raise UserError(f"{model}: no such file; give YuNet's .onnx (face_detection_yunet of the OpenCV model zoo)")
        try:
            self._detector = cv2.FaceDetectorYN.create(str(model), "", (LONGEST_SIDE, LONGEST_SIDE), min_score)
        except cv2.error as error:
            raise UserError(f"{model}: OpenCV cannot load this as a face detector ({error.err}); give YuNet's .onnx") from error

    def faces(self, image: Image, where: object) -> npt.NDArray[np.float64]:
        """float64 [faces, 15] in the pixels of `image` (BGR uint8 [H, W, 3]): box x, y, w, h; five points; score."""
        height, width = image.shape[:2]
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shrunk = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        try:
            self._detector.setInputSize(size)
            _, found = self._detector.detect(shrunk)
        except cv2.error as error:
            raise UserError(f"{where}: the detector failed ({error.err}); is the model YuNet's .onnx?") from error
        if found is None:
            return np.empty((0, 15))
        faces = np.asarray(found, np.float64)
        faces[:, :14:2] *= width / size[0]
        faces[:, 1:14:2] *= height / size[1]
        return faces

    def largest_face(self, image: Image, where: object) -> npt.NDArray[np.float64]:
        """float64 [5, 2], its landmarks. `UserError` where no face is found."""
        faces = self.faces(image, where)
        if not len(faces):
            raise UserError(f"{where}: no face was found; remove the image, or lower --min-score")
        largest = faces[np.argmax(faces[:, 2] * faces[:, 3])]
        return largest[_LANDMARKS].reshape(5, 2)
