"""What depends on the step number alone: the length of a run, the learning rate, the partition. None of it is saved."""

from __future__ import annotations

import math

from losses.quality import AnyPartition, ClassifyAll
from utils.config import Config
from utils.errors import UserError


class Schedule:
    """steps_per_epoch, total_steps, and `learning_rate(step)` and `partition(step)` of steps 0, 1, …

    batches_per_epoch: of one rank. partition: the one that applies after `partition_warmup_epoch`.
    """

    def __init__(self, config: Config, batches_per_epoch: int, partition: AnyPartition):
        self.steps_per_epoch = batches_per_epoch // config.gradient_acc
        if self.steps_per_epoch == 0:
            raise UserError(f"gradient_acc={config.gradient_acc}: an epoch has only {batches_per_epoch} batches")
        self._all_steps = config.num_epoch * self.steps_per_epoch
        self.total_steps = min(self._all_steps, config.max_steps or self._all_steps)
        self._config, self._partition = config, partition
        self._shape = {"multistep": self._multistep, "polynomial": self._polynomial, "cosine": self._cosine}[config.schedule]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up over `warmup_epoch`, then the shape that the configuration names."""
        warmup = self._config.warmup_epoch * self.steps_per_epoch
        return self._config.lr * ((step + 1) / warmup if step < warmup else self._shape(step))

    def partition(self, step: int) -> AnyPartition:
        """During `partition_warmup_epoch` every feature is classified and no pair contrasted."""
        warmup = self._config.partition_warmup_epoch * self.steps_per_epoch
        return ClassifyAll() if step < warmup else self._partition

    def _multistep(self, step: int) -> float:
        """A tenth from each milestone (in epochs) on."""
        return 0.1 ** sum(step >= epoch * self.steps_per_epoch for epoch in self._config.milestones)

    def _polynomial(self, step: int) -> float:
        """(1 - progress)^power, as in arcface_torch."""
        return (1 - self._progress(step)) ** self._config.polynomial_power

    def _cosine(self, step: int) -> float:
        """Half a period, from 1 to 0."""
        return (1 + math.cos(math.pi * self._progress(step))) / 2

    def _progress(self, step: int) -> float:
        """0 at the end of the warm-up, 1 at the end of `num_epoch`."""
        warmup = self._config.warmup_epoch * self.steps_per_epoch
        return min(1.0, (step - warmup) / max(self._all_steps - warmup, 1))
