"""The permanent traits of one procedural person.

Lengths are in pixels of the 112x112 crop, in which the mean face has ArcFace's five points; angles are in radians; everything
else is a share from 0 to 1. No single trait identifies a person: there are many, most are continuous, and any two may agree by
chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue in 0-255

SKIN = np.array([(247, 214, 192), (234, 190, 160), (213, 162, 126), (176, 124, 90), (125, 84, 60), (82, 55, 43)], float)
HAIR = np.array([(24, 20, 20), (52, 34, 25), (92, 60, 38), (142, 98, 56), (205, 168, 108), (228, 204, 156)], float)
IRIS = np.array([(46, 28, 18), (84, 52, 28), (124, 92, 48), (98, 116, 72), (92, 124, 150), (120, 156, 186)], float)

HAIR_STYLES = ("bald", "crop", "side", "fringe", "bob", "long", "curly", "receding")


def _ramp(stops_N3: np.ndarray, position: float) -> np.ndarray:
    """Interpolate between the colours `stops_N3` at `position`, 0..1."""
    places = np.linspace(0.0, 1.0, len(stops_N3))
    return np.array([np.interp(position, places, stops_N3[:, channel]) for channel in range(3)])


def _colour(value: np.ndarray) -> Colour:
    red, green, blue = np.clip(value, 0, 255)
    return float(red), float(green), float(blue)


@dataclass(frozen=True)
class Person:
    """The traits of one person."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    # head: half widths at four heights, height of the chin, ears
    temple: float
    cheek: float
    jaw: float
    chin: float
    chin_y: float
    ear: float
    asymmetry: float
    # hair
    style: str
    other_style: str  # of some pictures
    hairline: float
    peak: float
    parting: float
    volume: float
    curl: float
    # eyes and brows
    eye_gap: float
    eye_y: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    lid: float
    iris_size: float
    bags: float
    brow_y: float
    brow_width: float
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    brow_dark: float
    # nose
    nose_y: float
    nose_width: float
    nose_bridge: float
    nose_height: float
    nose_bump: float
    nose_round: float
    # mouth
    mouth_y: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    bow: float
    mouth_tilt: float
    # surface
    socket_depth: float
    cheek_bone: float
    brow_ridge: float
    folds: float
    cleft: float
    beard: float
    moustache: float
    freckles: float
    moles: tuple[tuple[float, float, float], ...]
    blush: float
    texture_seed: int
    # habits
    wears_glasses: float
    wears_lipstick: float


