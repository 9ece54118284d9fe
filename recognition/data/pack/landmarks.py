"""Five facial landmarks per image, read from a file or found by a detector, and faces aligned by them.

The detector is YuNet, through `cv2.FaceDetectorYN`; users provide its model file. Source: Wu, Peng, Yu, *YuNet: A Tiny
Millisecond-level Face Detector* (Machine Intelligence Research, 2023).
"""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from utils.errors import UserError
from utils.files import numbered_lines, path_inside
from utils.images import Image
from utils.images.alignment import align_face

Points = npt.NDArray[np.float64]  # [5, 2], (x, y) in pixels, in the order of ArcFace's template
LandmarkTable = dict[str, Points]
_NUMBERS = 10
_LONGEST_SIDE = 640  # photos are shrunk to this for detection: YuNet finds faces of about 10 to 300 pixels
_LANDMARKS = slice(4, 14)  # of a detection: x, y, width, height, five points, score


def read_landmarks(path: Path) -> LandmarkTable:
    """Read a landmark file: image path, as written in the file -> float64 [5, 2].

    A line has a path and ten numbers, separated by commas, tabs or spaces; an eleventh number (a detector's score) is ignored.
    Paths that contain spaces need commas or tabs. A first line without numbers is a header.
    Raises UserError, naming the line, if it is malformed, its path leads out of the folder, or it repeats a path.
    """
    table: LandmarkTable = {}
    first = True
    for where, line in numbered_lines(path):
        name, numbers = _split(line)
        header = first and not any(_is_number(text) for text in numbers)
        first = False
        if header:
            continue
        if len(numbers) not in (_NUMBERS, _NUMBERS + 1) or not name or not all(_is_number(text) for text in numbers):
            advice = "separate with tabs if the path contains spaces"
            raise UserError(f"{where}: {line[:80]!r} is not a path and {_NUMBERS} numbers; fix it, or {advice}")
        values = np.array(numbers, np.float64)
        if not np.isfinite(values).all():
            raise UserError(f"{where}: contains a number that is not finite; fix it")
        points = values[:_NUMBERS].reshape(-1, 2)
        key = str(path_inside(name, where))
        if key in table:
            raise UserError(f"{where}: {key!r} is listed a second time; keep one face per image")
        table[key] = points
    if not table:
        raise UserError(f"{path}: lists no landmarks")
    return table


def _split(line: str) -> tuple[str, list[str]]:
    """The path, and the fields after it."""
    fields = line.split("\t")
    if len(fields) <= _NUMBERS:
        fields = next(csv.reader([line], skipinitialspace=True)) if "," in line else line.split()
    return fields[0], fields[1:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class FaceDetector:
    """Finds faces and their landmarks in photos.

    model: YuNet's `.onnx` file. min_score: lowest score of a face, in (0, 1). Raises UserError if the model cannot be loaded.
    """

    def __init__(self, model: Path, min_score: float = 0.6):
        if not 0 < min_score < 1:
            raise UserError(f"--min-score {min_score}: must be between 0 and 1")
        if not model.is_file():
            raise UserError(f"{model}: no such file; give YuNet's .onnx (face_detection_yunet in the OpenCV model zoo)")
        try:
            self._detector = cv2.FaceDetectorYN.create(str(model), "", (_LONGEST_SIDE, _LONGEST_SIDE), min_score)
        except cv2.error as error:
            raise UserError(f"{model}: OpenCV cannot load this as a face detector ({error.err}); give YuNet's .onnx") from error

    def _detect(self, image: Image, where: object) -> npt.NDArray[np.float64]:
        """Detect faces in `image` (BGR): float64 [faces, 15], box x, y, w, h, five points and score, in pixels of `image`."""
        height, width = image.shape[:2]
        scale = min(1.0, _LONGEST_SIDE / max(height, width))
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

    def largest_face(self, image: Image, where: object) -> Points:
        """The landmarks of the largest face. Raises UserError if no face is found."""
        faces = self._detect(image, where)
        if not len(faces):
            raise UserError(f"{where}: no face was found; remove the image, or lower --min-score")
        largest = faces[np.argmax(faces[:, 2] * faces[:, 3])]
        if not np.isfinite(largest).all():
            raise UserError(f"{where}: the detector's landmarks or score are not finite; remove the image")
        return largest[_LANDMARKS].reshape(5, 2)


def align_image(image: Image, points: Points, size: int, where: object) -> Image:
    """Cut out the face: `image` [H, W, 3], any channel order -> [size, size, 3], black outside the photo.

    Raises UserError if the points coincide, or lie outside by more than the size of the image (for a face that is cut off by the
    border, points slightly outside are correct).
    """
    height, width = image.shape[:2]
    if (points < [-width, -height]).any() or (points > [2 * width, 2 * height]).any():
        raise UserError(f"{where}: landmarks {points.round(1).tolist()} are far outside the {width}x{height} image; fix them")
    return align_face(image, points, where, size)
