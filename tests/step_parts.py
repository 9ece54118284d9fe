"""A whole training step in small: real parts, an encoder of one layer, images of noise. For tests that look inside a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from losses.contrastive import ContrastiveLoss
from losses.joint import JointLoss
from losses.log_sum_exp import ChunkPlan
from losses.margins.adaface import AdaFace
from losses.margins.curricularface import CurricularFace
from losses.proxy_queue import FeatureQueue
from losses.quality import Partition, QualityStatistics
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from recognition.checkpoints.state import capture
from recognition.data.prefetch import DeviceBatch
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import LossScale, RowAdamW, RowOptimiser, RowSGD
from recognition.step import TrainStep
from recognition.train_state import TrainState
from utils import dist
from utils.labels import UNLABELLED

CLASSES, DIM, IMAGES = 211, 16, 12  # images of all ranks


@dataclass(frozen=True)
class Parts:
    """One variant of the step."""

    optimiser: str = "sgd"
    sample_rate: float = 1.0
    curricular: bool = False
    scaled: bool = False  # loss scaling, as for fp16
    queue_size: int = 31  # little more than a step's 24 features
    momentum: float = 0.9
    skip_unneeded: bool = True
    as_arcface_torch: bool = False  # filtered negatives are zeroed, the encoder alone is clipped, unsampled rows move
    follower: bool = False  # a momentum encoder fills the queue, and there is an EMA
    unlabelled: bool = False  # every fourth image has no label


class SmallStep:
    """`learn(number)` does one step on batch `number` of an endless, reproducible sequence of batches."""

    def __init__(self, parts: Parts, device: torch.device):
        torch.manual_seed(0)
        self.device, self.unlabelled = device, parts.unlabelled
        self.outcomes: list[str] = []
        encoder = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, DIM), nn.BatchNorm1d(DIM)).to(device)
        with torch.no_grad():
            encoder[3].weight.fill_(8.0)  # type: ignore[operator]
        plan = ChunkPlan(24 * 64, 24 * 64 * 4, parts.skip_unneeded)  # one chunk kept, the others computed again
        margin = CurricularFace(0.5, 16.0) if parts.curricular else AdaFace(0.4, 16.0)
        filter_above = 0.2 if parts.as_arcface_torch else 0.0
        options = HeadOptions(parts.sample_rate, filter_above, plan, filtered="zeroed")
        head = ShardedSoftmax(CLASSES, DIM, margin, seed=3, options=options)
        queue = FeatureQueue(parts.queue_size, DIM, head.shard, compensate=not parts.follower)
        quality = QualityStatistics(0.333, 0.01, 30.0, 4.0)
        contrastive = ContrastiveLoss(16.0, "paper", True, plan)
        joint = JointLoss(head, quality, Partition(0.5), queue, contrastive, 1.0, "all").to(device)
        self.state = TrainState(
            encoder,
            joint,
            _optimiser(parts, [*encoder.parameters(), head.weight]),
            LossScale(parts.scaled, device),
            MomentumEncoder(encoder, 0.9) if parts.follower else None,
            MomentumEncoder(encoder, 0.9, with_statistics=True) if parts.follower else None,
        )
        self.step = TrainStep(
            self.state,
            nn.parallel.DistributedDataParallel(encoder),
            device=device,
            autocast=None,
            max_grad_norm=5.0,
            clip_head=not parts.as_arcface_torch,
            average_batches=True,
            on_outcome=self.outcomes.append,
        )

    def batch(self, number: int) -> DeviceBatch:
        rank, world = dist.rank_and_world()
        generator = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (2, IMAGES, 112, 112, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
        if self.unlabelled:
            labels[::4] = UNLABELLED - torch.arange(number, number + len(labels[::4]))
        mine = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
        return DeviceBatch(images[:, mine].to(self.device), labels[mine], np.arange(IMAGES)[mine], ())

    def learn(self, *numbers: int):
        return self.step([self.batch(number) for number in numbers])

    def captured(self) -> dict[str, object]:
        """The complete state by name: tensors and numbers."""
        self.step.finish_step()
        captured = capture(self.state)
        tensors = {name: value.rows if hasattr(value, "rows") else value for name, value in captured.tensors.items()}
        return {**{name: value.detach().clone() for name, value in tensors.items()}, **captured.values}


def _optimiser(parts: Parts, parameters: list[nn.Parameter]) -> RowOptimiser:
    optimiser: RowOptimiser
    if parts.optimiser == "adamw":
        optimiser = RowAdamW(parameters, lr=0.01, weight_decay=0.1, fused=True)
    else:
        optimiser = RowSGD(parameters, lr=0.05, momentum=parts.momentum, weight_decay=0.01, fused=True)
    optimiser.move_all_rows = parts.as_arcface_torch
    return optimiser