def draw_person(seed: int, identity: int) -> Person:
    """The person with this number; a function of the arguments alone."""
    rng = np.random.default_rng([seed, 0, identity])

    def normal(mean: float, spread: float) -> float:
        return mean + spread * float(np.clip(rng.standard_normal(), -2.2, 2.2))

    masculine = float(rng.uniform())
    melanin, age = float(rng.uniform()), float(rng.beta(1.5, 2.0))
    skin = _ramp(SKIN, melanin) * rng.uniform(0.95, 1.05) + rng.uniform(-7, 7, 3)
    hair = _ramp(HAIR, float(np.clip(rng.beta(1.1, 2.0) * (1.15 - 0.85 * melanin), 0, 1)))
    hair = hair + rng.uniform(0, 1) ** 3 * np.array([45.0, -4.0, -22.0])
    grey = float(np.clip((age - 0.55) * rng.uniform(0, 3.0), 0, 0.9))
    hair = hair * (1 - grey) + grey * np.array([176.0, 174.0, 172.0])
    iris = _ramp(IRIS, float(rng.beta(0.8, 1.6) * (1.2 - 0.9 * melanin)))
    lips = skin * 0.62 + np.array([168.0, 84.0, 84.0]) * (0.36 - 0.18 * melanin) + rng.uniform(-10, 10, 3)
    chances = np.array([0.3, 1.6, 1.6, 0.9, 1.0, 1.2, 0.9, 0.7])
    chances *= np.where(np.isin(HAIR_STYLES, ("bald", "crop", "receding")), 0.15 + masculine, 1.15 - masculine * 0.9)
    style, other_style = (HAIR_STYLES[int(rng.choice(len(HAIR_STYLES), p=chances / chances.sum()))] for _ in range(2))
    if "bald" in (style, other_style):
        other_style = style
    bearded = masculine > 0.5 and rng.uniform() < 0.5
    moles = tuple(
        (float(rng.uniform(24, 88)), float(rng.uniform(26, 108)), float(rng.uniform(0.5, 1.3)))
        for _ in range(int(rng.integers(0, 5)))
    )
    return Person(
        skin=_colour(skin),
        hair=_colour(hair),
        iris=_colour(iris),
        lips=_colour(lips),
        temple=normal(38.5, 1.9),
        cheek=normal(40.5, 2.2),
        jaw=normal(30.5 + 3 * masculine, 2.7),
        chin=normal(13.5 + 3 * masculine, 2.3),
        chin_y=normal(113.5 + masculine, 3.0),
        ear=normal(1.0, 0.25),
        asymmetry=normal(0.0, 0.5),
        style=style,
        other_style=other_style,
        hairline=normal(17.0 + (-4 if style == "receding" else 0), 3.6),
        peak=normal(0.0, 2.4),
        parting=normal(0.0, 11.0),
        volume=normal(1.0, 0.2),
        curl=float(rng.uniform()),
        eye_gap=normal(17.6, 1.25),
        eye_y=normal(51.6, 1.0),
        eye_width=normal(8.0, 0.85),
        eye_height=normal(3.7, 0.62),
        eye_tilt=normal(0.05, 0.09),
        lid=normal(2.4, 1.0),
        iris_size=normal(3.5, 0.28),
        bags=float(rng.uniform()) * age,
        brow_y=normal(40.6, 1.7),
        brow_width=normal(10.6, 1.1),
        brow_thickness=normal(1.5 + masculine * 0.7, 0.55),
        brow_arch=normal(2.6 - masculine, 1.2),
        brow_tilt=normal(0.02, 0.1),
        brow_dark=normal(0.62, 0.15),
        nose_y=normal(71.7, 2.2),
        nose_width=normal(7.8 + melanin * 1.6, 1.15),
        nose_bridge=normal(3.9, 0.6),
        nose_height=normal(13.0, 2.1),
        nose_bump=normal(0.0, 1.3),
        nose_round=normal(1.0, 0.22),
        mouth_y=normal(92.2, 1.7),
        mouth_width=normal(14.4, 1.5),
        upper_lip=max(1.2, normal(2.7 + melanin, 0.8)),
        lower_lip=max(1.8, normal(3.9 + melanin, 0.9)),
        bow=normal(0.9, 0.45),
        mouth_tilt=normal(0.0, 0.9),
        socket_depth=normal(3.6, 1.0),
        cheek_bone=normal(3.0, 1.1),
        brow_ridge=normal(1.2 + 1.5 * masculine, 0.7),
        folds=float(rng.uniform(0.1, 1.0)) * (0.35 + 0.65 * age),
        cleft=float(rng.uniform() ** 3),
        beard=float(rng.uniform(0.25, 1.0)) if bearded and rng.uniform() < 0.75 else 0.0,
        moustache=float(rng.uniform(0.3, 1.0)) if bearded else 0.0,
        freckles=float(rng.uniform(0.3, 1.0)) if rng.uniform() < 0.35 * (1.1 - melanin) else 0.0,
        moles=moles,
        blush=float(rng.uniform()),
        texture_seed=int(rng.integers(2**31)),
        wears_glasses=0.85 if rng.uniform() < 0.12 else 0.05,
        wears_lipstick=float(rng.uniform()) * (masculine < 0.45),
    )
