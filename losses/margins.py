"""Margins: what happens to the logit of a sample's own class. But for one, a margin never touches the other C-1 logits.

Every margin maps the target cosine (and the sample's quality) to the target logit:

    AdaFace  Kim, Jain, Liu, CVPR 2022, https://arxiv.org/abs/2204.00964, eqs. 10-12; the paper's (QGFace's) eqs. 6-10
    ArcFace  Deng et al., CVPR 2019, https://arxiv.org/abs/1801.07698, eq. 3
    CosFace  Wang et al., CVPR 2018, https://arxiv.org/abs/1801.09414, eq. 4
    Combined ArcFace's paper, eq. 4
    MagFace  Meng et al., CVPR 2021, https://arxiv.org/abs/2103.06627, eq. 3; learns from the feature's norm as well

One touches the negatives, and says so (`touches_negatives`):

    CurricularFace  Huang et al., CVPR 2020, https://arxiv.org/abs/2004.00288, its loss with T and N as given below

The gradient goes through acos and cos: d/dcos [s cos(acos(cos) + m)] = s sin(theta + m) / sin(theta). Where a clamp is
active the gradient is zero, as in the authors' code.

Shapes: N samples. Cosines and logits are float32 [N]; angles are radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


class Margin(Protocol):
    """What the sharded softmax needs to know of a margin. `PlainMargin` answers what most margins have in common."""

    @property
    def scale(self) -> float:
        """s: every logit is s times a cosine."""

    @property
    def cosine_limit(self) -> float:
        """Cosines, the target's and all others, are clamped to +-cosine_limit before anything else."""

    @property
    def touches_negatives(self) -> bool:
        """True for margins that also change the logits of other classes: then `rule_for_negatives` is asked."""

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        """The target logits, differentiable with respect to `cosine_N` (already clamped) and `norm_N` (raw norms).

        `quality_N` is the normalised feature norm, z-hat in [-1, 1] (eq. 1), without gradient.
        """

    def regulariser(self, norm_N: torch.Tensor) -> torch.Tensor | float:
        """What each sample's term has added to it, differentiable with respect to the raw norms."""

    def rule_for_negatives(self, cosine_N: torch.Tensor, share_N: torch.Tensor) -> HardNegatives:
        """The rule of this step, from the target cosines (not clamped, no gradient) and the weights of the samples.
        Called once a step, in the forward pass."""


class PlainMargin:
    """A margin that is a function of the target cosine and of quality, and of nothing else."""

    touches_negatives = False

    def regulariser(self, norm_N: torch.Tensor) -> torch.Tensor | float:
        return 0.0

    def rule_for_negatives(self, cosine_N: torch.Tensor, share_N: torch.Tensor) -> HardNegatives:
        raise NotImplementedError(f"{type(self).__name__} does not touch the logits of other classes")


def _shifted_angle(cosine_N: torch.Tensor, shift_N: torch.Tensor | float, angle_limit: float) -> torch.Tensor:
    return (cosine_N.acos() + shift_N).clamp(angle_limit, math.pi - angle_limit).cos()


@dataclass(frozen=True)
class AdaFace(PlainMargin):
    """s (cos(theta + g_angle) - g_add), g_angle = -m z-hat, g_add = m z-hat + m (QGFace eqs. 8-10)."""

    margin: float = 0.4
    scale: float = 64.0
    epsilon: float = 1e-3

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        angular_N = -self.margin * quality_N
        additive_N = self.margin * quality_N + self.margin
        return self.scale * (_shifted_angle(cosine_N, angular_N, self.epsilon) - additive_N)


@dataclass(frozen=True)
class Combined(PlainMargin):
    """s (cos(m1 theta + m2) - m3): SphereFace-style, ArcFace's and CosFace's margins in one (ArcFace, eq. 4; arcface_torch's
    `margin_list`). m1 theta + m2 is clamped to [epsilon, pi - epsilon]; where it is theta itself, no angle is computed."""

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    scale: float = 64.0
    epsilon: float = 1e-4

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        if (self.m1, self.m2) != (1.0, 0.0):
            cosine_N = (self.m1 * cosine_N.acos() + self.m2).clamp(self.epsilon, math.pi - self.epsilon).cos()
        return self.scale * (cosine_N - self.m3)


def ArcFace(margin: float = 0.5, scale: float = 64.0, epsilon: float = 1e-4) -> Combined:
    """s cos(theta + m); theta + m is clamped to [epsilon, pi - epsilon]."""
    return Combined(1.0, margin, 0.0, scale, epsilon)


