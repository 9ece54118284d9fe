"""Encoded face to pixels: `cv2.imdecode`'s, to the bit, in less time and without a copy.

JPEGs go through libjpeg-turbo by `simplejpeg`, which writes into memory that is given. Its settings are those of OpenCV
(accurate inverse DCT, smooth chroma upsampling), and so are its pixels. Whatever it declines or might treat differently
(PNG, damage of any kind, another size, a turn noted in Exif) is looked at with care, and decoded by OpenCV if at all.
"""

from __future__ import annotations

import cv2
import numpy as np
from simplejpeg import decode_jpeg

from utils.image_header import has_end, read_header

_EXIF = b"Exif\0\0"  # may hold an orientation, which OpenCV obeys and libjpeg-turbo does not know
_COLOUR_SCAN = b"\xff\xda\0\x0c\3"  # where the pixels of three channels begin; Exif comes before
_KINDS = ("jpeg", "png")
_OPENCV_READS = {"RGB": cv2.IMREAD_COLOR_RGB, "BGR": cv2.IMREAD_COLOR}


def decode_face(payload: bytes, out_HW3: np.ndarray, channel_order: str = "RGB") -> None:
    """Decodes a JPEG or PNG, colour or grey, into `out_HW3` (uint8, contiguous), whose size it must have.

    ValueError (what is wrong, and what to do) where it is neither, is cut off or damaged, or announces another size: that
    is read from the header before memory is taken for the pixels. `out_HW3` then holds anything.
    """
    if payload.find(_EXIF, 0, payload.find(_COLOUR_SCAN)) < 0:  # in all of a file that has no such scan
        try:
            image = decode_jpeg(payload, channel_order, buffer=out_HW3)
        except ValueError:
            pass  # no JPEG, damaged, or larger than `out_HW3`: below it is found out which
        else:
            if image.shape == out_HW3.shape:
                return
    np.copyto(out_HW3, _decode_with_care(payload, out_HW3.shape[:2], channel_order))


def _decode_with_care(payload: bytes, size: tuple[int, ...], channel_order: str) -> np.ndarray:
    again = "pack this record again from its source or remove it"
    failed = f"the image ({len(payload)} bytes) cannot be decoded"
    try:
        header = read_header(payload)
    except ValueError as fault:
        raise ValueError(f"{failed}: {fault}; {again}") from None
    if header.kind not in _KINDS:
        raise ValueError(f"{failed}: it is neither JPEG nor PNG; {again}")
    if (header.height, header.width) != size:
        found, expected = f"{header.width}x{header.height}", f"{size[1]}x{size[0]}"
        raise ValueError(f"the image is {found}, expected {expected}; align and resize the faces when packing")
    if not has_end(payload, header):
        raise ValueError(f"{failed}: it is cut off, its end is missing; {again}")
    try:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), _OPENCV_READS[channel_order])
    except cv2.error:  # damage that OpenCV reports so
        image = None
    if image is None or image.shape != (*size, 3):
        raise ValueError(f"{failed}; {again}")
    return image
