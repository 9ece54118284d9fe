"""Whether a step's numbers were finite on every rank, decided on the device.

The host queues a step's work without waiting for it, so it cannot branch on the result. The decision is a tensor: if it is
false, the optimiser changes nothing, and other state is put back (recognition/snapshot.py). The host reads the decision one
step later and then takes back what it counted itself.

Shapes: V views, G gathered images, W ranks, D embedding.
"""

from __future__ import annotations

import torch

from utils import dist
from utils.transfer import Later


class FiniteCheck:
    """The check of one step.

    features_W, gradients_W: whether those of each rank are finite; bool on the device, equal on all ranks.
    passed: whether all are; bool scalar on the device.
    """

    def __init__(self, features_W: torch.Tensor, gradients_W: torch.Tensor):
        both_2W = torch.stack([features_W, gradients_W])
        self.passed = both_2W.all()
        self._both_2W = Later(both_2W)

    def skip_reason(self) -> str:
        """What is not finite, and on which ranks; "" if the check passed. Waits until the device has done the step."""
        for what, finite_W in zip(("features", "gradients"), self._both_2W.read().tolist(), strict=True):
            ranks = [str(rank) for rank, finite in enumerate(finite_W) if not finite]
            if ranks:
                return f"{what} of rank {', '.join(ranks)} are not finite"
        return ""


def finite_by_rank(features_VGD: torch.Tensor) -> torch.Tensor:
    """Whether all features of each rank are finite: bool [W], on the device."""
    _, world = dist.rank_and_world()
    return features_VGD.detach().unflatten(1, (world, -1)).isfinite().transpose(0, 1).flatten(1).all(dim=1)