def CosFace(margin: float = 0.4, scale: float = 64.0, epsilon: float = 1e-4) -> Combined:
    """s (cos(theta) - m)."""
    return Combined(1.0, 0.0, margin, scale, epsilon)


@dataclass(frozen=True)
class MagFace(PlainMargin):
    """s cos(theta + m(a)) for the target, and lambda_g g(a) added to the sample's term (eq. 3), a = ||h|| clipped to [l_a, u_a]:

        m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a),    g(a) = 1 / a + a / u_a^2

    The gradient reaches the norm through both. Defaults are the paper's. theta + m is clamped to [epsilon, pi - epsilon]
    (the authors continue linearly from pi - m on). Under the quality partition, features that are not classified are not
    regularised either.
    """

    l_a: float = 10.0
    u_a: float = 110.0
    l_m: float = 0.45
    u_m: float = 0.8
    lambda_g: float = 35.0
    scale: float = 64.0
    epsilon: float = 1e-4

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        slope = (self.u_m - self.l_m) / (self.u_a - self.l_a)
        margin_N = self.l_m + slope * (norm_N.clamp(self.l_a, self.u_a) - self.l_a)
        return self.scale * _shifted_angle(cosine_N, margin_N, self.epsilon)

    def regulariser(self, norm_N: torch.Tensor) -> torch.Tensor | float:
        norm_N = norm_N.clamp(self.l_a, self.u_a)
        return self.lambda_g * (1 / norm_N + norm_N / self.u_a**2)


@dataclass(frozen=True)
class HardNegatives:
    """CurricularFace's N(t, cos): negatives nearer than the target with its margin are hard, and their logit is
    s cos (t + cos) instead of s cos. The boundary and t carry no gradient; the cosine does, in both places.

    boundary_N: s T(cos theta_y) of all samples; t: scalar tensor.
    """

    boundary_N: torch.Tensor
    t: torch.Tensor
    scale: float

    def _is_hard(self, scaled_MC: torch.Tensor, chosen_M: torch.Tensor | None) -> torch.Tensor:
        boundary_M = self.boundary_N if chosen_M is None else self.boundary_N[chosen_M]
        return scaled_MC > boundary_M[:, None]

    def logits(self, scaled_MC: torch.Tensor, chosen_M: torch.Tensor | None) -> torch.Tensor:
        return torch.where(self._is_hard(scaled_MC, chosen_M), scaled_MC * (self.t + scaled_MC / self.scale), scaled_MC)

    def slope(self, scaled_MC: torch.Tensor, chosen_M: torch.Tensor | None) -> torch.Tensor:
        return torch.where(self._is_hard(scaled_MC, chosen_M), self.t + scaled_MC * (2 / self.scale), 1.0)


class CurricularFace(nn.Module):
    """s T(cos theta_y) with T = cos(theta + m) for the target, s N(t, cos theta_j) for the others: see `HardNegatives`.

    t is the moving average of the batch's mean target cosine r: t = rate r + (1 - rate) t, updated before use, initially 0.
    It is state (a buffer) and equal on all ranks. Here r is the mean over the samples that are classified (weight above
    zero); a step without any leaves t alone. It touches the logits of other classes, so it takes the general and slower way
    through `losses.log_sum_exp`: two passes more over every chunk, and chunks are recomputed.
    """

    touches_negatives = True
    t: torch.Tensor

    def __init__(self, margin: float = 0.5, scale: float = 64.0, rate: float = 0.01, epsilon: float = 1e-4):
        super().__init__()
        self.margin, self.scale, self.rate, self.epsilon = margin, scale, rate, epsilon
        self.cosine_limit = 1 - epsilon
        self.register_buffer("t", torch.zeros(()))

    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        return self.scale * _shifted_angle(cosine_N, self.margin, self.epsilon)

    def regulariser(self, norm_N: torch.Tensor) -> torch.Tensor | float:
        return 0.0

    @torch.no_grad()
    def rule_for_negatives(self, cosine_N: torch.Tensor, share_N: torch.Tensor) -> HardNegatives:
        counted_N = (share_N > 0).to(cosine_N.dtype)
        mean = (cosine_N * counted_N).sum() / counted_N.sum().clamp_min(1)
        self.t.lerp_(mean.to(self.t.dtype), self.rate * counted_N.amax().to(self.t.dtype))
        boundary_N = self.target_logit(cosine_N.clamp(-self.cosine_limit, self.cosine_limit), cosine_N, cosine_N)
        return HardNegatives(boundary_N, self.t.clone(), self.scale)
