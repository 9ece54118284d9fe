"""Paints a face for one shot: head, hair, eyes, brows, mouth, glasses and hat, with its expression but without pose and light."""

from __future__ import annotations

import cv2
import numpy as np

from recognition.data.demo.canvas import MARGIN, SCALE, SIDE, curve, ellipse_points, fill, mirrored, paste, stroke, symmetric
from recognition.data.demo.hair import front_outline, rear_outline
from recognition.data.demo.person import Person
from recognition.data.demo.relief import mouth_corner_y, mouth_half_width
from recognition.data.demo.shot import Shot


def head_outline(person: Person, drop: float = 0.0) -> np.ndarray:
    """The outline of skull and jaw. drop: how far an open mouth lowers the chin."""
    right = [
        (56 + person.temple * 0.62, 1.0),
        (56 + person.temple * 0.93, 16.0),
        (56 + person.temple, 36.0),
        (56 + person.cheek, 62.0),
        (56 + (person.cheek + person.jaw) / 2 + 2.0, 81.0),
        (56 + person.jaw, 95.0 + drop * 0.5),
        (56 + person.chin, person.chin_y - 2 + drop),
    ]
    points = [(56.0, -6.0), *right, (56.0, person.chin_y + drop), *mirrored(right)]
    points = [(x + person.asymmetry * (y - 56) / 28, y) for x, y in points]
    return curve(points, closed=True)


def _body(canvas: np.ndarray, person: Person, shot: Shot) -> None:
    skin = np.array(person.skin)
    collar = [(-20, 140), (-18, 122), (20, 112), (34, 108), (56, 128), (78, 108), (92, 112), (130, 122), (132, 140)]
    width = person.jaw * 0.86
    fill(canvas, [(56 - width, 80), (56 + width, 80), (56 + width + 3, 130), (56 - width - 3, 130)], skin * 0.68)
    fill(canvas, collar, shot.clothes)


def _ears(canvas: np.ndarray, person: Person) -> None:
    for side in (-1, 1):
        centre = (56 + side * (person.cheek + 1.2), 60.0)
        radii = (4.4 * person.ear, 9.5 * person.ear**0.5)
        fill(canvas, ellipse_points(centre, radii, -0.15 * side), np.array(person.skin) * (0.95, 0.87, 0.85))
        inner = (radii[0] * 0.45, radii[1] * 0.6)
        fill(canvas, ellipse_points((centre[0] + 0.8 * side, centre[1]), inner), np.array(person.skin) * 0.68)


