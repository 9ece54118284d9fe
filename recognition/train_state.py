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
    momentum_encoder: for queue="momentum" only."""

    encoder: nn.Module
    joint: JointLoss
    optimiser: RowOptimiser
    loss_scale: LossScale
    momentum_encoder: MomentumEncoder | None = None
