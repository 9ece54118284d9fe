"""From any image to the bytes that are packed: a face of the right size as JPEG or PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.images import FACE_SIZE, MAX_PIXELS, Image, decode_image, read_header, read_image_file

FITS = ("crop", "pad", "stretch")


@dataclass(frozen=True)
class FaceFormat:
    """What packed faces look like.

    size: side in pixels. quality: of JPEG, 1-100. png: PNG instead of JPEG. fit: how an image that is not square becomes so:
    "crop" its centre, "pad" with black, or "stretch". max_pixels: larger images are refused before they are decoded.
    """

    size: int = FACE_SIZE
    quality: int = 95
    png: bool = False
    fit: str = "crop"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise UserError(f"--size {self.size}: must lie in 8 to 4096 pixels")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: must lie in 1 to 100")
        if self.max_pixels < 1:
            raise UserError(f"--max-pixels {self.max_pixels}: must be at least 1")
        assert self.fit in FITS, self.fit

    @property
    def kind(self) -> str:
        return "png" if self.png else "jpeg"

    @property
    def suffix(self) -> str:
        return ".png" if self.png else ".jpg"


def encode(image: Image, face: FaceFormat) -> bytes:
    """`image` (BGR uint8) as JPEG or PNG."""
    options = [] if face.png else [cv2.IMWRITE_JPEG_QUALITY, face.quality]
    done, encoded = cv2.imencode(face.suffix, image, options)
    assert done, f"OpenCV could not encode an image of shape {image.shape}"
    return encoded.tobytes()


def fit_square(image: Image, size: int, fit: str) -> Image:
    """`image` [H, W, 3] as [size, size, 3]; area interpolation to shrink, cubic to enlarge."""
    height, width = image.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        image = np.asarray(
            cv2.copyMakeBorder(image, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT), np.uint8
        )
    if image.shape[:2] == (size, size):
        return image
    shrinks = image.shape[0] * image.shape[1] > size * size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)


def packed_face(path: Path, face: FaceFormat) -> bytes:
    """The bytes to pack for an image file: its own where it is a sound image of the right kind and size already.

    `UserError` where it cannot be read, is too large, or cannot be decoded.
    """
    data = read_image_file(path)
    image = decode_image(
        data, path, "BGR", face.max_pixels
    )  # also what is copied: a damaged image is found here, not in training
    header = read_header(data)
    if header.kind == face.kind and image.shape[:2] == (face.size, face.size) == (header.height, header.width):
        return data
    return encode(fit_square(image, face.size, face.fit), face)
