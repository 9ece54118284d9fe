"""Optimiser, learning-rate schedule, and the gradient arithmetic that all ranks must agree on.

The schedule is a pure function of the step, so there is nothing of it to save. Gradient norms count every parameter of
the world once: the encoder's, which are equal on all ranks, and all parts of the sharded classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from recognition.row_optimiser import RowAdamW, RowOptimiser, RowSGD
from utils.config import Config
from utils.dist import gather_stack

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(encoder: nn.Module, head: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: with weight decay, and without it (all parameters of normalisation layers)."""
    undecayed = {
        id(parameter)
        for module in encoder.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    parameters = [p for module in (encoder, head) for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in undecayed], "weight_decay": 0.0},
    ]


def build_optimiser(config: Config, encoder: nn.Module, head: nn.Module) -> RowOptimiser:
    """SGD with momentum as in the paper, or AdamW. Both leave rows that a step did not sample alone (`row_optimiser`)."""
    groups = parameter_groups(encoder, head, config.weight_decay)
    if config.optimizer == "adamw":
        return RowAdamW(groups, lr=config.lr, fused=True)
    return RowSGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def build_schedule(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Learning rate of a step (0, 1, …): linear warm-up over `warmup_epoch`, then the shape that the config names.

    multistep: lr / 10 from each milestone (epochs) on. polynomial: lr (1 - progress)^2, arcface_torch's. cosine: half a
    period from lr to 0. Progress runs from the end of the warm-up to `num_epoch`.
    """
    warmup = config.warmup_epoch * steps_per_epoch
    total = config.num_epoch * steps_per_epoch
    milestones = [epoch * steps_per_epoch for epoch in config.milestones]

    def multistep(step: int) -> float:
        return 0.1 ** sum(step >= milestone for milestone in milestones)

    def polynomial(step: int) -> float:
        return (1 - _progress(step)) ** 2

    def cosine(step: int) -> float:
        return (1 + math.cos(math.pi * _progress(step))) / 2

    def _progress(step: int) -> float:
        return min(1.0, (step - warmup) / max(total - warmup, 1))

    shape = {"multistep": multistep, "polynomial": polynomial, "cosine": cosine}[config.schedule]

    def learning_rate(step: int) -> float:
        return config.lr * ((step + 1) / warmup if step < warmup else shape(step))

    return learning_rate


def global_gradient_norm(encoder: nn.Module, head: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """L2 norm of all gradients of the world, and of each rank whether its gradients are finite: float64 scalar and bool [W], on
    the device and the same on all ranks. The encoder's gradients are sums over the ranks: where one is not finite, none is."""
    shared = torch.nn.utils.get_total_norm(_gradients(encoder)).double().square()
    sharded = torch.nn.utils.get_total_norm(_gradients(head)).double().square()
    sharded_W = gather_stack(sharded)
    return (shared + sharded_W.sum()).sqrt(), (shared + sharded_W).isfinite()


def _gradients(module: nn.Module) -> list[torch.Tensor]:
    return [gradient_values(p.grad) for p in module.parameters() if p.grad is not None]


def gradient_values(gradient: torch.Tensor) -> torch.Tensor:
    """The numbers of a gradient: all of them, or those of the rows that a sparse one holds (each row once)."""
    if not gradient.is_sparse:
        return gradient
    assert gradient.is_coalesced(), "coalesce_gradients comes before anything that looks at gradients"
    return gradient.values()


def coalesce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums what several backward passes of a step gave the same row of a sparse gradient, in place."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse and not parameter.grad.is_coalesced():
            parameter.grad = parameter.grad.coalesce()


def scale_gradients(parameters: Iterable[nn.Parameter], factor: torch.Tensor | float) -> None:
    """Multiplies all gradients by a number, which may be a scalar of the device, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            gradient_values(parameter.grad).mul_(factor)


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al., ICLR 2018), agreed by construction: it follows the finiteness of
    all ranks' gradients, which is the same on all ranks. It lives on the device: value (float32) and good_steps (int32) are
    scalar tensors. `enabled=False` is a scale of one for ever."""

    GROWTH_INTERVAL = 2000

    def __init__(self, enabled: bool, device: torch.device | str = "cpu"):
        self.enabled = enabled
        self.value = torch.full((), 65536.0 if enabled else 1.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, features_finite: torch.Tensor, gradients_finite: torch.Tensor) -> None:
        """After each step (bool scalars): halves on overflow, doubles after a long run of good steps. Features that are not
        finite say nothing about the scale, which comes after them."""
        if not self.enabled:
            return
        good_steps = torch.where(gradients_finite, self.good_steps + 1, 0)
        long_enough = good_steps == self.GROWTH_INTERVAL
        value = torch.where(long_enough, self.value * 2, self.value)
        value = torch.where(gradients_finite, value, (self.value / 2).clamp_min(1.0))
        self.value.copy_(torch.where(features_finite, value, self.value))
        self.good_steps.copy_(torch.where(features_finite, good_steps.masked_fill(long_enough, 0), self.good_steps))
