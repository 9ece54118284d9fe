"""The only code that decodes images, and only after their headers have given an acceptable size.

Shapes: H, W height and width; pixels are uint8 [H, W, 3]. cv2 = OpenCV.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from simplejpeg import decode_jpeg

from utils.errors import UserError
from utils.images.headers import SUFFIXES_OF, has_end, read_header
from utils.images.ipp import without_ipp

FACE_SIZE = 112  # side in pixels of an aligned face: what every encoder takes and every packed set holds
MAX_PIXELS = 64_000_000  # 192 MB when decoded
MAX_BYTES = 256 << 20

Image = npt.NDArray[np.uint8]
ChannelOrder = Literal["RGB", "BGR"]

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # errors are raised; OpenCV also prints some, over several lines
_OPENCV_FLAGS = {"RGB": cv2.IMREAD_COLOR_RGB, "BGR": cv2.IMREAD_COLOR}
_EXIF = b"Exif\0\0"  # may hold an orientation, which OpenCV applies and libjpeg-turbo ignores
_COLOUR_SCAN = b"\xff\xda\0\x0c\3"  # the start of a three-channel scan; Exif precedes it
# A raw face, which needs no decoding: a BMP as OpenCV writes it, uncompressed, 24 bits per pixel, BGR, the bottom row first.
_RAW_PIXELS_AT = 54
RAW_BYTES = _RAW_PIXELS_AT + 3 * FACE_SIZE**2
_RAW_HEADER = struct.pack("<2s6I2H6I", b"BM", RAW_BYTES, 0, _RAW_PIXELS_AT, 40, FACE_SIZE, FACE_SIZE, 1, 24, *(0,) * 6)


# ------------------------------------------------------------------------------------------------ decoding


def read_image_file(path: Path) -> bytes:
    """Read an image file without decoding it. Raises UserError if it cannot be read or has more than `MAX_BYTES`."""
    try:
        with path.open("rb") as file:
            encoded = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(encoded) > MAX_BYTES:
        raise UserError(f"{path}: has more than {MAX_BYTES:,} bytes, too many for an image; replace or remove it")
    return encoded


def decode_image(encoded: bytes, where: object, channel_order: ChannelOrder = "RGB", max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image of any supported kind; greyscale becomes colour, an Exif orientation is applied.

    Raises UserError, beginning with `where`, if it is not an image, truncated, damaged, or larger than `max_pixels`.
    """
    try:
        return _decode(encoded, channel_order, max_pixels=max_pixels)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def decode_face(encoded: bytes, where: object, channel_order: ChannelOrder = "RGB") -> Image:
    """Decode an aligned face, [112, 112, 3]. Raises UserError as `decode_image` does, and for any other size."""
    try:
        return _decode(encoded, channel_order, size=(FACE_SIZE, FACE_SIZE))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def decode_face_into(encoded: bytes, out_HW3: Image, channel_order: ChannelOrder = "RGB", mirror: bool = False) -> None:
    """Decode a JPEG or PNG of exactly H x W pixels, or a raw face, into `out_HW3` (contiguous), as fast as possible.

    libjpeg-turbo writes straight into `out_HW3`, with OpenCV's settings (accurate inverse DCT, smooth chroma upsampling) and so
    with OpenCV's pixels. It skips what OpenCV might decode differently: PNG, damage, another size, an Exif orientation.
    mirror: exchange left and right (W is a multiple of 8).

    Raises ValueError (what is wrong and what to do, without a place) as `decode_face` does; `out_HW3` is then undefined.
    """
    height, width, _ = out_HW3.shape
    if mirror:  # by reversing the bytes of each row, eight at a time; this also reverses the channels
        image = np.empty_like(out_HW3)
        decode_face_into(encoded, image, "BGR" if channel_order == "RGB" else "RGB")
        out_HW3.reshape(height, -1).view("<u8")[...] = image.reshape(height, -1).view(">u8")[:, ::-1]
        return
    if is_raw_face(encoded) and height == width == FACE_SIZE:
        _copy_raw_face(encoded, out_HW3, channel_order)
        return
    if encoded.find(_EXIF, 0, encoded.find(_COLOUR_SCAN)) < 0:  # searches everything if there is no such scan
        try:
            image = decode_jpeg(encoded, channel_order, buffer=out_HW3)
        except ValueError:
            pass  # not a JPEG, damaged, or larger than `out_HW3`: the careful path finds out
        else:
            if image.shape == out_HW3.shape:
                return
    np.copyto(out_HW3, _decode(encoded, channel_order, size=(height, width), kinds=("jpeg", "png")))


def is_raw_face(encoded: bytes) -> bool:
    """Whether this is a BMP of 112x112 pixels exactly as `pack convert --encoding raw` writes it."""
    return len(encoded) == RAW_BYTES and encoded.startswith(_RAW_HEADER)


@without_ipp
def _copy_raw_face(encoded: bytes, out_HW3: Image, channel_order: ChannelOrder) -> None:
    bottom_up = np.frombuffer(encoded, np.uint8, offset=_RAW_PIXELS_AT).reshape(out_HW3.shape)
    np.copyto(out_HW3, (bottom_up if channel_order == "BGR" else cv2.cvtColor(bottom_up, cv2.COLOR_BGR2RGB))[::-1])


def _decode(
    encoded: bytes,
    channel_order: ChannelOrder,
    *,
    max_pixels: int = MAX_PIXELS,
    size: tuple[int, int] | None = None,
    kinds: tuple[str, ...] = tuple(SUFFIXES_OF),
) -> Image:
    """Check the header, then decode. size: required height and width. Raises ValueError, with advice, if either fails."""

    def refusal(problem: object) -> ValueError:
        return ValueError(f"the image ({len(encoded)} bytes) cannot be decoded: {problem}; replace or remove it")

    try:
        header = read_header(encoded)
    except ValueError as error:
        raise refusal(error) from None
    if header.kind not in kinds:
        raise refusal(f"it is neither JPEG nor PNG nor raw (an uncompressed BMP of {RAW_BYTES} bytes)")
    if size is not None and (header.height, header.width) != size:
        found, expected = f"{header.width}x{header.height}", f"{size[1]}x{size[0]}"
        raise ValueError(f"the image is {found}, expected {expected}; align the faces: python -m recognition.data.pack align")
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise refusal(f"its header announces {header.width}x{header.height} = {pixels:,} pixels, more than {max_pixels:,}")
    if not has_end(encoded, header):
        raise refusal("it is truncated (its end is missing)")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _OPENCV_FLAGS[channel_order])
    except cv2.error:  # how OpenCV reports some kinds of damage
        image = None
    if image is None or (size is not None and image.shape != (*size, 3)):
        raise refusal("it is damaged")
    return np.asarray(image, np.uint8)
