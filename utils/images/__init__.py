"""Encoded images: their headers, folders of them, and the only code that decodes them."""

from utils.images.decode import (
    FACE_SIZE,
    MAX_BYTES,
    MAX_PIXELS,
    RAW_BYTES,
    ChannelOrder,
    Image,
    decode_face,
    decode_face_into,
    decode_image,
    is_raw_face,
    read_image_file,
)
from utils.images.folders import LeftOut, find_images, image_names, scan_folder
from utils.images.headers import KINDS, SUFFIXES, SUFFIXES_OF, ImageHeader, has_end, image_kind, read_header
from utils.images.ipp import without_ipp

__all__ = [
    "FACE_SIZE", "KINDS", "MAX_BYTES", "MAX_PIXELS", "RAW_BYTES", "SUFFIXES", "SUFFIXES_OF", "ChannelOrder", "Image",
    "ImageHeader", "LeftOut", "decode_face", "decode_face_into", "decode_image", "find_images", "has_end", "image_kind",
    "image_names", "is_raw_face", "read_header", "read_image_file", "scan_folder", "without_ipp",
]  # fmt: skip
