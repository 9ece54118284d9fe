"""Renders one picture of a procedural person: painted, turned, lit, placed before a background and seen by a camera."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from recognition.data.demo.canvas import MARGIN, SCALE
from recognition.data.demo.paint import paint
from recognition.data.demo.person import Person, draw_person
from recognition.data.demo.relief import Relief, build_relief, light_face, pose_map
from recognition.data.demo.shot import Shot, draw_shot
from recognition.data.demo.skin import paint_hair, paint_skin
from utils.images import FACE_SIZE


@lru_cache(maxsize=4)
def _figure(seed: int, identity: int) -> tuple[Person, Relief, np.ndarray, np.ndarray, np.ndarray]:
    """What all pictures of a person share, read-only: traits, relief, skin, shaven skin, hair."""
    person = draw_person(seed, identity)
    relief, skin, hair = build_relief(person), paint_skin(person), paint_hair(person)
    shaven = paint_skin(replace(person, beard=0.0, moustache=0.0)) if person.beard or person.moustache else skin
    for array in (relief.depth, relief.normals, skin, shaven, hair):
        array.setflags(write=False)
    return person, relief, skin, shaven, hair


def _scene(shot: Shot, size: int, rng: np.random.Generator) -> np.ndarray:
    """A blurred background: float32 [size, size, 3]."""
    cells = int(rng.integers(2, 9))
    grey, colour = rng.uniform(2, 45), rng.uniform(2, 18)
    colours = rng.uniform(25, 215) + rng.normal(0, 28, 3)
    colours = colours + rng.normal(0, grey, (cells, cells, 1)) + rng.normal(0, colour, (cells, cells, 3))
    scene = cv2.resize(colours.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return scene * np.float32(0.35 + 0.5 * shot.ambient.mean() + 0.25 * shot.light_colour.mean())


def _camera(picture: np.ndarray, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """The effects of focus, exposure, saturation, contrast, sensor noise and compression: float32 to uint8 [H, W, 3]."""
    if shot.blur > 0.15:
        picture = cv2.GaussianBlur(picture, (0, 0), shot.blur)
    metered = np.sqrt(105 / max(20.0, float(picture[20:].mean())))  # half of the correction of an automatic exposure
    picture = picture * np.float32(shot.exposure * metered)
    grey = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    picture = grey + (picture - grey) * np.float32(shot.saturation)
    picture = (picture - 110) * np.float32(shot.contrast) + 110
    picture = np.where(picture > 170, 170 + 85 * np.tanh((picture - 170) / 85), picture)  # highlights saturate softly
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(shot.noise)
    image = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    if not shot.jpeg:
        return image
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, shot.jpeg])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))  # BGR both ways: the order does not matter


def render(seed: int, identity: int, index: int, size: int = FACE_SIZE) -> np.ndarray:
    """Picture `index` of a procedural person, aligned to ArcFace's five points.

    Args:
        seed: of the whole set; other seeds have other people.
        identity: number of the person, 0 or more.
        index: number of the picture, 0 or more.
        size: side of the picture in pixels, from 56 to 224 (the face is painted at 224).

    Returns:
        uint8 RGB [size, size, 3]; a function of the arguments alone.

    Raises:
        ValueError: a number is negative, or `size` is out of range.
    """
    if min(seed, identity, index) < 0 or not FACE_SIZE // 2 <= size <= FACE_SIZE * SCALE:
        raise ValueError(
            f"expected numbers of 0 or more and a size of 56..224, "
            f"found seed {seed}, identity {identity}, index {index}, size {size}"
        )
    person, relief, bearded, shaven, hair = _figure(seed, identity)
    shot = draw_shot(seed, identity, index, person)
    rng = np.random.default_rng(shot.scene_seed)
    canvas = cv2.GaussianBlur(paint(person, shot, shaven if shot.shaven else bearded, hair), (3, 3), 0)
    x, y = pose_map(person, relief, shot, size)
    canvas_x, canvas_y = ((axis + np.float32(MARGIN + 0.5)) * np.float32(SCALE) - np.float32(0.5) for axis in (x, y))
    figure = cv2.remap(canvas, canvas_x, canvas_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    figure = figure.astype(np.float32)
    shade, shine = light_face(relief, shot, x, y)
    cover = figure[..., 3:] / 255
    picture = figure[..., :3] * shade + shine * cover + _scene(shot, size, rng) * (1 - cover)
    return _camera(picture, shot, rng)
