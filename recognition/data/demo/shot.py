"""The conditions of one picture: pose, expression, light, surroundings and camera. They do not depend on the person shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recognition.data.demo.person import Person


@dataclass(frozen=True)
class Shot:
    """The conditions of one picture. Angles are in radians, offsets in pixels of the crop; colours are factors or 0-255."""

    yaw: float
    pitch: float
    roll: float
    offset: np.ndarray  # [2], the misalignment of an imperfect detector
    zoom: float
    smile: float
    opening: float
    brow_raise: float
    frown: float
    closure: np.ndarray  # [2], left and right eye; 0 open, 1 closed
    gaze: np.ndarray  # [2]
    light: np.ndarray  # [3], unit vector towards the light: x right, y down, z towards the camera
    light_colour: np.ndarray  # [3]
    ambient: np.ndarray  # [3]
    gloss: float
    exposure: float
    contrast: float
    saturation: float
    blur: float
    noise: float
    jpeg: int  # quality; 0: no compression
    glasses: str  # "", "round", "square", "dark"
    hat: str  # "", "cap", "beanie"
    accent: np.ndarray  # [3], colour of hat and frame
    clothes: np.ndarray  # [3]
    style: str  # of the hair
    hair_shift: float
    hair_growth: float
    hair_tone: np.ndarray  # [3], sun, dye, water
    shaven: bool
    lipstick: float
    scene_seed: int


def _light(rng: np.random.Generator) -> np.ndarray:
    azimuth = rng.uniform(-1.35, 1.35)
    elevation = np.clip(rng.normal(0.45, 0.4), -0.5, 1.25)
    return np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])


def _tint(rng: np.random.Generator, spread: float) -> np.ndarray:
    """A colour cast between warm and cold, and slightly between green and magenta."""
    warmth, green = np.clip(rng.normal(0.0, 1.0, 2), -2, 2) * spread
    return np.array([1 + warmth, 1 + 0.4 * green, 1 - warmth])


def draw_shot(seed: int, identity: int, index: int, person: Person) -> Shot:
    """The conditions of picture `index` of a person; a function of the arguments alone."""
    rng = np.random.default_rng([seed, 1, identity, index])

    def clipped(spread: float, limit: float) -> float:
        return float(np.clip(rng.normal(0.0, spread), -limit, limit))

    closed = 1.0 if rng.uniform() < 0.03 else float(rng.beta(1.3, 5.0)) * 0.6
    key = float(rng.uniform(0.25, 1.0))
    return Shot(
        yaw=clipped(0.30, 0.62),
        pitch=clipped(0.15, 0.32),
        roll=clipped(0.05, 0.12),
        offset=np.clip(rng.normal(0.0, 1.0, 2), -2.5, 2.5),
        zoom=1.0 + clipped(0.03, 0.07),
        smile=float(np.clip(rng.normal(0.3, 0.5), -0.7, 1.2)),
        opening=float(rng.beta(1.0, 2.0)) if rng.uniform() < 0.45 else 0.0,
        brow_raise=clipped(1.3, 3.0),
        frown=max(0.0, clipped(0.6, 1.4)),
        closure=np.clip(closed + rng.normal(0, 0.04, 2), 0.0, 1.0),
        gaze=np.clip(rng.normal(0.0, 1.1, 2), -2.2, 2.2),
        light=_light(rng),
        light_colour=key * _tint(rng, 0.09),
        ambient=rng.uniform(0.4, 0.85) * (1.2 - 0.5 * key) * _tint(rng, 0.08),
        gloss=float(rng.uniform(0.0, 0.35)),
        exposure=float(np.exp(clipped(0.24, 0.5))),
        contrast=float(np.exp(clipped(0.16, 0.35))),
        saturation=0.0 if rng.uniform() < 0.07 else float(np.clip(rng.normal(0.95, 0.25), 0.35, 1.5)),
        blur=float(rng.beta(1.0, 3.0)) * 0.9,
        noise=float(rng.beta(1.0, 3.0)) * 9.0,
        jpeg=int(rng.integers(45, 85)) if rng.uniform() < 0.3 else 0,
        glasses=str(rng.choice(["round", "square", "dark"], p=[0.4, 0.45, 0.15])) if rng.uniform() < person.wears_glasses else "",
        hat=str(rng.choice(["cap", "beanie"])) if rng.uniform() < 0.06 else "",
        accent=rng.uniform(10, 210, 3),
        clothes=rng.uniform(15, 235, 3),
        style=person.other_style if rng.uniform() < 0.35 else person.style,
        hair_shift=clipped(4.0, 9.0),
        hair_growth=clipped(2.0, 4.0),
        hair_tone=np.exp(clipped(0.22, 0.45)) * _tint(rng, 0.10),
        shaven=bool(rng.uniform() < 0.35),
        lipstick=person.wears_lipstick * float(rng.uniform()),
        scene_seed=int(rng.integers(2**31)),
    )
