"""Margins: what happens to the logit of a sample's own class. A margin never touches the other C-1 logits.

Every margin maps the target cosine (and the sample's quality) to the target logit:

    AdaFace  Kim, Jain, Liu, CVPR 2022, https://arxiv.org/abs/2204.00964, eqs. 10-12; the paper's (QGFace's) eqs. 6-10
    ArcFace  Deng et al., CVPR 2019, https://arxiv.org/abs/1801.07698, eq. 3
    CosFace  Wang et al., CVPR 2018, https://arxiv.org/abs/1801.09414, eq. 4

The gradient goes through acos and cos: d/dcos [s cos(acos(cos) + m)] = s sin(theta + m) / sin(theta). Where a clamp is
active the gradient is zero, as in the authors' code.

Shapes: N samples. Cosines and logits are float32 [N]; angles are radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch


class Margin(Protocol):
    """What the sharded softmax needs to know of a margin."""

    @property
    def scale(self) -> float:
        """s: every logit is s times a cosine."""

    @property
    def cosine_limit(self) -> float:
        """Cosines, the target's and all others, are clamped to +-cosine_limit before anything else."""

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor) -> torch.Tensor:
        """The target logits, differentiable with respect to `cosine_N` (already clamped).

        `quality_N` is the normalised feature norm, z-hat in [-1, 1] (eq. 1), without gradient.
        """


def _shifted_angle(cosine_N: torch.Tensor, shift_N: torch.Tensor | float, angle_limit: float) -> torch.Tensor:
    return (cosine_N.acos() + shift_N).clamp(angle_limit, math.pi - angle_limit).cos()


@dataclass(frozen=True)
class AdaFace:
    """s (cos(theta + g_angle) - g_add), g_angle = -m z-hat, g_add = m z-hat + m (QGFace eqs. 8-10)."""

    margin: float = 0.4
    scale: float = 64.0
    epsilon: float = 1e-3

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor) -> torch.Tensor:
        angular_N = -self.margin * quality_N
        additive_N = self.margin * quality_N + self.margin
        return self.scale * (_shifted_angle(cosine_N, angular_N, self.epsilon) - additive_N)


@dataclass(frozen=True)
class ArcFace:
    """s cos(theta + m); theta + m is clamped to [epsilon, pi - epsilon]."""

    margin: float = 0.5
    scale: float = 64.0
    epsilon: float = 1e-4

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor) -> torch.Tensor:
        return self.scale * _shifted_angle(cosine_N, self.margin, self.epsilon)


@dataclass(frozen=True)
class CosFace:
    """s (cos(theta) - m)."""

    margin: float = 0.4
    scale: float = 64.0
    epsilon: float = 1e-4

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor) -> torch.Tensor:
        return self.scale * (cosine_N - self.margin)


@dataclass(frozen=True)
class Combined:
    """s (cos(m1 theta + m2) - m3): SphereFace-style, ArcFace's and CosFace's margins in one (ArcFace, eq. 4; arcface_torch's
    `margin_list`). m1 theta + m2 is clamped to [epsilon, pi - epsilon]."""

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    scale: float = 64.0
    epsilon: float = 1e-4

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor) -> torch.Tensor:
        angle_N = (self.m1 * cosine_N.acos() + self.m2).clamp(self.epsilon, math.pi - self.epsilon)
        return self.scale * (angle_N.cos() - self.m3)
