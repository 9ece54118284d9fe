"""Augmentations of a face: image in, image out, with OpenCV on uint8.

Each is a pure function of the image and a row u of uniform random numbers (`utils.randomness.uniforms`; a list or an array). Each
operation reads its own fixed places of that row, so what it draws never depends on the other operations.

    none      flip
    qgface    to low resolution and back, with JPEG; then crop, colour, rotation, each with a probability; flip (QGFace, III-D)
    adaface   crop in place, low resolution, colour, each with probability 0.2; flip (AdaFace, section 4.1)

Images are RGB uint8 [H, W, 3]. The input is never modified. A recipe writes its result to `out`, if given.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from simplejpeg import decode_jpeg

from utils import plugins
from utils.errors import UserError
from utils.images import without_ipp

UNIFORMS = 24  # random numbers available to one image
Augmentation = Callable[..., np.ndarray]  # (image, u, out=None)

_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def _between(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def _choice(u: float, options: tuple):
    return options[int(u * len(options))]


# ------------------------------------------------------------------------------------------------ operations


def flips(u: Sequence[float]) -> bool:
    """Whether `flip` mirrors the image. Draws u[0]."""
    return u[0] < 0.5


def flip(image: np.ndarray, u: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
    """Mirror left and right with probability 1/2. Draws u[0]. Without `out`, an unflipped image is returned as it is."""
    if flips(u):
        return cv2.flip(image, 1, dst=out)
    if out is None:
        return image
    np.copyto(out, image)
    return out


def low_resolution(image: np.ndarray, u: Sequence[float], low: float, high: float, jpeg_quality: int | None) -> np.ndarray:
    """Shrink to U(low, high) of the size, compress as JPEG unless `jpeg_quality` is None, and enlarge again. Draws u[0:3]."""
    height, width = image.shape[:2]
    scale = _between(u[0], low, high)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = resize(image, size, _choice(u[1], _INTERPOLATIONS))
    if jpeg_quality is not None:
        small = jpeg(small, jpeg_quality)
    return resize(small, (width, height), _choice(u[2], _INTERPOLATIONS))


def resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """cv2.resize to (width, height).

    Lanczos enlarges with 16 bits per channel: OpenCV then needs two thirds of the time and rounds more finely. The result
    differs by at most one level.
    """
    return _lanczos(image, size) if interpolation == cv2.INTER_LANCZOS4 else cv2.resize(image, size, interpolation=interpolation)


@without_ipp
def _lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if size[0] < image.shape[1]:
        return cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4)
    wide = cv2.resize(image.astype(np.uint16), size, interpolation=cv2.INTER_LANCZOS4)
    return cv2.convertScaleAbs(wide)  # saturates at 255


@without_ipp
def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after JPEG compression. OpenCV's encoder expects BGR; given RGB, it would swap red and blue in its colour
    transform."""
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    assert done, "OpenCV could not encode a JPEG"
    return decode_jpeg(encoded, "RGB")  # the pixels of cv2.imdecode, in less time


