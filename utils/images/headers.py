"""The kind and size of encoded images, from their headers, without decoding.

A few kilobytes can announce gigabytes of pixels, so every image is measured before it is decoded. Kinds that are not listed here
are not decoded at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

SUFFIXES_OF = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
    "png": (".png",),
    "webp": (".webp",),
    "gif": (".gif",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp", ".dib"),
    "pnm": (".pgm", ".ppm", ".pnm", ".pbm"),
}
SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
KINDS = "JPEG, PNG, WebP, GIF, TIFF, BMP or PGM/PPM/PBM"

_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"GIF87a": "gif", b"GIF89a": "gif", b"II*\0": "tiff", b"MM\0*": "tiff",
    b"BM": "bmp",
}  # fmt: skip
_NOT_READ = {  # other kinds: their first bytes, or those after the first four
    b"ftypavif": "AVIF", b"ftypavis": "AVIF", b"ftypheic": "HEIC", b"ftypheix": "HEIC", b"ftypmif1": "HEIC", b"jP  ": "JPEG 2000",
    b"JXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"II+\0": "BigTIFF", b"MM\0+": "BigTIFF",
}  # fmt: skip
SIGNATURE_BYTES = 12
# JPEG frame headers: C0 to CF except DHT, DAC (tables) and JPG (reserved).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ENDS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}  # end marker; name and checksum of the last chunk
_BLANKS = b" \t\r\n\v\f"
_GIF_IMAGE, _GIF_EXTENSION = 0x2C, 0x21
# TIFF 6.0: tags and types
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _SAMPLES = 256, 257, 258, 259, 262, 277
_TILE_WIDTH, _TILE_HEIGHT, _FORMAT = 322, 323, 339
_TIFF_DEFAULTS = {_BITS: 1, _COMPRESSION: 1, _SAMPLES: 1, _TILE_WIDTH: 0, _TILE_HEIGHT: 0, _FORMAT: 1}
_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG
_TIFF_COMPRESSIONS = {1, 5, 8, 32773, 32946}  # none, LZW, Deflate, PackBits, Deflate (old number)
_TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}  # grey, grey, RGB, palette, CMYK -> samples; none with transparency
_LARGEST_TILE = 1 << 22  # pixels, of a tile that is larger than its image


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """kind: a key of `SUFFIXES_OF`. width, height: in pixels, as stored (before any Exif orientation)."""

    kind: str
    width: int
    height: int


def read_header(encoded: bytes) -> ImageHeader:
    """The kind and size of an encoded image. Raises ValueError if the kind is not supported or the header is damaged."""
    if not encoded:
        raise ValueError("it is empty")
    kind = image_kind(encoded)
    try:
        width, height = _SIZES[kind](encoded)
    except (struct.error, IndexError) as error:
        raise ValueError(f"its {kind.upper()} header is truncated") from error
    if width < 1 or height < 1:
        raise ValueError(f"its {kind.upper()} header announces {width}x{height} pixels")
    return ImageHeader(kind, width, height)


def has_end(encoded: bytes, header: ImageHeader) -> bool:
    """Whether a JPEG or PNG contains its end marker. Always true for other kinds: their decoders refuse truncated data."""
    return header.kind not in _ENDS or _ENDS[header.kind] in encoded


def image_kind(encoded: bytes) -> str:
    """The kind of an image by its first `SIGNATURE_BYTES`. Raises ValueError if it is not supported."""
    for signature, kind in _SIGNATURES.items():
        if encoded.startswith(signature):
            return kind
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return "webp"
    if len(encoded) >= 3 and encoded[:1] == b"P" and encoded[1:2] in b"123456" and encoded[2:3] in _BLANKS:
        return "pnm"
    named = (name for brand, name in _NOT_READ.items() if encoded.startswith(brand) or encoded.startswith(brand, 4))
    found = "".join(f"{name}, " for name in islice(named, 1))
    raise ValueError(f"it is {found}not a {KINDS} file")


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
    """Two numbers after the magic, separated by whitespace and #-comments."""
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


