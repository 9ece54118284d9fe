"""Everything that training changes, in one object: what steps update and checkpoints hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from losses.joint import JointLoss
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import LossScale, RowOptimiser


@dataclass(frozen=True)
class TrainState:
    """encoder: the bare module, not DDP's wrapper. joint: both losses with classifier shard, quality statistics and queue.
    momentum_encoder: for queue="momentum" only. ema: the average of the encoder's weights, if the configuration asks for one."""

    encoder: nn.Module
    joint: JointLoss
    optimiser: RowOptimiser
    loss_scale: LossScale
    momentum_encoder: MomentumEncoder | None = None
    ema: MomentumEncoder | None = None

    @property
    def followers(self) -> dict[str, MomentumEncoder]:
        """Name -> the copies of the encoder that follow it."""
        copies = {"momentum_encoder": self.momentum_encoder, "ema": self.ema}
        return {name: copy for name, copy in copies.items() if copy is not None}

    @property
    def learned_views(self) -> slice:
        """The views from which the encoder learns."""
        return slice(None) if self.momentum_encoder is None else self.momentum_encoder.left