def crop_box(u: Sequence[float], height: int, width: int, low: float, high: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop. Draws u[0:4].

    Its area is U(low, high) of the image's. Its aspect ratio is log-uniform in that part of [3/4, 4/3] that fits into the image.
    """
    area = _between(u[0], low, high) * height * width
    narrowest = max(3 / 4, area / height**2)
    widest = max(narrowest, min(4 / 3, width**2 / area))
    aspect = narrowest * (widest / narrowest) ** u[1]
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    top, left = int(u[2] * (height - crop_height + 1)), int(u[3] * (width - crop_width + 1))
    return top, left, crop_height, crop_width


def resized_crop(image: np.ndarray, u: Sequence[float], low: float, high: float) -> np.ndarray:
    """A random crop, enlarged to the size of the image. Draws u[0:4]."""
    height, width = image.shape[:2]
    top, left, crop_height, crop_width = crop_box(u, height, width, low, high)
    part = image[top : top + crop_height, left : left + crop_width]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)


def crop_in_place(image: np.ndarray, u: Sequence[float], low: float, high: float) -> np.ndarray:
    """Keep a random crop in its place and blacken the rest. Draws u[0:4]."""
    top, left, height, width = crop_box(u, image.shape[0], image.shape[1], low, high)
    kept = np.zeros_like(image)
    kept[top : top + height, left : left + width] = image[top : top + height, left : left + width]
    return kept


def colour_jitter(image: np.ndarray, u: Sequence[float], strength: float) -> np.ndarray:
    """Multiply brightness, contrast and saturation by U(1 - strength, 1 + strength) each. Draws u[0:3].

    All three are affine in colour, so together they are one 3x4 matrix and one pass over the image.
    """
    brightness, contrast, saturation = (_between(value, 1 - strength, 1 + strength) for value in u[:3])
    red, green, blue = _LUMA
    means = cv2.mean(image)
    grey = (means[0] * red + means[1] * green + means[2] * blue) * brightness  # the pivot of the contrast, after brightness
    offset = grey * (1 - contrast)  # saturation does not change greys, so nor this
    gain = brightness * contrast
    own, red, green, blue = gain * saturation, *(gain * (1 - saturation) * luma for luma in _LUMA)
    rows = ((own + red, green, blue, offset), (red, own + green, blue, offset), (red, green, own + blue, offset))
    return cv2.transform(image, np.array(rows))


@without_ipp
def rotation(image: np.ndarray, u: Sequence[float], degrees: float) -> np.ndarray:
    """Rotate about the centre by U(-degrees, degrees), replicating the border. Draws u[0]."""
    height, width = image.shape[:2]
    x, y = (width - 1) / 2, (height - 1) / 2
    angle = math.radians(_between(u[0], -degrees, degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array(((cosine, sine, x - cosine * x - sine * y), (-sine, cosine, y + sine * x - cosine * y)))
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


# ------------------------------------------------------------------------------------------------ recipes

QGFACE_PROBABILITY = 0.2  # of crop, colour and rotation each; not stated in the paper, taken from AdaFace
ADAFACE_PROBABILITY = 0.2


def none(image: np.ndarray, u: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
    """Flip only."""
    return flip(image, u, out)


def qgface(image: np.ndarray, u: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
    """QGFace's low-quality view: U(0.1, 0.5) of the resolution with JPEG quality 75; crop of 0.8-1 of the area, colour 0.2,
    rotation within ±45 degrees; flip."""
    image = low_resolution(image, u[1:4], 0.1, 0.5, jpeg_quality=75)
    if u[4] < QGFACE_PROBABILITY:
        image = resized_crop(image, u[5:9], 0.8, 1.0)
    if u[9] < QGFACE_PROBABILITY:
        image = colour_jitter(image, u[10:13], 0.2)
    if u[13] < QGFACE_PROBABILITY:
        image = rotation(image, u[14:15], 45.0)
    return flip(image, u, out)


def adaface(image: np.ndarray, u: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
    """AdaFace's augmentation: crop of 0.2-1 of the area, kept in place; U(0.2, 1) of the resolution; colour 0.5; flip."""
    if u[1] < ADAFACE_PROBABILITY:
        image = crop_in_place(image, u[2:6], 0.2, 1.0)
    if u[6] < ADAFACE_PROBABILITY:
        image = low_resolution(image, u[7:10], 0.2, 1.0, jpeg_quality=None)
    if u[10] < ADAFACE_PROBABILITY:
        image = colour_jitter(image, u[11:14], 0.5)
    return flip(image, u, out)


# Names for the configuration. A configuration file may add recipes of its own.
AUGMENTATIONS: dict[str, Augmentation] = {"none": none, "qgface": qgface, "adaface": adaface}


def recipe(name: str, options: Mapping[str, Any] | None = None) -> Augmentation:
    """The augmentation of that name, or a plug-in, `module:name`, with options.

    Raises UserError, with the nearest known name, if the name is unknown.
    """
    if plugins.is_plugin(name):
        return partial(plugins.load(name, f"augmentation={name!r}"), **(options or {}))
    if name not in AUGMENTATIONS:
        near = difflib.get_close_matches(name, AUGMENTATIONS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"augmentation={name!r}: unknown: {hint}known names: {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]
