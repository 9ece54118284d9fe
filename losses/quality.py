"""Quality of a face from the norm of its feature, and who learns from what (QGFace, section III-B, eqs. 1-5).

Shapes: N gathered features (all views), G images a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


class QualityStatistics(nn.Module):
    """Moving mean and standard deviation of the feature norms, and the normalised quality (eq. 1).

    z = ||h|| clipped to [1e-3, 100]; z-hat = clip((z - mu) / ((sigma + epsilon) / c), -1, 1). The statistics follow
    the GATHERED norms, so they are equal on all ranks without further communication.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, concentration: float, rate: float, initial_mean: float, initial_std: float):
        super().__init__()
        self.concentration, self.rate, self.epsilon = concentration, rate, 1e-3
        self.register_buffer("mean", torch.tensor(float(initial_mean)))
        self.register_buffer("std", torch.tensor(float(initial_std)))

    @torch.no_grad()
    def update(self, norm_N: torch.Tensor) -> None:
        """Moves the statistics towards this step's norms (unbiased standard deviation). To be called before use."""
        clipped_N = norm_N.clamp(1e-3, 100.0)
        self.mean.lerp_(clipped_N.mean(), self.rate)
        if clipped_N.numel() > 1:  # one sample has no standard deviation
            self.std.lerp_(clipped_N.std(), self.rate)

    @torch.no_grad()
    def normalise(self, norm_N: torch.Tensor) -> torch.Tensor:
        """z-hat in [-1, 1], float32 [N], without gradient."""
        centred_N = norm_N.clamp(1e-3, 100.0) - self.mean
        return (centred_N / ((self.std + self.epsilon) / self.concentration)).clamp(-1.0, 1.0)

    def norm_of(self, quality: float) -> float:
        """The norm at which z-hat equals `quality`: the inverse of eq. 1, without its clips."""
        width = (float(self.std) + self.epsilon) / self.concentration
        return float(self.mean) + width * quality


@dataclass(frozen=True)
class Partition:
    """Which features are classified and which pairs are contrasted (eqs. 2-5).

    On u = (z-hat + 1) / 2: a feature is classified iff u > threshold; a pair (q, k) is contrasted iff
    min(u_q, u_k) <= threshold. `threshold=None` switches the partition off: everything enters both losses (table III, "No").
    """

    threshold: float | None

    def high_quality(self, quality_N: torch.Tensor) -> torch.Tensor:
        """Boolean mask [N] of the features that are classified; `quality_N` is z-hat."""
        if self.threshold is None:
            return torch.ones_like(quality_N, dtype=torch.bool)
        return (quality_N + 1) / 2 > self.threshold

    def low_quality_pairs(self, quality_VG: torch.Tensor) -> torch.Tensor:
        """Boolean mask [G] of the pairs that are contrasted; rows of `quality_VG` are the views."""
        if self.threshold is None:
            return torch.ones_like(quality_VG[0], dtype=torch.bool)
        return (quality_VG.amin(dim=0) + 1) / 2 <= self.threshold


@dataclass(frozen=True)
class ViewPartition:
    """The partition as it would be if the norm told augmented from original views without fail: originals are classified, the
    augmented learn from their twins alone. A control for two views: it says what a better measure of quality would gain."""

    threshold: ClassVar[None] = None

    def high_quality(self, quality_N: torch.Tensor) -> torch.Tensor:
        """Boolean mask [N]: the second half of the features, which are the originals'."""
        return torch.arange(len(quality_N), device=quality_N.device) >= len(quality_N) // 2

    def low_quality_pairs(self, quality_VG: torch.Tensor) -> torch.Tensor:
        """Boolean mask [G]: every pair has an augmented view."""
        return torch.ones_like(quality_VG[0], dtype=torch.bool)


@dataclass(frozen=True)
class ClassifyAll:
    """Every feature is classified and no pair is contrasted, as in the warm-up of the partition."""

    threshold: ClassVar[None] = None

    def high_quality(self, quality_N: torch.Tensor) -> torch.Tensor:
        """Boolean mask [N]: every feature."""
        return torch.ones_like(quality_N, dtype=torch.bool)

    def low_quality_pairs(self, quality_VG: torch.Tensor) -> torch.Tensor:
        """Boolean mask [G]: no pair."""
        return torch.zeros_like(quality_VG[0], dtype=torch.bool)


AnyPartition = Partition | ViewPartition | ClassifyAll