def _eye(canvas: np.ndarray, person: Person, shot: Shot, side: int) -> None:
    x, y = 56 + side * person.eye_gap, person.eye_y
    half, tilt = person.eye_width, side * person.eye_tilt
    squint = 0.25 * max(0.0, shot.smile)
    upper = person.eye_height * (1 + 0.08 * shot.brow_raise) * (1 - shot.closure[(side + 1) // 2])
    lower = person.eye_height * (0.72 - squint * 0.6)
    upper = max(upper, -lower * 0.55)
    turn = np.array([(np.cos(tilt), -np.sin(tilt)), (np.sin(tilt), np.cos(tilt))])
    inner, outer = (-half * side, 0.9), (half * side, -0.6)

    def placed(points: list[tuple[float, float]]) -> np.ndarray:
        return curve(np.array(points) @ turn + (x, y))

    lid = placed(
        [inner, (-half * 0.45 * side, -upper * 0.86), (half * 0.1 * side, -upper), (half * 0.62 * side, -upper * 0.78), outer]
    )
    floor = placed(
        [inner, (-half * 0.4 * side, lower * 0.85), (half * 0.25 * side, lower), (half * 0.7 * side, lower * 0.62), outer]
    )
    almond = np.concatenate([lid, floor[::-1]])

    left, top = int((x - 14 + MARGIN) * SCALE), int((y - 12 + MARGIN) * SCALE)
    region = canvas[top : top + 24 * SCALE, left : left + 28 * SCALE]
    ball = np.empty_like(region)
    ball[:] = (232, 228, 224, 255)
    pupil = (x + shot.gaze[0], y + shot.gaze[1] * 0.5 - 0.4)
    iris, size, origin = np.array(person.iris), person.iris_size, (left, top)
    fill(ball, ellipse_points(pupil, (size, size)), iris * 0.55, origin)
    fill(ball, ellipse_points(pupil, (size * 0.82, size * 0.82)), iris, origin)
    fill(ball, ellipse_points(pupil, (size * 0.42, size * 0.42)), (14, 11, 11), origin)
    fill(ball, ellipse_points((pupil[0] + shot.light[0] * 1.4, pupil[1] - 1.2), (0.7, 0.7)), (250, 250, 250), origin)
    fill(ball, np.concatenate([lid, lid[::-1] + np.array([0.0, 1.3])]), (128, 118, 116), origin)
    paste(region, ball, almond, origin)

    skin = np.array(person.skin)
    stroke(canvas, lid - (0, person.lid), skin * 0.68, 0.7)
    stroke(canvas, floor, skin * 0.70, 0.6)
    stroke(canvas, lid, np.array(person.hair) * 0.25 + 12, 0.9 + 0.7 * person.wears_lipstick)


def _brow(canvas: np.ndarray, person: Person, shot: Shot, side: int) -> None:
    x = 56 + side * (person.eye_gap + 0.5)
    y = person.brow_y - shot.brow_raise + 0.6 * shot.frown
    half, thick = person.brow_width, max(0.7, person.brow_thickness)
    slope = person.brow_tilt - 0.12 * shot.frown
    top = [(-half, 0.8 + shot.frown), (-half * 0.4, -person.brow_arch * 0.6), (half * 0.35, -person.brow_arch), (half, 0.2)]
    bottom = [
        (half, 0.5),
        (half * 0.3, -person.brow_arch + thick * 1.5),
        (-half * 0.45, -person.brow_arch * 0.55 + thick * 1.9),
        (-half, 0.8 + shot.frown + thick * 1.7),
    ]
    shape = np.concatenate([curve(top), curve(bottom)])
    shape = np.stack([x + side * shape[:, 0], y + shape[:, 1] - slope * shape[:, 0]], axis=1)
    dark = person.brow_dark
    fill(canvas, shape, np.array(person.skin) * (1 - dark) + np.array(person.hair) * 0.7 * dark)


def _mouth(canvas: np.ndarray, person: Person, shot: Shot) -> None:
    half, corner = mouth_half_width(person, shot), mouth_corner_y(person, shot)
    gap = 7.0 * shot.opening
    middle = person.mouth_y - 0.3 * shot.opening
    tilt = person.mouth_tilt
    left, right = (56 - half, corner + tilt), (56 + half, corner - tilt)
    upper_lip = person.upper_lip * (1 - 0.18 * max(0.0, shot.smile))
    lower_lip = person.lower_lip * (1 - 0.12 * max(0.0, shot.smile))

    def lip_line(half_of_it: list[tuple[float, float]], centre_y: float) -> np.ndarray:
        return curve([left, *symmetric(half_of_it, [(56, centre_y)]), right])

    bow_top = middle - upper_lip - person.bow * 0.6
    upper_top = lip_line(
        [(56 - half * 0.5, middle - upper_lip * 0.8), (56 - half * 0.17, bow_top)], middle - upper_lip + person.bow * 0.5
    )
    upper_edge = lip_line([(56 - half * 0.5, middle + 0.1)], middle + 0.4)
    lower_edge = lip_line([(56 - half * 0.5, middle + 0.4 + gap * 0.85)], middle + 0.6 + gap)
    bottom = lip_line([(56 - half * 0.55, middle + gap + lower_lip * 0.78)], middle + gap + lower_lip)
    lips = np.array(person.lips) * (1 - 0.75 * shot.lipstick) + np.array([178, 30, 52]) * 0.75 * shot.lipstick
    if gap > 0.4:
        fill(canvas, np.concatenate([upper_edge, lower_edge[::-1]]), (58, 22, 24))
        teeth = upper_edge + np.outer(
            np.interp(upper_edge[:, 0], [left[0], 56, right[0]], [0, 1, 0]) ** 0.5, (0, min(3.2, gap * 0.75))
        )
        fill(canvas, np.concatenate([upper_edge, teeth[::-1]]), (222, 214, 202))
    fill(canvas, np.concatenate([lower_edge, bottom[::-1]]), lips)
    fill(canvas, np.concatenate([upper_top, upper_edge[::-1]]), lips * 0.88)
    stroke(canvas, upper_edge if gap <= 0.4 else lower_edge, lips * 0.5, 0.6)


def _glasses(canvas: np.ndarray, person: Person, shot: Shot) -> None:
    width, height = (10.5, 9.0) if shot.glasses == "round" else (12.0, 7.6)
    power = 2.0 if shot.glasses == "round" else 4.0
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    cosine, sine = np.cos(turn), np.sin(turn)
    ring = np.stack(
        [np.sign(cosine) * np.abs(cosine) ** (2 / power) * width, np.sign(sine) * np.abs(sine) ** (2 / power) * height], axis=1
    )
    frame = shot.accent * 0.5
    for side in (-1, 1):
        centre = (56 + side * (person.eye_gap + 0.6), person.eye_y + 1.5)
        if shot.glasses == "dark":
            fill(canvas, ring + centre, (26, 26, 30))
        stroke(canvas, ring + centre, frame, 1.2, closed=True)
        stroke(canvas, [(centre[0] + side * width, centre[1] - 2), (56 + side * 43, centre[1] - 3)], frame, 1.3)
    inner = person.eye_gap + 0.6 - width
    bridge = [(56 - inner, person.eye_y), (56.0, person.eye_y - 1.6), (56 + inner, person.eye_y)]
    stroke(canvas, curve(bridge), frame, 1.2)


def _hat(canvas: np.ndarray, person: Person, shot: Shot) -> None:
    edge = person.temple + 4.5
    brim = 20.0 + shot.hair_growth
    crown = curve(symmetric([(56 - edge, brim + 6), (56 - edge + 1, 4), (56 - 24, -14)], [(56, -17)]))
    band = curve(symmetric([(56 + edge, brim + 6), (56 + 24, brim)], [(56, brim - 1.5)]))
    fill(canvas, np.concatenate([crown, band]), shot.accent)
    if shot.hat == "cap":
        peak = curve(symmetric([(56 - edge, brim + 6), (56 - 25, brim + 8)], [(56, brim + 9)]))
        fill(canvas, np.concatenate([band, peak]), shot.accent * 0.55)
    else:
        stroke(canvas, band - (0, 7), shot.accent * 0.6, 0.9)


def paint(person: Person, shot: Shot, skin: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """The whole person on a transparent canvas: uint8 RGBA [SIDE, SIDE, 4], with premultiplied colours at soft edges."""
    canvas = np.zeros((SIDE, SIDE, 4), np.uint8)
    hair = cv2.transform(hair, np.diag([*shot.hair_tone, 1.0]))
    rear, front = rear_outline(person, shot), front_outline(person, shot)
    if rear is not None:
        paste(canvas, hair, rear)
    _body(canvas, person, shot)
    if shot.style not in ("bob", "long"):  # their hair hides the ears
        _ears(canvas, person)
    paste(canvas, skin, head_outline(person, 4.0 * shot.opening))
    for side in (-1, 1):
        _eye(canvas, person, shot, side)
        _brow(canvas, person, shot, side)
    _mouth(canvas, person, shot)
    if front is not None:
        paste(canvas, hair, front)
    if shot.glasses:
        _glasses(canvas, person, shot)
    if shot.hat:
        _hat(canvas, person, shot)
    return canvas
