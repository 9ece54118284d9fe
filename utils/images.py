"""Encoded images: the size in their headers, and the only code that decodes them.

A few kilobytes can announce gigabytes of pixels. So an image is decoded only after its header has given an acceptable size,
and not at all if its kind is not supported.

Shapes: H, W height and width; pixels are uint8 [H, W, 3]. cv2 = OpenCV.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from simplejpeg import decode_jpeg

from utils.errors import UserError

FACE_SIZE = 112  # side in pixels of an aligned face: what every encoder takes and every packed set holds
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".pbm", ".bmp"})
KINDS = "JPEG, PNG, PGM/PPM/PBM or BMP"
MAX_PIXELS = 64_000_000  # 192 MB when decoded
MAX_BYTES = 256 << 20

Image = npt.NDArray[np.uint8]
ChannelOrder = Literal["RGB", "BGR"]

_OPENCV_FLAGS = {"RGB": cv2.IMREAD_COLOR_RGB, "BGR": cv2.IMREAD_COLOR}
_EXIF = b"Exif\0\0"  # may hold an orientation, which OpenCV applies and libjpeg-turbo ignores
_COLOUR_SCAN = b"\xff\xda\0\x0c\3"  # the start of a three-channel scan; Exif precedes it

_JPEG, _PNG, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"
# Frame headers: C0 to CF except DHT, DAC (tables) and JPG (reserved).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ENDS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}  # end marker; name and checksum of the last chunk
_BLANKS = b" \t\r\n\v\f"


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


def decode_face_into(encoded: bytes, out_HW3: Image, channel_order: ChannelOrder = "RGB") -> None:
    """Decode a JPEG or PNG of exactly H x W pixels into `out_HW3` (contiguous), as fast as possible.

    libjpeg-turbo writes straight into `out_HW3`, with OpenCV's settings (accurate inverse DCT, smooth chroma upsampling) and so
    with OpenCV's pixels. It skips what OpenCV might decode differently: PNG, damage, another size, an Exif orientation.

    Raises ValueError (what is wrong and what to do, without a place) as `decode_face` does; `out_HW3` is then undefined.
    """
    if encoded.find(_EXIF, 0, encoded.find(_COLOUR_SCAN)) < 0:  # searches everything if there is no such scan
        try:
            image = decode_jpeg(encoded, channel_order, buffer=out_HW3)
        except ValueError:
            pass  # not a JPEG, damaged, or larger than `out_HW3`: the careful path finds out
        else:
            if image.shape == out_HW3.shape:
                return
    height, width, _ = out_HW3.shape
    np.copyto(out_HW3, _decode(encoded, channel_order, size=(height, width), kinds=("jpeg", "png")))


def _decode(
    encoded: bytes,
    channel_order: ChannelOrder,
    *,
    max_pixels: int = MAX_PIXELS,
    size: tuple[int, int] | None = None,
    kinds: tuple[str, ...] = ("jpeg", "png", "pnm", "bmp"),
) -> Image:
    """Check the header, then decode. size: required height and width. Raises ValueError: what is wrong and what to do."""

    def refusal(problem: object) -> ValueError:
        return ValueError(f"the image ({len(encoded)} bytes) cannot be decoded: {problem}; replace or remove it")

    try:
        header = read_header(encoded)
    except ValueError as error:
        raise refusal(error) from None
    if header.kind not in kinds:
        raise refusal("it is neither JPEG nor PNG")
    if size is not None and (header.height, header.width) != size:
        found, expected = f"{header.width}x{header.height}", f"{size[1]}x{size[0]}"
        raise ValueError(f"the image is {found}, expected {expected}; align and resize the faces first")
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


# ------------------------------------------------------------------------------------------------ headers


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """kind: "jpeg", "png", "pnm" or "bmp". width, height: in pixels, as stored (before any Exif orientation)."""

    kind: str
    width: int
    height: int


def read_header(encoded: bytes) -> ImageHeader:
    """The kind and size of an encoded image. Raises ValueError if the kind is not supported or the header is damaged."""
    if not encoded:
        raise ValueError("it is empty")
    kind = _kind(encoded)
    try:
        width, height = {"jpeg": _jpeg_size, "png": _png_size, "bmp": _bmp_size, "pnm": _pnm_size}[kind](encoded)
    except (struct.error, IndexError) as error:
        raise ValueError(f"its {kind.upper()} header is truncated") from error
    if width < 1 or height < 1:
        raise ValueError(f"its {kind.upper()} header announces {width}x{height} pixels")
    return ImageHeader(kind, width, height)


def has_end(encoded: bytes, header: ImageHeader) -> bool:
    """Whether a JPEG or PNG contains its end marker. Always true for other kinds: their decoders refuse truncated data."""
    return header.kind not in _ENDS or _ENDS[header.kind] in encoded


def _kind(encoded: bytes) -> str:
    for signature, kind in ((_JPEG, "jpeg"), (_PNG, "png"), (_BMP, "bmp")):
        if encoded.startswith(signature):
            return kind
    if len(encoded) >= 3 and encoded[:1] == b"P" and encoded[1:2] in b"123456" and encoded[2:3] in _BLANKS:
        return "pnm"
    raise ValueError(f"it is not a {KINDS} file")


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if encoded[at] != 0xFF:
            raise ValueError(f"its JPEG header is damaged at byte {at}")
        while encoded[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = encoded[at]
        at += 1
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", encoded, at + 3)
            return width, height
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            raise ValueError(f"its JPEG header has no size before byte {at}")
        (length,) = struct.unpack_from(">H", encoded, at)
        if length < 2:
            raise ValueError(f"its JPEG header is damaged at byte {at}")
        at += length


def _png_size(encoded: bytes) -> tuple[int, int]:
    if encoded[12:16] != b"IHDR":
        raise ValueError("its PNG header has no IHDR")
    width, height = struct.unpack_from(">II", encoded, 16)
    return width, height


def _bmp_size(encoded: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", encoded, 18)
    return width, abs(height)  # negative if stored from the top


def _pnm_size(encoded: bytes) -> tuple[int, int]:
    """Two numbers after the magic, separated by blanks and #-comments."""
    numbers: list[int] = []
    at = 2
    while len(numbers) < 2:
        if encoded[at : at + 1] == b"#":
            at = encoded.index(b"\n", at) if b"\n" in encoded[at : at + 4096] else len(encoded)
        elif encoded[at] in _BLANKS:
            at += 1
        else:
            end = at
            while end < len(encoded) and encoded[end : end + 1].isdigit() and end - at < 10:
                end += 1
            if end == at:
                raise ValueError(f"its PNM header is damaged at byte {at}")
            numbers.append(int(encoded[at:end]))
            at = end
    return numbers[0], numbers[1]
