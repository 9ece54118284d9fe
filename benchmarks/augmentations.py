"""Each augmentation beside the same in Pillow: time of ours, and how many times Pillow's rate it reaches."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from recognition.data import FaceDataset, augment
from utils.randomness import uniforms

_IMAGES = 100
_FILTERS = (
    Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS,
)  # fmt: skip


def _pillow_low_resolution(image: Image.Image, u: np.ndarray) -> Image.Image:
    side = round(112 * (0.1 + 0.4 * u[0]))
    small = image.resize((side, side), _FILTERS[int(5 * u[1])])
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return Image.open(buffer).resize((112, 112), _FILTERS[int(5 * u[2])])


def _pillow_crop(image: Image.Image, u: np.ndarray) -> Image.Image:
    top, left, height, width = augment._crop_box(u, 112, 112, 0.8, 1.0)
    return image.resize((112, 112), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))


def _pillow_crop_in_place(image: Image.Image, u: np.ndarray) -> Image.Image:
    top, left, height, width = augment._crop_box(u, 112, 112, 0.2, 1.0)
    kept = Image.new("RGB", (112, 112))
    kept.paste(image.crop((left, top, left + width, top + height)), (left, top))
    return kept


def _pillow_jitter(image: Image.Image, u: np.ndarray) -> Image.Image:
    for enhancer, value in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), u, strict=False):
        image = enhancer(image).enhance(0.8 + 0.4 * value)
    return image


def _pillow_qgface(image: Image.Image, u: np.ndarray) -> Image.Image:
    image = _pillow_low_resolution(image, u[1:4])
    if u[4] < 0.2:
        image = _pillow_crop(image, u[5:9])
    if u[9] < 0.2:
        image = _pillow_jitter(image, u[10:13])
    if u[13] < 0.2:
        image = image.rotate(90 * u[14] - 45, Image.Resampling.BILINEAR)
    return ImageOps.mirror(image) if u[0] < 0.5 else image


PAIRS: dict[str, tuple[Callable, Callable]] = {
    "flip": (augment.flip, lambda image, u: ImageOps.mirror(image) if u[0] < 0.5 else image),
    "low resolution and JPEG": (lambda i, u: augment.low_resolution(i, u, 0.1, 0.5, 75), _pillow_low_resolution),
    "resized crop": (lambda i, u: augment.resized_crop(i, u, 0.8, 1.0), _pillow_crop),
    "crop in place": (lambda i, u: augment.crop_in_place(i, u, 0.2, 1.0), _pillow_crop_in_place),
    "colour jitter": (lambda i, u: augment.colour_jitter(i, u, 0.2), _pillow_jitter),
    "rotation": (lambda i, u: augment.rotation(i, u, 45.0), lambda i, u: i.rotate(90 * u[0] - 45, Image.Resampling.BILINEAR)),
    "qgface, whole": (augment.qgface, _pillow_qgface),
}


def compare_with_pillow(dataset: FaceDataset, rounds: int) -> list[tuple[str, float, float]]:
    """(operation, microseconds of ours, Pillow's time over ours), medians of alternating rounds."""
    arrays = [cv2.imdecode(np.frombuffer(dataset.read(n)[0], np.uint8), cv2.IMREAD_COLOR_RGB) for n in range(_IMAGES)]
    pictures = [Image.fromarray(array) for array in arrays]
    draws = uniforms(0, 0, np.arange(_IMAGES), augment.UNIFORMS)
    rows = []
    for name, (ours, pillow) in PAIRS.items():
        times = [(_seconds(ours, arrays, draws), _seconds(pillow, pictures, draws)) for _ in range(rounds)]
        microseconds = statistics.median(mine for mine, _ in times) / _IMAGES * 1e6
        rows.append((name, microseconds, statistics.median(other / mine for mine, other in times)))
    return rows


def _seconds(operation: Callable, images: list, draws: np.ndarray) -> float:
    begin = time.perf_counter()
    for image, u in zip(images, draws, strict=True):
        operation(image, u)
    return time.perf_counter() - begin
