"""CurricularFace (Huang et al., CVPR 2020, https://arxiv.org/abs/2004.00288, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from losses.margins.margin import Margin, register


@dataclass(frozen=True)
class HardNegatives:
    """N(t, cos): a negative that is nearer than the target with its margin is hard; its logit is s cos (t + cos), not s cos.

    boundary_N: s T(cos theta_y) per sample. t: scalar tensor. Neither has a gradient; the cosine has, in both places.
    """

    boundary_N: torch.Tensor
    t: torch.Tensor
    scale: float

    def _is_hard(self, scaled_NC: torch.Tensor) -> torch.Tensor:
        return scaled_NC > self.boundary_N[:, None]

    def logits(self, scaled_NC: torch.Tensor) -> torch.Tensor:
        return torch.where(self._is_hard(scaled_NC), scaled_NC * (self.t + scaled_NC / self.scale), scaled_NC)

    def slope(self, scaled_NC: torch.Tensor) -> torch.Tensor:
        return torch.where(self._is_hard(scaled_NC), self.t + scaled_NC * (2 / self.scale), 1.0)


class CurricularFace(nn.Module, Margin):
    """Hard negatives weigh more as training proceeds.

        target logit = s T(cos theta_y),   T = cos(theta + m);   other logits = s N(t, cos theta_j), see `HardNegatives`
        t = rate r + (1 - rate) t,   r the batch's mean target cosine; updated before use, initially 0

    t is state (a buffer), equal on all ranks. Departures: r is the mean over the samples that are classified (weight above zero),
    and a step without any leaves t as it is; theta + m is clamped, whereas the authors continue linearly from pi - m on.
    Changing the other logits costs two more passes over every chunk of classes, and no chunk is kept for the backward pass.

    >>> import torch
    >>> margin, cosine, share = CurricularFace(0.5, 64.0), torch.tensor([0.5, 0.7]), torch.tensor([0.5, 0.5])
    >>> negatives = margin.rule_for_negatives(cosine, share)
    >>> negatives.logits(64 * torch.tensor([[0.1, 0.3], [0.1, 0.3]]))  # hard: all but the second 0.1
    tensor([[0.6784, 5.8752],
            [6.4000, 5.8752]])
    """

    touches_negatives = True
    t: torch.Tensor

    def __init__(self, margin: float, scale: float, rate: float = 0.01, epsilon: float = 1e-4):
        super().__init__()
        self.margin, self.scale, self.rate, self.epsilon = margin, scale, rate, epsilon
        self.register_buffer("t", torch.zeros(()))

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        return self.scale * self.cosine_of(cosine_N.acos() + self.margin)

    @torch.no_grad()
    def rule_for_negatives(self, cosine_N: torch.Tensor, share_N: torch.Tensor) -> HardNegatives:
        counted_N = (share_N > 0).to(cosine_N.dtype)
        mean = (cosine_N * counted_N).sum() / counted_N.sum().clamp_min(1)
        self.t.lerp_(mean.to(self.t.dtype), self.rate * counted_N.any().to(self.t.dtype))
        boundary_N = self.target_logit(cosine_N.clamp(-self.cosine_limit, self.cosine_limit), cosine_N, cosine_N)
        return HardNegatives(boundary_N, self.t.clone(), self.scale)


@register("curricularface", m=0.5)
def _from_config(config: Any) -> Margin:
    return CurricularFace(config.margin_m, config.scale)
