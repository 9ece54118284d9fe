"""AdaFace (Kim, Jain, Liu, CVPR 2022, https://arxiv.org/abs/2204.00964, eqs. 10-12; QGFace eqs. 6-10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from losses.margins.margin import Margin, register


@dataclass(frozen=True)
class AdaFace(Margin):
    """The margin grows with the feature's quality z-hat: sharp faces must be far from the boundary, blurred ones need not.

        target logit = s (cos(theta + g_angle) - g_add),   g_angle = -m z-hat,   g_add = m z-hat + m

    The clamps are those of AdaFace's release (epsilon = 1e-3).

    >>> import torch
    >>> cosine, norm = torch.tensor([0.5, 0.5]), torch.tensor([30.0, 10.0])
    >>> AdaFace(margin=0.4, scale=64.0).target_logit(cosine, torch.tensor([1.0, -1.0]), norm)  # sharp, blurred
    tensor([-0.1423,  7.8902])
    """

    margin: float
    scale: float
    epsilon: float = 1e-3

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        angular_N = -self.margin * quality_N
        additive_N = self.margin * quality_N + self.margin
        return self.scale * (self.cosine_of(cosine_N.acos() + angular_N) - additive_N)


@register("adaface", m=0.4)
def _from_config(config: Any) -> Margin:
    return AdaFace(config.margin_m, config.scale)