def _webp_size(encoded: bytes) -> tuple[int, int]:
    """The size of the canvas, or of the only frame. Source: RFC 9649, sections 2.5 to 2.7, and RFC 6386, section 9.1."""
    (length,) = struct.unpack_from("<I", encoded, 4)
    if len(encoded) < length + 8:
        raise ValueError(f"it is truncated: its WEBP header announces {length + 8} bytes")
    chunk, data = encoded[12:16], encoded[20:30]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if chunk == b"VP8L" and data[0] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 6)
        return width & 0x3FFF, height & 0x3FFF  # the upper two bits ask for enlargement, which decoders ignore
    raise ValueError("its WEBP header is damaged at byte 12")


def _gif_size(encoded: bytes) -> tuple[int, int]:
    """The size of the screen, which must contain the first frame: the decoder returns that frame on the screen."""
    screen_width, screen_height, flags = struct.unpack_from("<HHB", encoded, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)  # after the global colours
    while encoded[at] == _GIF_EXTENSION:
        at += 2
        while encoded[at]:  # sub-blocks, each with its length
            at += 1 + encoded[at]
        at += 1
    if encoded[at] != _GIF_IMAGE:
        raise ValueError(f"its GIF header has no image at byte {at}")
    left, top, width, height = struct.unpack_from("<HHHH", encoded, at + 1)
    if not width or not height or left + width > screen_width or top + height > screen_height:
        raise ValueError(f"its GIF header is damaged at byte {at}")
    return screen_width, screen_height


def _tiff_size(encoded: bytes) -> tuple[int, int]:
    """The size of the first page. Raises ValueError for what OpenCV decodes unreliably or at the cost of much memory."""
    order = "<" if encoded[:1] == b"I" else ">"
    (directory,) = struct.unpack_from(f"{order}I", encoded, 4)
    (count,) = struct.unpack_from(f"{order}H", encoded, directory)
    tags: dict[int, int] = dict(_TIFF_DEFAULTS)
    seen = set()
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", encoded, at)
        if tag in seen:
            raise ValueError(f"its TIFF header is damaged: tag {tag} occurs twice")
        seen.add(tag)
        if tag in (_WIDTH, _HEIGHT, _COLOURS, *_TIFF_DEFAULTS):
            tags[tag] = _tiff_value(encoded, order, at + 8, kind, values)
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    samples, bits, colours, compression = tags[_SAMPLES], tags[_BITS], tags.get(_COLOURS, -1), tags[_COMPRESSION]
    allowed_bits = (1, 8, 16) if samples == 1 else (8, 16)
    if _TIFF_COLOURS.get(colours) != samples or bits not in allowed_bits or tags[_FORMAT] != 1:
        found = f"{samples} samples of {bits} bits per pixel, colours {colours}"
        raise ValueError(f"it is a TIFF with {found}, which is not supported; save it as RGB without transparency")
    if compression not in _TIFF_COMPRESSIONS:
        raise ValueError(f"it is a TIFF with compression {compression}, which is not supported; save it with LZW")
    if tags[_TILE_WIDTH] * tags[_TILE_HEIGHT] > max(width * height, _LARGEST_TILE):
        raise ValueError(f"its TIFF header announces tiles of {tags[_TILE_WIDTH]}x{tags[_TILE_HEIGHT]} pixels")
    return width, height


def _tiff_value(encoded: bytes, order: str, at: int, kind: int, count: int) -> int:
    """The value of a tag, of which there may be one per sample: all must be equal."""
    if kind not in _TIFF_TYPES or not 1 <= count <= 4:
        raise ValueError(f"its TIFF header is damaged at byte {at}")
    layout = f"{order}{count}{_TIFF_TYPES[kind]}"
    if struct.calcsize(layout) > 4:
        (at,) = struct.unpack_from(f"{order}I", encoded, at)
    values = set(struct.unpack_from(layout, encoded, at))
    if len(values) > 1:
        raise ValueError(f"its TIFF header is damaged: samples differ, {sorted(values)}")
    return int(values.pop())


_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "jpeg": _jpeg_size, "png": _png_size, "webp": _webp_size, "gif": _gif_size, "tiff": _tiff_size, "bmp": _bmp_size,
    "pnm": _pnm_size,
}  # fmt: skip
