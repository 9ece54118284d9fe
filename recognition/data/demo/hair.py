"""Outlines of hair: a mass behind the head, and a front part between crown and hairline."""

from __future__ import annotations

import numpy as np

from recognition.data.demo.canvas import curve, mirrored, symmetric
from recognition.data.demo.person import Person
from recognition.data.demo.shot import Shot


def _ragged(outline_N2: np.ndarray, person: Person, amount: float) -> np.ndarray:
    """The outline with irregular locks, the same in every picture of a person."""
    rng = np.random.default_rng(person.texture_seed + 2)
    return outline_N2 + amount * np.clip(rng.standard_normal(outline_N2.shape), -2, 2)


def rear_outline(person: Person, shot: Shot) -> np.ndarray | None:
    """The hair behind head and neck, or None."""
    if shot.style not in ("bob", "long", "curly"):
        return None
    length = {"bob": 92.0, "long": 128.0, "curly": 66.0}[shot.style] + 2.5 * shot.hair_growth
    wide = person.cheek + {"bob": 5.0, "long": 3.0, "curly": 8.0}[shot.style] * person.volume
    right = [
        (56 + wide * 0.62, -12.0 * person.volume),
        (56 + wide * 0.94, 8.0),
        (56 + wide, 36.0),
        (56 + wide + 1.0, (36 + length) / 2),
        (56 + wide - 3.0, length),
    ]
    outline = curve([(56.0, -15.0 * person.volume), *right, (56.0, length), *mirrored(right)], closed=True, steps=10)
    return _ragged(outline, person, 2.2 if shot.style == "curly" else 0.8)


def _hairline(person: Person, shot: Shot) -> np.ndarray:
    """The lower edge of the front hair, from right to left."""
    line, peak = person.hairline, person.peak
    part = 56 + person.parting + shot.hair_shift
    edge = person.temple
    style = shot.style
    if style == "fringe":
        low = min(person.brow_y - 3.5, line + 14 + shot.hair_growth)
        half, middle = [(56 + edge + 1, 58), (56 + edge - 5, 40), (56 + 20, low + 1)], [(part, low - 2)]
    elif style in ("bob", "long"):
        end = 86.0 if style == "bob" else 118.0
        inner = edge - 5 - 1.5 * peak * 0.3
        half = [(56 + edge + 4, end), (56 + edge - 1, 66), (56 + inner, 44), (56 + inner - 9, 26)]
        middle = [(part, line - 6)]
    elif style == "receding":
        half = [(56 + edge + 1, 50), (56 + edge - 3, 32), (56 + 23, line - 6), (56 + 9, line + 2 + peak)]
        middle = []
    elif style == "side":
        half = [(56 + edge + 1, 52), (56 + edge - 4, 33)]
        drop = (7.0 + 0.8 * shot.hair_growth) * (0.4 if person.parting > 0 else -0.4)
        middle = [(56 + 22, line + 3 - drop), (part, line - 2), (56 - 22, line + 3 + drop)]
    else:
        half, middle = [(56 + edge + 1, 50), (56 + edge - 4, 31), (56 + 21, line + 1.5)], [(56, line + peak)]
    raised = symmetric(half, middle) - np.array([0.0, 0.25 * shot.brow_raise])
    return curve(raised, steps=8)


def front_outline(person: Person, shot: Shot) -> np.ndarray | None:
    """The hair between crown and hairline, or None."""
    if shot.style == "bald":
        return None
    thick = {"crop": 1.5, "receding": 1.8, "side": 3.5, "fringe": 3.5, "bob": 4.5, "long": 3.0, "curly": 8.0}
    grown = thick[shot.style] * person.volume + 0.5 * shot.hair_growth
    edge = person.temple + grown
    line = _hairline(person, shot)
    start, end = line[0], line[-1]
    left = [(56 - edge, 30), (56 - edge * 0.93, 10), (56 - edge * 0.6, -6 - grown)]
    crown = curve([tuple(end), *symmetric(left, [(56, -9 - 1.4 * grown)]), tuple(start)], steps=8)
    locks = {"curly": 1.6, "fringe": 0.9}.get(shot.style, 0.45 + 0.5 * person.curl)
    return np.concatenate([_ragged(line, person, locks), _ragged(crown, person, locks * 0.8)])
