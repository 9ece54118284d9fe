"""The head as a height field. Depth towards the camera causes parallax when the head turns; normals and shadows shade it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from recognition.data.demo.canvas import grid, spot, to_field
from recognition.data.demo.person import Person
from recognition.data.demo.shot import Shot
from utils.images import FACE_SIZE
from utils.images.alignment import ARCFACE_TEMPLATE, similarity

CENTRE = np.array([FACE_SIZE / 2, 58.0])


@dataclass(frozen=True)
class Relief:
    """Fields of one head, float32, with one sample per crop pixel."""

    depth: np.ndarray  # [FIELD, FIELD], pixels towards the camera
    normals: np.ndarray  # [FIELD, FIELD, 4]: unit normal x, y, z, and the share of ambient light that reaches the point


def _nose(person: Person) -> np.ndarray:
    x, y = grid()
    top, tip = person.eye_y - 6, person.nose_y
    middle = (top + tip) / 2
    height = np.interp(
        y[:, 0],
        [top - 8, top, middle, tip - 3, tip, tip + 4, tip + 8],
        [
            0.0,
            1.2,
            0.5 * person.nose_height + person.nose_bump,
            0.95 * person.nose_height,
            person.nose_height,
            0.45 * person.nose_height,
            0.0,
        ],
    )
    width = np.interp(y[:, 0], [top, middle, tip], [person.nose_bridge, person.nose_bridge, 4.6 * person.nose_round])
    ridge = height[:, None] * np.exp(-0.5 * ((x - 56) / width[:, None]) ** 2)
    wings = sum(spot((56 + side * 0.78 * person.nose_width, tip + 1.5), (2.6, 2.8)) for side in (-1, 1))
    return ridge + 0.33 * person.nose_height * wings


def build_relief(person: Person) -> Relief:
    """The height field of a person's head at rest."""
    x, y = grid()
    head = np.maximum(0.0, 1 - ((x - 56) / 52) ** 2 - ((y - 52) / 74) ** 2)
    depth = 40 * head**0.85 + _nose(person)
    eyes = [(56 - person.eye_gap, person.eye_y), (56 + person.eye_gap, person.eye_y)]
    for side, (eye_x, eye_y) in zip((-1, 1), eyes, strict=True):
        depth -= person.socket_depth * spot((eye_x - 2 * side, eye_y - 1), (9.0, 5.5))
        depth += 1.8 * spot((eye_x, eye_y), (4.5, 3.5))
        depth += person.brow_ridge * spot((eye_x, person.brow_y + 1), (9.5, 3.2))
        depth += person.cheek_bone * spot((56 + 25 * side, 68), (9.0, 7.0))
        depth -= 0.5 * person.cheek_bone * spot((56 + 27 * side, 85), (7.0, 8.0))
    mouth = person.mouth_y
    depth += 0.75 * person.upper_lip * spot((56, mouth - 2), (11, 2.6))
    depth += 0.75 * person.lower_lip * spot((56, mouth + 4), (9, 2.8)) - 2.0 * spot((56, mouth + 9), (9, 2.5))
    depth += 4.0 * spot((56, person.chin_y - 7), (person.chin * 0.6, 5)) - 2.2 * person.cleft * spot(
        (56, person.chin_y - 6), (1.6, 4)
    )
    depth = cv2.GaussianBlur(depth.astype(np.float32), (5, 5), 0)
    slope_x = cv2.Sobel(depth, cv2.CV_32F, 1, 0, scale=1 / 8)
    slope_y = cv2.Sobel(depth, cv2.CV_32F, 0, 1, scale=1 / 8)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    reached = np.clip(1 + 0.07 * (depth - cv2.GaussianBlur(depth, (0, 0), 5)), 0.6, 1.1)
    normals = np.stack([-slope_x / length, -slope_y / length, 1 / length, reached], axis=2)
    return Relief(depth, np.ascontiguousarray(normals, dtype=np.float32))


def five_points(person: Person, shot: Shot) -> np.ndarray:
    """Eyes, tip of the nose and corners of the mouth of the unturned face, in crop pixels: [5, 2]."""
    half = mouth_half_width(person, shot)
    corner = mouth_corner_y(person, shot)
    return np.array(
        [
            (56 - person.eye_gap, person.eye_y),
            (56 + person.eye_gap, person.eye_y),
            (56.0, person.nose_y),
            (56 - half, corner + person.mouth_tilt),
            (56 + half, corner - person.mouth_tilt),
        ]
    )


