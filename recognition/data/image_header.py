"""The size of an encoded image from its header, before anything is decoded: a few bytes may announce gigabytes of pixels.

JPEG (ITU-T T.81, annex B) and PNG (ISO 15948, clause 11.2.2), which are what image records hold.
"""

from __future__ import annotations

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_FRAME_STARTS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0-SOF15 without DHT, JPG, DAC
_LONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a segment


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) in pixels as the header says. ValueError (what is wrong, as half a sentence) where the bytes are
    neither JPEG nor PNG, or are cut off before the header's or the image's end."""
    if encoded[:2] == b"\xff\xd8":
        size = _jpeg_size(encoded)
        if encoded[-2:] != b"\xff\xd9" and b"\xff\xd9" not in encoded:
            raise ValueError("the JPEG is cut off: it has no end marker")
        return size
    if encoded[:8] == _PNG:
        if len(encoded) < 24 or encoded[12:16] != b"IHDR" or _PNG_END not in encoded:
            raise ValueError("the PNG is cut off or damaged: its first or last chunk is missing")
        return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")
    raise ValueError(f"the image begins with the bytes {encoded[:4].hex(' ')!r}: neither JPEG nor PNG")


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Walks the segments before the first frame; each says its length, so this is a handful of steps."""
    at, end = 2, len(encoded) - 9
    while at <= end:
        if encoded[at] != 0xFF:
            break
        marker = encoded[at + 1]
        if marker in _FRAME_STARTS:
            return encoded[at + 5] << 8 | encoded[at + 6], encoded[at + 7] << 8 | encoded[at + 8]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _LONE:
            at += 2
        else:
            at += 2 + max(2, encoded[at + 2] << 8 | encoded[at + 3])
    raise ValueError("the JPEG's header is damaged: no frame begins where its segments lead")
