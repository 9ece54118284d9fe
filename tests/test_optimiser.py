"""Optimiser, schedules, gradient arithmetic, loss scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import backbones
from losses.margins.adaface import AdaFace
from losses.quality import Partition
from losses.sharded_softmax import ShardedSoftmax
from recognition.optimiser import GradientNorm, LossScale, parameter_groups
from recognition.schedule import Schedule
from tests.world import run_world
from utils import dist
from utils.config import from_base


def test_normalisation_layers_have_no_weight_decay():
    encoder, head = backbones.build("tiny", embedding_size=16), nn.Linear(16, 3)
    decayed, undecayed = parameter_groups(encoder, head, 5e-4, decay_norms=False)
    norms = {id(p) for m in encoder.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for p in m.parameters()}
    assert decayed["weight_decay"] == 5e-4 and undecayed["weight_decay"] == 0
    assert {id(p) for p in undecayed["params"]} == {id(p) for p in encoder.parameters() if id(p) in norms and p.requires_grad}
    everything = {id(p) for m in (encoder, head) for p in m.parameters() if p.requires_grad}
    assert {id(p) for group in (decayed, undecayed) for p in group["params"]} == everything
    assert id(head.bias) in {id(p) for p in decayed["params"]}
    decayed, undecayed = parameter_groups(encoder, head, 5e-4, decay_norms=True)
    assert {id(p) for p in decayed["params"]} == everything and undecayed["params"] == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "multistep", "milestones": (6, 9)}, {0: 1, 59: 1, 60: 0.1, 89: 0.1, 90: 0.01, 119: 0.01}),
        ({"schedule": "polynomial"}, {0: 1, 60: 0.25, 90: 0.0625, 120: 0}),
        ({"schedule": "polynomial", "warmup_epoch": 2}, {0: 1 / 20, 9: 0.5, 19: 1, 20: 1, 70: 0.25}),
        ({"schedule": "polynomial", "polynomial_power": 1.0, "warmup_epoch": 2}, {0: 1 / 20, 19: 1, 20: 1, 45: 0.75, 119: 0.01}),
        ({"schedule": "cosine"}, {0: 1, 60: 0.5, 30: (1 + math.cos(math.pi / 4)) / 2}),
        ({"schedule": "cosine", "warmup_epoch": 0.5}, {0: 0.2, 4: 1, 5: 1}),
    ],
)
def test_schedules(settings, expected):
    learning_rate = Schedule(from_base(lr=0.2, num_epoch=12, **settings), 10, Partition(0.2)).learning_rate
    for step, factor in expected.items():
        assert learning_rate(step) == pytest.approx(0.2 * factor), step


@pytest.mark.parametrize(("power", "warmup_epochs"), [(1.0, 0), (1.0, 2), (2.0, 3)])
def test_polynomial_schedule_is_arcface_torchs_after_the_warm_up(power, warmup_epochs):
    """PolynomialLRWarmup at step l of T: l / w in the warm-up of w steps, but 1 at step 0; then (1 - (l - w) / (T - w))^power.
    Ours reaches the full rate one step earlier, and starts at 1 / w."""
    settings = {"schedule": "polynomial", "polynomial_power": power, "warmup_epoch": warmup_epochs}
    learning_rate = Schedule(from_base(lr=0.2, num_epoch=12, **settings), 10, Partition(0.2)).learning_rate
    warmup, total = 10 * warmup_epochs, 120
    for step in range(warmup, total):
        assert learning_rate(step) == pytest.approx(0.2 * (1 - (step - warmup) / (total - warmup)) ** power)
    for step in range(1, warmup):
        assert learning_rate(step - 1) == pytest.approx(0.2 * step / warmup)


def _norm_on_this_rank() -> float:
    encoder = nn.Linear(4, 3)
    head = ShardedSoftmax(7, 5, AdaFace(0.4, 64.0))
    for parameter in encoder.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    head.weight.grad = torch.arange(35.0).view(7, 5)[head.shard.start : head.shard.stop]
    return float(GradientNorm(encoder, head).value())


@pytest.mark.parametrize("world", [1, 3])
def test_gradient_norm_counts_each_parameter_of_the_world_once(world):
    expected = math.sqrt(15 * 4 + sum(value**2 for value in range(35)))
    for norm in run_world(world, _norm_on_this_rank):
        assert norm == pytest.approx(expected, rel=1e-6)


def _norm_with_a_nan_on_the_last_rank() -> tuple[bool, list[bool]]:
    rank, world = dist.rank_and_world()
    encoder, head = nn.Linear(2, 2), ShardedSoftmax(6, 4, AdaFace(0.4, 64.0))
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    head.weight.grad = torch.full_like(head.weight, math.nan if rank == world - 1 else 1.0)
    norm = GradientNorm(encoder, head)
    return bool(norm.value().isfinite()), norm.finite_W.tolist()


def test_a_nan_on_one_rank_is_seen_by_all():
    assert run_world(3, _norm_with_a_nan_on_the_last_rank) == [(False, [True, True, False])] * 3


def _update(scale: LossScale, gradients: bool, features: bool = True) -> float:
    scale.update(torch.tensor(features), torch.tensor(gradients))
    return float(scale.value)


def test_loss_scale_halves_on_overflow_and_doubles_after_a_long_good_run():
    scale = LossScale(enabled=True)
    assert _update(scale, gradients=False) == 32768
    for _ in range(LossScale.GROWTH_INTERVAL - 1):
        assert _update(scale, gradients=True) == 32768
    assert _update(scale, gradients=False, features=False) == 32768, "features that are not finite are no overflow"
    assert _update(scale, gradients=True) == 65536 and int(scale.good_steps) == 0
    assert _update(LossScale(enabled=False), gradients=False) == 1.0
    scale.value.fill_(1.0)
    assert _update(scale, gradients=False) == 1.0, "below one, a loss would lose its own digits"
