"""Compares each augmentation with the same operation in Pillow."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from recognition.data import FaceDataset, augment
from utils.images import FACE_SIZE, decode_face
from utils.randomness import uniforms

_IMAGES = 100
_FILTERS = [Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "BOX", "BICUBIC", "LANCZOS")]


def _pillow_low_resolution(image: Image.Image, u: np.ndarray) -> Image.Image:
    side = round(FACE_SIZE * (0.1 + 0.4 * u[0]))
    small = image.resize((side, side), _FILTERS[int(5 * u[1])])
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return Image.open(buffer).resize((FACE_SIZE, FACE_SIZE), _FILTERS[int(5 * u[2])])


def _pillow_crop(image: Image.Image, u: np.ndarray) -> Image.Image:
    top, left, height, width = augment.crop_box(u, FACE_SIZE, FACE_SIZE, 0.8, 1.0)
    return image.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))


def _pillow_crop_in_place(image: Image.Image, u: np.ndarray) -> Image.Image:
    top, left, height, width = augment.crop_box(u, FACE_SIZE, FACE_SIZE, 0.2, 1.0)
    kept = Image.new("RGB", (FACE_SIZE, FACE_SIZE))
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
    """(operation, microseconds here, Pillow's time divided by that), medians of alternating rounds."""
    arrays = [decode_face(dataset.read(number)[0], dataset.where(number)) for number in range(_IMAGES)]
    pictures = [Image.fromarray(array) for array in arrays]
    draws = uniforms(0, 0, np.arange(_IMAGES), augment.UNIFORMS)
    rows = []
    for name, (opencv, pillow) in PAIRS.items():
        times = [(_seconds(opencv, arrays, draws), _seconds(pillow, pictures, draws)) for _ in range(rounds)]
        microseconds = statistics.median(here for here, _ in times) / _IMAGES * 1e6
        rows.append((name, microseconds, statistics.median(other / here for here, other in times)))
    return rows


def _seconds(operation: Callable, images: list, draws: np.ndarray) -> float:
    begin = time.perf_counter()
    for image, u in zip(images, draws, strict=True):
        operation(image, u)
    return time.perf_counter() - begin
