"""The slowly following encoder of a momentum queue (MoCo; He et al., CVPR 2020, https://arxiv.org/abs/1911.05722, section
3.2): the queue "momentum" in table II of QGFace, which the proxy-updated queue makes unnecessary.

    theta_m <- m theta_m + (1 - m) theta

Its features of both views fill the queue instead of the encoder's own, and its feature of the original image is the positive
key: as in MoCo, each query is compared with keys of one encoder only. All else is as with the other queues. As in MoCo, it
normalises with the batch's own BatchNorm statistics, so its running statistics are never read, except those of frozen layers.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class MomentumEncoder(nn.Module):
    """A copy of `encoder` in its present state, without gradients. It is the same on all ranks, as the encoder is."""

    def __init__(self, encoder: nn.Module, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.copy = copy.deepcopy(encoder).requires_grad_(False).train()

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, H, W] in [-1, 1] -> raw features [n, D]."""
        return self.copy(inputs)

    def start_from(self, encoder: nn.Module) -> None:
        """Copy all weights and statistics of an encoder of the same architecture."""
        self.copy.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def follow(self, encoder: nn.Module, finite: torch.Tensor) -> None:
        """Update after a step of the optimiser; does nothing if `finite` (bool scalar on the device) is false.

        encoder: the bare module, not DDP's wrapper.
        """
        followers: list[torch.Tensor] = list(self.copy.parameters())
        rate = (1 - self.momentum) * finite.float()
        torch._foreach_lerp_(followers, list(encoder.parameters()), [rate] * len(followers))
