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

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        if (self.m1, self.m2) != (1.0, 0.0):  # otherwise the angle is theta itself
            cosine_N = self.cosine_of(self.m1 * cosine_N.acos() + self.m2)
        return self.scale * (cosine_N - self.m3)


@register("combined")
def _from_config(config: Any) -> Margin:
    m1, m2, m3 = config.margin_list
    return Combined(m1, m2, m3, config.scale)
