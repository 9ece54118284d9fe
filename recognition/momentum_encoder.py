"""The slowly following encoder of a momentum queue (MoCo; He et al., CVPR 2020, https://arxiv.org/abs/1911.05722, section
3.2): the queue "momentum" of the paper's table II, which the proxy-updated queue makes unnecessary.

    theta_m <- m theta_m + (1 - m) theta

Its features of both views fill the queue in place of the encoder's own, and its feature of the original image is the positive
key: keys of one encoder only are compared with each query, as in MoCo. Everything else stays as with the other queues. Like
MoCo's it runs with the batch's own BatchNorm statistics, so that its running statistics are never read.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class MomentumEncoder(nn.Module):
    """A copy of `encoder` as it is now, without gradients. The same on all ranks, because the encoder is."""

    def __init__(self, encoder: nn.Module, momentum: float = 0.999):
        super().__init__()
        self.momentum = momentum
        self.copy = copy.deepcopy(encoder).requires_grad_(False).train()

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, H, W] in [-1, 1] -> raw features [n, D]."""
        return self.copy(inputs)

    def start_from(self, encoder: nn.Module) -> None:
        """Takes over all weights and statistics of an encoder of the same kind."""
        self.copy.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def follow(self, encoder: nn.Module, good: torch.Tensor) -> None:
        """After a step of the optimiser; does nothing where `good` (bool scalar on the device) is false. `encoder`: the bare
        module, not DDP's wrapper."""
        followers: list[torch.Tensor] = list(self.copy.parameters())
        rate = (1 - self.momentum) * good.float()
        torch._foreach_lerp_(followers, list(encoder.parameters()), [rate] * len(followers))
