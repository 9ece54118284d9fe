"""Combined margin (Deng et al., ArcFace, CVPR 2019, https://arxiv.org/abs/1801.07698, eq. 4; arcface_torch's `margin_list`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from losses.margins.margin import Margin, register


@dataclass(frozen=True)
class Combined(Margin):
    """SphereFace-style (m1), ArcFace's (m2) and CosFace's (m3) margin in one.

        target logit = s (cos(m1 theta + m2) - m3)

    Departure: m1 theta + m2 is clamped to [epsilon, pi - epsilon]; arcface_torch lets the logit rise again beyond pi.
    straight_through: the same logit, but with the gradient that arcface_torch gives it for m1 = 1 and m3 = 0 (it applies the
    margin under no_grad): d logit / d cos(theta) = s. The angle is not clamped then.

    >>> import torch
    >>> cosine = torch.tensor([0.9, 0.5, -0.2])
    >>> Combined(1.0, 0.3, 0.2, scale=64.0).target_logit(cosine, cosine, cosine)
    tensor([ 33.9833,   1.3914, -43.5595])
    """

    m1: float
    m2: float
    m3: float
    scale: float
    epsilon: float = 1e-4
    straight_through: bool = False

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        if self.straight_through:
            with torch.no_grad():
                shift_N = (self.m1 * cosine_N.acos() + self.m2).cos() - self.m3 - cosine_N
            return self.scale * (cosine_N + shift_N)
        if (self.m1, self.m2) != (1.0, 0.0):  # otherwise the angle is theta itself
            cosine_N = self.cosine_of(self.m1 * cosine_N.acos() + self.m2)
        return self.scale * (cosine_N - self.m3)


def combined_margin(config: Any, m1: float, m2: float, m3: float) -> Combined:
    """The margin with the configuration's scale and gradient. "straight_through" clamps cosines to +-1, as arcface_torch does."""
    if config.margin_gradient == "straight_through":
        return Combined(m1, m2, m3, config.scale, epsilon=0.0, straight_through=True)
    return Combined(m1, m2, m3, config.scale)


@register("combined")
def _from_config(config: Any) -> Margin:
    return combined_margin(config, *(config.margin_list or (1.0, 0.5, 0.0)))
