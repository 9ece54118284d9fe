"""The permanent appearance of a person's skin and hair: complexion, beard, freckles, moles, folds, nostrils; strands."""

from __future__ import annotations

import cv2
import numpy as np

from recognition.data.demo.canvas import FIELD, SIDE, curve, ellipse_points, fill, noise, spot, stroke, symmetric, to_field
from recognition.data.demo.person import Person
from utils.images import FACE_SIZE


def _beard_field(person: Person, grain: np.ndarray) -> np.ndarray:
    """The share of skin that beard and moustache cover, 0..1: [FIELD, FIELD]."""
    coarse = np.zeros((FIELD, FIELD), np.uint8)
    if person.beard:
        cheek_line = curve([(14, 62), (22, 76), (34, 84), (40, 90), (44, 100), (56, 101)])
        lower = np.array([(56.0, 132.0), (10.0, 132.0)])
        shape = np.concatenate([cheek_line, lower])
        _fill_field(coarse, shape, 255 * person.beard)
        _fill_field(coarse, shape * (-1, 1) + (FACE_SIZE, 0), 255 * person.beard)
    if person.moustache:
        half, top = person.mouth_width + 2.5, person.nose_y + 8
        bottom = person.mouth_y - person.upper_lip
        upper = symmetric([(56 - half, bottom + 4), (56 - half * 0.6, top + 2)], [(56, top)])
        shape = curve([*upper, (56, bottom)], closed=True)
        _fill_field(coarse, shape, 255 * person.moustache)
    covered = cv2.GaussianBlur(coarse, (0, 0), 2.0).astype(np.float32) / 255
    return np.clip(covered * (0.85 + 0.16 * grain), 0, 0.92)


def _fill_field(field: np.ndarray, points_N2: np.ndarray, value: float) -> None:
    cv2.fillPoly(field, [np.round(to_field(points_N2) * 16).astype(np.int32)], value, cv2.LINE_AA, 4)


def _enlarged(field: np.ndarray) -> np.ndarray:
    return cv2.resize(field, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def _complexion(person: Person, rng: np.random.Generator) -> np.ndarray:
    """Uneven skin colour: float32 [SIDE, SIDE, 3]."""
    skin = np.array(person.skin, np.float32)
    brightness = 1 + 0.012 * noise(rng, (7, 7), FIELD) + 0.022 * noise(rng, (20, 20), FIELD)
    redness = 2.0 * noise(rng, (9, 9), FIELD)
    for side in (-1, 1):
        eye_x = 56 + side * person.eye_gap
        redness += 11 * person.blush * spot((56 + 24 * side, 72), (9, 7))
        brightness -= 0.10 * spot((eye_x, person.eye_y - 1), (8.5, 4.5))
        brightness -= 0.16 * person.bags * spot((eye_x, person.eye_y + 5.5), (6.5, 1.8))
    redness += 7 * person.blush * spot((56, person.nose_y), (6, 5))
    field = skin * brightness[..., None].astype(np.float32)
    field += redness[..., None].astype(np.float32) * np.array([1.0, -0.45, -0.4], np.float32)
    beard = _beard_field(person, rng.standard_normal((FIELD, FIELD), dtype=np.float32))[..., None]
    field += beard * (np.array(person.hair, np.float32) * 0.85 - field)
    large = _enlarged(field)
    large *= 1 + 0.018 * noise(rng, (SIDE // 2, SIDE // 2), SIDE)[..., None]
    return large


def _folds(image: np.ndarray, person: Person) -> None:
    """Draw lines: from the nose to the mouth, under the eyes, on the forehead, and the wings of the nose."""
    skin = np.array(person.skin)
    nose_y, wing = person.nose_y, person.nose_width
    for side in (-1, 1):
        fold = curve(
            [
                (56 + side * (wing + 2.5), nose_y - 1),
                (56 + side * (wing + 7), nose_y + 8),
                (56 + side * (person.mouth_width + 5.5), person.mouth_y - 2),
            ]
        )
        stroke(image, fold, skin * (1 - 0.26 * person.folds), 1.0)
        curl = curve(
            [
                (56 + side * wing * 0.86, nose_y - 3.5),
                (56 + side * (wing + 0.8), nose_y + 0.5),
                (56 + side * wing * 0.72, nose_y + 3.6),
            ]
        )
        stroke(image, curl, skin * 0.74, 0.8)
        bag = curve(
            [
                (56 + side * (person.eye_gap - 6), person.eye_y + 5),
                (56 + side * person.eye_gap, person.eye_y + 8),
                (56 + side * (person.eye_gap + 6), person.eye_y + 5.5),
            ]
        )
        stroke(image, bag, skin * (1 - 0.22 * person.bags), 0.7)
    for line in range(3):
        height = 24 + 4.5 * line
        stroke(
            image,
            curve([(36, height + 1.2), (56, height - 0.6), (76, height + 1.2)]),
            skin * (1 - 0.16 * max(0.0, person.folds - 0.4)),
            0.6,
        )


def _nostrils(image: np.ndarray, person: Person) -> None:
    for side in (-1, 1):
        shape = ellipse_points(
            (56 + side * person.nose_width * 0.46, person.nose_y + 3.2), (person.nose_width * 0.25, 1.25), -0.3 * side
        )
        fill(image, shape, np.array(person.skin) * 0.32)
    under = curve(symmetric([(56 - person.nose_width * 0.6, person.nose_y + 3.8)], [(56, person.nose_y + 5.2)]))
    stroke(image, under, np.array(person.skin) * 0.72, 0.7)


def paint_skin(person: Person) -> np.ndarray:
    """A person's skin over the whole canvas: uint8 RGBA [SIDE, SIDE, 4], opaque."""
    rng = np.random.default_rng(person.texture_seed)
    large = _complexion(person, rng)
    detail = np.full((SIDE, SIDE, 4), 255, np.uint8)
    detail[..., :3] = np.clip(large, 0, 255)
    _folds(detail, person)
    image = np.asarray(cv2.GaussianBlur(detail, (5, 5), 0))
    _nostrils(image, person)
    for _ in range(int(90 * person.freckles)):
        place = (float(rng.normal(56, 20)), float(rng.normal(68, 9)))
        fill(image, ellipse_points(place, (float(rng.uniform(0.35, 0.8)),) * 2), np.array(person.skin) * (0.86, 0.74, 0.68))
    for x, y, radius in person.moles:
        fill(image, ellipse_points((x, y), (radius, radius)), np.array(person.skin) * (0.48, 0.4, 0.38))
    return image


def paint_hair(person: Person) -> np.ndarray:
    """A person's hair over the whole canvas: uint8 RGBA [SIDE, SIDE, 4], opaque."""
    rng = np.random.default_rng(person.texture_seed + 1)
    rows = int(4 + 60 * person.curl**2)
    strands = cv2.resize(rng.standard_normal((rows, 110), dtype=np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    waves = noise(rng, (6, 6), SIDE)
    shade = 1 + 0.17 * strands + 0.10 * waves
    image = np.full((SIDE, SIDE, 4), 255, np.uint8)
    image[..., :3] = np.clip(np.array(person.hair, np.float32) * shade[..., None] + 5 * strands[..., None], 0, 255)
    return image
