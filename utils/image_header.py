"""What an encoded image says of itself, read before anything decodes it.

A few kilobytes can announce a picture of gigabytes. So no image is decoded here before its own header has given its size
and the size was found acceptable; and what has no header that is known here is not decoded at all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".pbm", ".bmp"})
KINDS = "JPEG, PNG, PGM/PPM/PBM or BMP"
MAX_PIXELS = 64_000_000  # decodes to 192 MB
MAX_BYTES = 256 << 20

_JPEG, _PNG, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"
# Frame headers: C0 to CF without the three that are something else (tables DHT and DAC, and JPG, a reserved one).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ENDS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}  # the end marker; the last chunk's name and checksum
_BLANKS = b" \t\r\n\v\f"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """kind: "jpeg", "png", "pnm" or "bmp". width, height: pixels, as stored (an orientation tag is not applied)."""

    kind: str
    width: int
    height: int

    @property
    def suffix(self) -> str:
        return {"jpeg": ".jpg", "png": ".png", "pnm": ".pnm", "bmp": ".bmp"}[self.kind]


def read_header(data: bytes) -> ImageHeader:
    """The kind and size of an encoded image. ValueError: none of the known kinds, or its header is cut or senseless."""
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    kind = _kind(data)
    try:
        width, height = {"jpeg": _jpeg_size, "png": _png_size, "bmp": _bmp_size, "pnm": _pnm_size}[kind](data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"its {kind.upper()} header is cut short") from error
    if width < 1 or height < 1:
        raise ValueError(f"its {kind.upper()} header announces {width}x{height} pixels")
    return ImageHeader(kind, width, height)


def _kind(data: bytes) -> str:
    for signature, kind in ((_JPEG, "jpeg"), (_PNG, "png"), (_BMP, "bmp")):
        if data.startswith(signature):
            return kind
    if len(data) >= 3 and data[:1] == b"P" and data[1:2] in b"123456" and data[2:3] in _BLANKS:
        return "pnm"
    raise ValueError(f"it is no {KINDS}")


def check_size(header: ImageHeader, max_pixels: int = MAX_PIXELS) -> None:
    """ValueError if decoding would take more than `max_pixels`."""
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise ValueError(
            f"its header announces {header.width}x{header.height} = {pixels:,} pixels, more than {max_pixels:,}: "
            "it is not decoded; shrink it, or raise --max-pixels"
        )


def has_end(data: bytes, header: ImageHeader) -> bool:
    """Whether a JPEG or PNG has its end; always true of the other kinds, whose decoders insist by themselves."""
    return header.kind not in _ENDS or _ENDS[header.kind] in data


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError(f"its JPEG header is damaged at byte {at}")
        while data[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in _JPEG_BARE:
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            raise ValueError(f"its JPEG header holds no size before byte {at}")
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2:
            raise ValueError(f"its JPEG header is damaged at byte {at}")
        at += length


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ValueError("its PNG header lacks IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _bmp_size(data: bytes) -> tuple[int, int]:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative: stored from the top


def _pnm_size(data: bytes) -> tuple[int, int]:
    """Two numbers after the magic, with blanks and #-comments between."""
    numbers: list[int] = []
    at = 2
    while len(numbers) < 2:
        if data[at : at + 1] == b"#":
            at = data.index(b"\n", at) if b"\n" in data[at : at + 4096] else len(data)
        elif data[at] in _BLANKS:
            at += 1
        else:
            end = at
            while end < len(data) and data[end : end + 1].isdigit() and end - at < 10:
                end += 1
            if end == at:
                raise ValueError(f"its PNM header is damaged at byte {at}")
            numbers.append(int(data[at:end]))
            at = end
    return numbers[0], numbers[1]
