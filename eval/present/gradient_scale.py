"""AdaFace's gradient scaling term (QGFace eqs. 11-12 and figure 2; Kim, Jain, Liu, CVPR 2022, eq. 12): how hard a sample pulls.

    g = (P_y - 1) df/dcos(theta),   f = s (cos(theta + g_angle) - g_add),   df/dcos(theta) = s sin(theta + g_angle) / sin(theta)

with g_angle = -m z-hat and g_add = m z-hat + m. The gradient of the loss -log P_y with respect to the target cosine is g, so |g|
is the sample's weight. P_y depends on the other classes as well; here all C - 1 of them are orthogonal to the feature, which is
about what a random one is in many dimensions: P_y = exp(f) / (exp(f) + C - 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_EPSILON = 1e-3  # cosines are clamped to +-(1 - epsilon), angles with margin to [epsilon, pi - epsilon]: no gradient beyond


@dataclass(frozen=True)
class AdaFaceScale:
    """margin: m. scale: s. classes: C. mean, std, concentration: mu, sigma and c of eq. 1."""

    margin: float
    scale: float
    classes: int
    mean: float
    std: float
    concentration: float

    def quality(self, norm: np.ndarray) -> np.ndarray:
        """z-hat in [-1, 1] of norms (eq. 1)."""
        return np.clip((np.clip(norm, 1e-3, 100.0) - self.mean) * self.concentration / (self.std + _EPSILON), -1.0, 1.0)

    def norm_of(self, quality: float) -> float:
        """The norm at which z-hat is `quality`."""
        return self.mean + quality * (self.std + _EPSILON) / self.concentration

    def grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Norms [200], z-hat from -1.25 to 1.25; angles [240] to the own class, 0 to 100 degrees; |g| [240, 200]."""
        norm = np.linspace(max(0.0, self.norm_of(-1.25)), self.norm_of(1.25), 200)
        degrees = np.linspace(0.0, 100.0, 240)
        angle = np.radians(degrees).clip(1e-6)[:, None]
        return norm, degrees, np.abs(self.term(angle, self.quality(norm[None])))

    def term(self, angle: np.ndarray, quality: np.ndarray) -> np.ndarray:
        """g, float64, 0 or below: of the angle to the own class (radians, 0 < angle < pi) and z-hat, broadcast."""
        moved = angle - self.margin * quality
        inside = np.clip(moved, _EPSILON, math.pi - _EPSILON)
        logit = self.scale * (np.cos(inside) - self.margin * quality - self.margin)
        others = math.log(max(self.classes - 1, 1e-300))
        less_than_sure = -1 / (1 + np.exp(np.clip(logit - others, -700, 700)))
        slope = self.scale * np.sin(moved) / np.sin(angle)
        flows = (moved == inside) & (np.abs(np.cos(angle)) <= 1 - _EPSILON)
        return np.where(flows, less_than_sure * slope, 0.0)
