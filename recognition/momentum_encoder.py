"""A copy of the encoder whose weights follow the trained ones slowly:

    theta_m <- m theta_m + (1 - m) theta

It has two uses. One is the average of the weights (EMA) for verification and export, `ema`: BatchNorm's running statistics are
averaged like the weights that they belong to. (`torch.optim.swa_utils.AveragedModel` would need the host to know whether the
step was skipped.)

The other is the momentum queue (MoCo; He et al., CVPR 2020, https://arxiv.org/abs/1911.05722, section 3.2): the queue "momentum"
in table II of QGFace, which the proxy-updated queue makes unnecessary. Its features fill the queue instead of the encoder's own,
and are the positive keys: as in MoCo, each query is compared with keys of one encoder only. Either it takes over the augmented
view, so that the encoder learns from originals alone (section III-C), or both encoders see both views; then all else is as with
the other queues. As in MoCo, it normalises with the batch's own BatchNorm statistics, so its running statistics are never read,
except those of frozen layers.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from recognition.sharding import local


class MomentumEncoder(nn.Module):
    """A copy of `encoder` in its present state, without gradients. It is the same on all ranks, as the encoder is.

    with_statistics: `follow` updates BatchNorm's running statistics too, else only forward passes do. takes_augmented: it alone
    sees the augmented view, and the encoder the original. seen, left: the views of this encoder, and those that are left to the
    other one.
    """

    def __init__(self, encoder: nn.Module, momentum: float, with_statistics: bool = False, takes_augmented: bool = False):
        super().__init__()
        self.momentum, self.with_statistics = momentum, with_statistics
        self.seen = slice(1) if takes_augmented else slice(None)
        self.left = slice(1, None) if takes_augmented else slice(None)
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

        encoder: the bare module, not DDP's wrapper; its running statistics must be finite.
        """
        rate = (1 - self.momentum) * finite.float()
        followers, leaders = self._tensors(self.copy), self._tensors(encoder)
        torch._foreach_lerp_(followers, leaders, [rate] * len(followers))

    def _tensors(self, encoder: nn.Module) -> list[torch.Tensor]:
        buffers = encoder.buffers() if self.with_statistics else ()
        return [*map(local, encoder.parameters()), *(buffer for buffer in buffers if buffer.is_floating_point())]  # no counters
