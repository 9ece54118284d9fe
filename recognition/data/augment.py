"""Augmentations of a face: image in, image out, with OpenCV on uint8.

Each is a pure function of the image and a row u of uniform random numbers (`utils.randomness.uniforms`; a list or an array). Each
operation reads its own fixed places of that row, so what it draws never depends on the other operations.

    none      flip
    qgface    to low resolution and back, with JPEG; then crop, colour, rotation, each with a probability; flip (QGFace, III-D)
    adaface   crop in place, low resolution, colour, each with probability 0.2; flip (AdaFace, section 4.1)
    chain     misalignment; shrinking, blur, noise, JPEG in random order; exposure, colour; flip (as in Real-ESRGAN)

Images are RGB uint8 [H, W, 3]. The input is never modified. A recipe writes its result to `out`, if given. Its keyword arguments
are its probabilities and ranges: `augmentation_options` in the configuration.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
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
SCALE_DRAW = 1  # the one from which `qgface` and `chain` draw the scale; the scale grows with it
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


def misalignment(image: np.ndarray, u: Sequence[float], strength: float, degrees: float) -> np.ndarray:
    """An error of the face's alignment: shift and zoom by a share of the size up to `strength`, and rotation. Draws u[0:4]."""
    height, width = image.shape[:2]
    x, y, zoom = (_between(value, -strength, strength) for value in u[:3])
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), _between(u[3], -degrees, degrees), 1 + zoom)
    matrix[:, 2] += (x * width, y * height)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def noise(image: np.ndarray, u: Sequence[float], low: float, high: float) -> np.ndarray:
    """Add Gaussian noise with a standard deviation of U(low, high) grey levels. Draws u[0:2]; u[1] is the seed."""
    height, width, channels = image.shape
    values = np.empty((height, width * channels), np.int16)
    cv2.setRNGSeed(int(u[1] * 2**31))
    cv2.randn(values, np.zeros(1), np.array([_between(u[0], low, high)]))
    return cv2.add(image, values.reshape(image.shape), dtype=cv2.CV_8U)  # saturates


def exposure(image: np.ndarray, u: Sequence[float], strength: float) -> np.ndarray:
    """Raise the intensities to the power 2^U(-strength, strength). Draws u[0]."""
    levels = (np.arange(256) / 255) ** (2 ** _between(u[0], -strength, strength))
    return cv2.LUT(image, np.rint(255 * levels).astype(np.uint8))


# ------------------------------------------------------------------------------------------------ recipes

Range = tuple[float, float]  # bounds of a uniform distribution

QGFACE_PROBABILITY = 0.2  # of crop, colour and rotation each; not stated in the paper, taken from AdaFace
ADAFACE_PROBABILITY = 0.2