def mouth_half_width(person: Person, shot: Shot) -> float:
    """Half the width of the mouth: a smile widens it, opening it narrows it."""
    return person.mouth_width * (1 + 0.17 * shot.smile) - 2.2 * shot.opening


def mouth_corner_y(person: Person, shot: Shot) -> float:
    """The height of the corners of the mouth, which a smile lifts."""
    return person.mouth_y - 2.0 * shot.smile + 1.5 * shot.opening


def pose_map(person: Person, relief: Relief, shot: Shot, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of the picture, the crop coordinates of the point on the unturned face that it shows: x and y, [size, size].

    The head is turned, its five points are computed, and the picture is aligned by them, apart from `shot`'s roll, offset and
    zoom. Positions in the plane are complex numbers.
    """
    slope = np.tan([shot.yaw, shot.pitch])
    narrowing = np.cos([shot.yaw, shot.pitch])
    points = five_points(person, shot)
    columns, rows = np.round(to_field(points)).astype(int).T
    seen = (points - CENTRE + slope * relief.depth[rows, columns, None]) * narrowing + CENTRE
    aligning = similarity(seen, ARCFACE_TEMPLATE)
    assert aligning is not None, "the five points differ"
    factor = complex(aligning[0, 0], aligning[1, 0]) * shot.zoom * np.exp(1j * shot.roll)
    shift = ARCFACE_TEMPLATE.mean(axis=0) @ (1, 1j) - factor * (seen.mean(axis=0) @ (1, 1j)) + shot.offset @ (1, 1j)

    along = (np.arange(size, dtype=np.float32) + 0.5) * (FACE_SIZE / size) - 0.5
    back = np.complex64(1 / factor)
    place = (along[None, :] + 1j * along[:, None] - np.complex64(shift)) * back
    flat_x = (place.real - np.float32(CENTRE[0])) / np.float32(narrowing[0]) + np.float32(CENTRE[0])
    flat_y = (place.imag - np.float32(CENTRE[1])) / np.float32(narrowing[1]) + np.float32(CENTRE[1])
    x, y = flat_x, flat_y
    for _ in range(3):  # a pixel's depth is that of the point it shows: a fixed-point iteration
        depth = sample(relief.depth, x, y)
        x, y = flat_x - np.float32(slope[0]) * depth, flat_y - np.float32(slope[1]) * depth
    return x, y


def sample(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate a field bilinearly at crop coordinates."""
    offset = np.float32(to_field(np.zeros(1))[0])
    return cv2.remap(field, x + offset, y + offset, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _cast_shadow(depth: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The share of light that nearby relief hides, 0..1, sampled at three distances towards the light."""
    hidden = np.zeros_like(depth)
    for distance in (4.0, 8.0, 13.0):
        dx, dy = np.round(distance * light[:2]).astype(int)
        nearer = np.roll(depth, (-int(dy), -int(dx)), (0, 1))
        hidden = np.maximum(hidden, nearer - depth - np.float32(distance * light[2] + 0.8))
    return cv2.GaussianBlur(np.minimum(hidden * np.float32(0.35), 0.85), (5, 5), 0)


def light_face(relief: Relief, shot: Shot, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The light that reaches each pixel, as factors [H, W, 3], and the highlights to add, [H, W, 1]."""
    normals = sample(relief.normals, x, y)
    depth = sample(relief.depth, x, y)
    light = shot.light.astype(np.float32)
    facing = normals[..., :3] @ light
    direct = np.maximum((facing + np.float32(0.2)) / np.float32(1.2), 0) * (1 - _cast_shadow(depth, light))
    shade = direct[..., None] * shot.light_colour.astype(np.float32)
    shade += normals[..., 3:] * shot.ambient.astype(np.float32)
    halfway = light + np.array([0, 0, 1], np.float32)
    halfway /= np.linalg.norm(halfway)
    shine = np.maximum(normals[..., :3] @ halfway, 0) ** 16 * np.float32(90 * shot.gloss)
    return shade, (shine * np.minimum(direct, 1))[..., None]
