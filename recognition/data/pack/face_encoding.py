"""Encodes images of any kind as packed faces: square, of one size, as JPEG, PNG or raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError, warn
from utils.images import (
    FACE_SIZE,
    MAX_PIXELS,
    RAW_BYTES,
    SUFFIXES_OF,
    Image,
    decode_image,
    is_raw_face,
    read_header,
    read_image_file,
)

ENCODINGS = {"jpeg": "jpeg", "png": "png", "raw": "bmp"}  # name -> kind of image, as in `ImageHeader.kind`
FITS = ("crop", "pad", "stretch")


@dataclass(frozen=True)
class FaceFormat:
    """The format of packed faces. Raises UserError for a value out of range.

    size: side in pixels. quality: JPEG quality, 1-100. encoding: a key of `ENCODINGS`; "raw" is an uncompressed BMP. fit: how to
    make an image square: "crop" its centre, "pad" it with black, or "stretch" it. max_pixels: larger images are refused before
    they are decoded.
    """

    size: int = FACE_SIZE
    quality: int = 95
    encoding: str = "jpeg"
    fit: str = "crop"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise UserError(f"--size {self.size}: must be from 8 to 4096 pixels")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: must be from 1 to 100")
        if self.max_pixels < 1:
            raise UserError(f"--max-pixels {self.max_pixels}: must be at least 1")
        if self.encoding == "raw" and self.size != FACE_SIZE:
            raise UserError(f"--size {self.size}: raw images have {FACE_SIZE}x{FACE_SIZE} pixels; choose another --encoding")
        assert self.fit in FITS, self.fit
        assert self.encoding in ENCODINGS, self.encoding

    @property
    def kind(self) -> str:
        """The kind of image, as in `ImageHeader.kind`."""
        return ENCODINGS[self.encoding]

    @property
    def suffix(self) -> str:
        return SUFFIXES_OF[self.kind][0]

    def holds(self, encoded: bytes) -> bool:
        """Whether an image has this encoding. Most BMPs are not raw faces."""
        return is_raw_face(encoded) if self.encoding == "raw" else read_header(encoded).kind == self.kind


def advise(face_format: FaceFormat) -> None:
    """Print what raw images need, if this is their format."""
    if face_format.encoding == "raw":
        disk = f"{RAW_BYTES / 1e3:.0f} MB per 1,000 images"
        print(f"raw images load faster if they fit into memory or the disk reads {disk}; from slower disks, JPEGs do")


def encode(image: Image, face_format: FaceFormat) -> bytes:
    """Encode `image` (BGR)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, face_format.quality] if face_format.encoding == "jpeg" else []
    done, encoded = cv2.imencode(face_format.suffix, image, options)
    assert done, f"OpenCV could not encode an image of shape {image.shape}"
    return encoded.tobytes()


def fit_square(image: Image, size: int, fit: str) -> Image:
    """Make `image` [H, W, 3] a square [size, size, 3]; area interpolation shrinks, cubic enlarges."""
    height, width = image.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        bottom, right = side - height - top, side - width - left
        image = np.asarray(cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT), np.uint8)
    if image.shape[:2] == (size, size):
        return image
    shrinks = image.shape[0] * image.shape[1] > size * size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)


def encode_file(path: Path, face_format: FaceFormat) -> tuple[bytes, str]:
    """The bytes to pack for an image file: the file itself if it has the right kind and size, otherwise encoded anew.

    Also returns the image's size, such as "92x112", if it is neither an aligned face's nor the right one, else "".

    Raises UserError if the file cannot be read, is too large, or cannot be decoded.
    """
    data = read_image_file(path)
    image = decode_image(data, path, "BGR", face_format.max_pixels)  # even if `data` is kept: finds damage before training does
    header, size = read_header(data), face_format.size
    if face_format.holds(data) and image.shape[:2] == (size, size) == (header.height, header.width):
        return data, ""
    height, width = image.shape[:2]
    odd_size = "" if (height, width) in ((FACE_SIZE, FACE_SIZE), (size, size)) else f"{width}x{height}"
    return encode(fit_square(image, size, face_format.fit), face_format), odd_size


@dataclass
class MadeToFit:
    """Counts images of odd sizes, for one warning. first: path and size of the first."""

    count: int = 0
    first: str = ""

    def add(self, images: Sequence[str]) -> None:
        """images: the path and size of each."""
        self.count += len(images)
        self.first = self.first or "".join(images[:1])

    def warn(self, source: Path, face_format: FaceFormat) -> None:
        """Print the warning, which names the command that aligns faces, if there are any such images."""
        if self.count:
            found = f"{self.count} images were made to fit (--fit {face_format.fit}); the first: {self.first}"
            align = f"python -m recognition.data.pack align {source} ALIGNED --detector YUNET.onnx"
            warn(f"{source}: {found}; if the faces are not aligned, align them first: {align}")