def none(image: np.ndarray, u: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
    """Flip only."""
    return flip(image, u, out)


def qgface(
    image: np.ndarray,
    u: Sequence[float],
    out: np.ndarray | None = None,
    *,
    scale: Range = (0.1, 0.5),
    jpeg_quality: int = 75,
    crop_probability: float = QGFACE_PROBABILITY,
    crop_area: Range = (0.8, 1.0),
    colour_probability: float = QGFACE_PROBABILITY,
    colour_strength: float = 0.2,
    rotation_probability: float = QGFACE_PROBABILITY,
    rotation_degrees: float = 45.0,
) -> np.ndarray:
    """QGFace's low-quality view: a share of the resolution, with JPEG; crop of a share of the area, colour, rotation; flip."""
    image = low_resolution(image, u[1:4], *scale, jpeg_quality=jpeg_quality)
    if u[4] < crop_probability:
        image = resized_crop(image, u[5:9], *crop_area)
    if u[9] < colour_probability:
        image = colour_jitter(image, u[10:13], colour_strength)
    if u[13] < rotation_probability:
        image = rotation(image, u[14:15], rotation_degrees)
    return flip(image, u, out)


def adaface(
    image: np.ndarray,
    u: Sequence[float],
    out: np.ndarray | None = None,
    *,
    crop_probability: float = ADAFACE_PROBABILITY,
    crop_area: Range = (0.2, 1.0),
    scale_probability: float = ADAFACE_PROBABILITY,
    scale: Range = (0.2, 1.0),
    colour_probability: float = ADAFACE_PROBABILITY,
    colour_strength: float = 0.5,
) -> np.ndarray:
    """AdaFace's augmentation: crop of a share of the area, kept in place; a share of the resolution; colour; flip."""
    if u[1] < crop_probability:
        image = crop_in_place(image, u[2:6], *crop_area)
    if u[6] < scale_probability:
        image = low_resolution(image, u[7:10], *scale, jpeg_quality=None)
    if u[10] < colour_probability:
        image = colour_jitter(image, u[11:14], colour_strength)
    return flip(image, u, out)


_ORDERS = tuple(itertools.permutations(range(4)))


def chain(
    image: np.ndarray,
    u: Sequence[float],
    out: np.ndarray | None = None,
    *,
    scale: Range = (0.1, 1.0),
    blur_probability: float = 0.5,
    blur_sigma: Range = (0.3, 3.0),
    noise_probability: float = 0.5,
    noise_sigma: Range = (1.0, 12.0),
    jpeg_probability: float = 0.7,
    jpeg_quality: Range = (30, 95),
    align_probability: float = 0.5,
    align_strength: float = 0.04,
    align_degrees: float = 6.0,
    exposure_probability: float = 0.3,
    exposure_strength: float = 0.7,
    colour_probability: float = 0.3,
    colour_strength: float = 0.3,
) -> np.ndarray:
    """A chain of degradations in random order: shrinking always, blur, noise and JPEG with a probability each. Before it, an
    alignment error; after it, back to the size of the image, exposure, colour, flip. blur_sigma: in pixels of the full size."""
    height, width = image.shape[:2]
    if u[13] < align_probability:
        image = misalignment(image, u[14:18], align_strength, align_degrees)
    for step in _choice(u[4], _ORDERS):
        if step == 0:
            share = _between(u[SCALE_DRAW], *scale)
            image = resize(image, (max(1, round(width * share)), max(1, round(height * share))), _choice(u[2], _INTERPOLATIONS))
        elif step == 1 and u[5] < blur_probability:
            image = cv2.GaussianBlur(image, (0, 0), _between(u[6], *blur_sigma) * image.shape[1] / width)
        elif step == 2 and u[8] < noise_probability:
            image = noise(image, u[9:11], *noise_sigma)
        elif step == 3 and u[11] < jpeg_probability:
            image = jpeg(image, round(_between(u[12], *jpeg_quality)))
    image = resize(image, (width, height), _choice(u[3], _INTERPOLATIONS))
    if u[18] < exposure_probability:
        image = exposure(image, u[19:20], exposure_strength)
    if u[20] < colour_probability:
        image = colour_jitter(image, u[21:24], colour_strength)
    return flip(image, u, out)


# Names for the configuration. A configuration file may add recipes of its own.
AUGMENTATIONS: dict[str, Augmentation] = {"none": none, "qgface": qgface, "adaface": adaface, "chain": chain}


def recipe(name: str, options: Mapping[str, Any] | None = None) -> Augmentation:
    """The augmentation of that name, or a plug-in, `module:name`, with options.

    Raises UserError, with the nearest known name, if the name or an option is unknown, or if an option is out of range.
    """
    options = options or {}
    if plugins.is_plugin(name):
        return partial(plugins.load(name, f"augmentation={name!r}"), **options)
    if name not in AUGMENTATIONS:
        near = difflib.get_close_matches(name, AUGMENTATIONS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"augmentation={name!r}: unknown: {hint}known names: {', '.join(AUGMENTATIONS)}")
    _check_options(name, options)
    return partial(AUGMENTATIONS[name], **options) if options else AUGMENTATIONS[name]


# What the last word of an option's name allows.
_LIMITS = {
    **{"probability": (0, 1), "scale": (0.02, 1), "area": (0.02, 1), "quality": (1, 100)},
    **{"strength": (0, 1), "degrees": (0, 180), "sigma": (0.01, 100)},
}


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError with one line per option that the augmentation does not have, or that is out of range."""
    defaults = {p.name: p.default for p in inspect.signature(AUGMENTATIONS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    problems = []
    for option, value in options.items():
        where = f"augmentation_options: {option}={value!r}"
        if option not in defaults:
            near = difflib.get_close_matches(option, defaults, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(defaults) or 'none'}"
            problems.append(f"{where}: unknown to augmentation={name!r}; {hint}")
            continue
        low, high = _LIMITS[option.rpartition("_")[2]]
        wanted = "two numbers in increasing order, both" if isinstance(defaults[option], tuple) else "a number"
        numbers = value if isinstance(defaults[option], tuple) else [value, value]
        kinds = (int,) if isinstance(defaults[option], int) else (int, float)
        ordered = isinstance(numbers, (list, tuple)) and len(numbers) == 2 and all(type(each) in kinds for each in numbers)
        if not (ordered and low <= numbers[0] <= numbers[1] <= high):
            problems.append(f"{where}: must be {wanted} from {low} to {high}")
    if problems:
        raise UserError(*problems)
