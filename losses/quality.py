"""The quality of a face, from the norm of its feature, and which loss it enters (QGFace, Song & Wang, section III-B, eqs. 1-5).

Shapes: N gathered features (all views), V views, G images per step. Norms and qualities are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


class QualityStatistics(nn.Module):
    """Moving mean and standard deviation of the feature norms, and the normalised quality (eq. 1).

        z = ||h|| clipped to [1e-3, 100],   z-hat = clip((z - mu) / ((sigma + epsilon) / c), -1, 1)

    concentration: c. rate: of the exponential moving averages mu and sigma, which are buffers. epsilon is 1e-3. Initial values,
    rate and clips are those of AdaFace's release.
    Departure: the statistics follow the GATHERED norms, so they are equal on all ranks; AdaFace's follow rank 0 alone.

    >>> import torch
    >>> quality = QualityStatistics(concentration=0.333, rate=0.01, initial_mean=20.0, initial_std=4.0)
    >>> quality.normalise(torch.tensor([8.0, 16.0, 20.0, 24.0]))
    tensor([-0.9988, -0.3329,  0.0000,  0.3329])
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
        """Move the statistics towards this step's norms (unbiased standard deviation). Call it before `normalise`."""
        clipped_N = norm_N.clamp(1e-3, 100.0)
        self.mean.lerp_(clipped_N.mean(), self.rate)
        if clipped_N.numel() > 1:  # one sample has no standard deviation
            self.std.lerp_(clipped_N.std(), self.rate)

    @torch.no_grad()
    def normalise(self, norm_N: torch.Tensor) -> torch.Tensor:
        """z-hat in [-1, 1] of raw norms: the same shape, without gradient."""
        centred_N = norm_N.clamp(1e-3, 100.0) - self.mean
        return (centred_N / ((self.std + self.epsilon) / self.concentration)).clamp(-1.0, 1.0)

    def norm_of(self, quality: float) -> float:
        """The norm at which z-hat equals `quality`: the inverse of eq. 1, without its clips."""
        width = (float(self.std) + self.epsilon) / self.concentration
        return float(self.mean) + width * quality


def graded(quality_VN: torch.Tensor, grade_N: torch.Tensor | None) -> torch.Tensor:
    """The qualities by which the partition divides: z-hat of the norms, or, if there are grades, those instead.

    grade_N: from 0, the worst, to 1, in place of u, of the augmented views, which come first; originals then have the best.
    """
    if grade_N is None:
        return quality_VN
    return torch.cat([(2 * grade_N - 1)[None], torch.ones_like(quality_VN[1:])])


@dataclass(frozen=True)
class Partition:
    """Which features are classified and which pairs are contrasted (eqs. 2-5), by u = (z-hat + 1) / 2.

    A feature is classified iff u > threshold; a pair (q, k) is contrasted iff min(u_q, u_k) <= threshold, or if it has no label.
    threshold: b, or None for no partition: everything enters both losses (table III, "No").

    >>> import torch
    >>> partition = Partition(threshold=0.2)
    >>> partition.high_quality(torch.tensor([-1.0, -0.5, 0.9]))
    tensor([False,  True,  True])
    >>> partition.low_quality_pairs(torch.tensor([[-1.0, 0.1], [0.3, 0.2]]))
    tensor([ True, False])
    """

    threshold: float | None
    contrasts_unlabelled: ClassVar[bool] = True

    def high_quality(self, quality_N: torch.Tensor) -> torch.Tensor:
        """Boolean mask [N] of the features that are classified, from their z-hat."""
        if self.threshold is None:
            return torch.ones_like(quality_N, dtype=torch.bool)
        return (quality_N + 1) / 2 > self.threshold

    def low_quality_pairs(self, quality_VG: torch.Tensor) -> torch.Tensor:
        """Boolean mask [G] of the pairs that are contrasted, from the z-hat of their views."""
        if self.threshold is None:
            return torch.ones_like(quality_VG[0], dtype=torch.bool)
        return (quality_VG.amin(dim=0) + 1) / 2 <= self.threshold


@dataclass(frozen=True)
class ViewPartition:
    """A control for two views: the partition if the norm separated augmented from original views without error.

    Originals are classified, and every augmented view is contrasted with its original. Compared with `Partition`, it shows what
    a better measure of quality would gain.
    """

    threshold: ClassVar[None] = None
    contrasts_unlabelled: ClassVar[bool] = True

    def high_quality(self, quality_N: torch.Tensor) -> torch.Tensor:
        """Boolean mask [N]: the second half of the features, which are the originals'."""
        return torch.arange(len(quality_N), device=quality_N.device) >= len(quality_N) // 2

    def low_quality_pairs(self, quality_VG: torch.Tensor) -> torch.Tensor:
        """Boolean mask [G]: every pair."""
        return torch.ones_like(quality_VG[0], dtype=torch.bool)


@dataclass(frozen=True)
class ClassifyAll:
    """Every feature is classified and no pair is contrasted: the warm-up of the partition."""

    threshold: ClassVar[None] = None
    contrasts_unlabelled: ClassVar[bool] = False

    def high_quality(self, quality_N: torch.Tensor) -> torch.Tensor:
        """Boolean mask [N]: every feature."""
        return torch.ones_like(quality_N, dtype=torch.bool)

    def low_quality_pairs(self, quality_VG: torch.Tensor) -> torch.Tensor:
        """Boolean mask [G]: no pair."""
        return torch.zeros_like(quality_VG[0], dtype=torch.bool)


AnyPartition = Partition | ViewPartition | ClassifyAll
