"""MagFace (Meng et al., CVPR 2021, https://arxiv.org/abs/2103.06627, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from losses.margins.margin import Margin, register


@dataclass(frozen=True)
class MagFace(Margin):
    """The margin grows with the feature's norm, and the loss trains the norm to measure quality.

        target logit = s cos(theta + m(a)),   a = ||h|| clipped to [l_a, u_a]
        m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)
        added to the sample's loss: lambda_g g(a),   g(a) = 1 / a + a / u_a^2

    The gradient reaches the norm through both. Norms are those of raw features.
    Departures: theta + m is clamped, whereas the authors continue linearly from pi - m on; with the quality partition, features
    that are not classified are not regularised either.

    >>> import torch
    >>> margin = MagFace(10.0, 110.0, 0.45, 0.8, 35.0, scale=64.0)  # the paper's
    >>> norm = torch.tensor([10.0, 110.0])
    >>> margin.target_logit(torch.tensor([0.5, 0.5]), norm, norm), margin.regulariser(norm)
    (tensor([  4.7061, -17.4653]), tensor([3.5289, 0.6364]))
    """

    l_a: float
    u_a: float
    l_m: float
    u_m: float
    lambda_g: float
    scale: float
    epsilon: float = 1e-4

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        slope = (self.u_m - self.l_m) / (self.u_a - self.l_a)
        margin_N = self.l_m + slope * (norm_N.clamp(self.l_a, self.u_a) - self.l_a)
        return self.scale * self.cosine_of(cosine_N.acos() + margin_N)

    def regulariser(self, norm_N: torch.Tensor) -> torch.Tensor:
        norm_N = norm_N.clamp(self.l_a, self.u_a)
        return self.lambda_g * (1 / norm_N + norm_N / self.u_a**2)


@register("magface")
def _from_config(config: Any) -> Margin:
    l_a, u_a, l_m, u_m, lambda_g = config.magface
    return MagFace(l_a, u_a, l_m, u_m, lambda_g, config.scale)
