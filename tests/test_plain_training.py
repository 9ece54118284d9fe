"""Classification alone, one view: the steps that a configuration builds, on 1, 2 and 3 ranks, against a plain training loop.

The loop is one process in float64 with full matrices and PyTorch's own optimisers and clipping. It treats each rank's images as a
batch of their own only in the encoder, because of BatchNorm. Uneven shards of the classes.
"""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from losses.sharded_softmax import initial_rows
from recognition import build
from recognition.data.prefetch import DeviceBatch
from recognition.encoders.embedder import to_input
from recognition.optimiser import LossScale, build_optimiser
from recognition.train_state import TrainState
from tests.world import run_world
from utils import dist
from utils.config import Config, from_base

CLASSES, DIM, IMAGES, STEPS, CPU = 53, 16, 12, 4, torch.device("cpu")  # IMAGES: of all ranks
ARCFACE_TORCH = {"clip": "encoder", "decay_norms": True, "accumulation": "sum", "gradient_acc": 2}
STRAIGHT = {"margin": "arcface", "margin_gradient": "straight_through"}
FILTERED = {"margin": "cosface", "interclass_filtering_threshold": 0.05}
ADAMW = {"optimizer": "adamw", "lr": 1e-3}
CASES = {
    "our defaults": {"margin": "arcface"},
    "straight through": STRAIGHT,
    "zeroed negatives": {**FILTERED, "filtered_negatives": "zeroed"},
    "dropped negatives": {**FILTERED, "filtered_negatives": "dropped"},
    "mean of two batches": {"margin": "cosface", "gradient_acc": 2},
    "sum of two batches": {"margin": "cosface", "gradient_acc": 2, "accumulation": "sum"},
    "encoder clipped": {"margin": "cosface", "clip": "encoder"},
    "norms decayed": {"margin": "cosface", "decay_norms": True},
    "AdamW": {"margin": "cosface", **ADAMW},
    "positives only": {"margin": "cosface", "sample_rate": 0.0, "unsampled_rows": "moved"},
    "positives only, AdamW": {"margin": "cosface", "sample_rate": 0.0, "unsampled_rows": "moved", **ADAMW},
    "arcface_torch's ArcFace": {**ARCFACE_TORCH, **STRAIGHT},
    "arcface_torch's CosFace, AdamW": {**ARCFACE_TORCH, **FILTERED, **ADAMW, "filtered_negatives": "zeroed"},
}


def _config(name: str) -> Config:
    settings = {"lr": 0.05, "weight_decay": 0.1, "max_grad_norm": 2.0, **CASES[name]}
    fixed = {"embedding_size": DIM, "num_classes": CLASSES, "scale": 16.0, "seed": 4, "precision": "fp32"}
    one_view = {"views": 1, "augmentation": "none", "queue": "none", "quality_threshold": None}
    return from_base(**fixed, **one_view, **settings)


def _encoder() -> nn.Module:
    """Without a gradient that is zero but for rounding, of which AdamW makes a step of full size: no biases before BatchNorm, and
    a seed that leaves no other one near zero."""
    torch.manual_seed(4)
    body = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, 40, False), nn.PReLU(40), nn.Linear(40, DIM, False))
    return nn.Sequential(body, nn.BatchNorm1d(DIM))


def _batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of all ranks; a few classes are drawn often."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (IMAGES, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return images, (CLASSES * torch.rand(IMAGES, generator=generator) ** 2).long()


def _numbers(config: Config) -> list[list[int]]:
    """The batches of each step."""
    count = config.gradient_acc
    return [list(range(step * count, (step + 1) * count)) for step in range(STEPS)]


# ---------------------------------------------------------------------------------------------------- the plain loop


def _plain_loss(config: Config, feature_ND: torch.Tensor, label_N: torch.Tensor, weight_CD: torch.Tensor) -> torch.Tensor:
    if config.sample_rate == 0:
        classes, label_N = label_N.unique(return_inverse=True)
        weight_CD = weight_CD[classes]
    cosine_NC = F.normalize(feature_ND) @ F.normalize(weight_CD).T
    own_NC = F.one_hot(label_N, len(weight_CD)).bool()
    logits_NC = cosine_NC
    if config.interclass_filtering_threshold:
        filtered_NC = (cosine_NC > config.interclass_filtering_threshold) & ~own_NC
        logits_NC = cosine_NC.masked_fill(filtered_NC, 0.0 if config.filtered_negatives == "zeroed" else -math.inf)
    with_margin_NC = cosine_NC - 0.4 if config.margin == "cosface" else (cosine_NC.acos() + 0.5).cos()
    if config.margin_gradient == "straight_through":
        with_margin_NC = cosine_NC + (with_margin_NC - cosine_NC).detach()
    return F.cross_entropy(config.scale * torch.where(own_NC, with_margin_NC, logits_NC), label_N)


def _plain_optimiser(config: Config, encoder: nn.Module, weight: nn.Parameter) -> torch.optim.Optimizer:
    norms = {p for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()}
    norms = set() if config.decay_norms else norms
    groups = [
        {"params": [p for p in [*encoder.parameters(), weight] if p not in norms], "weight_decay": config.weight_decay},
        {"params": [p for p in encoder.parameters() if p in norms], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def _plain_training(config: Config, ranks: int) -> dict[str, list[torch.Tensor]]:
    """Per step: loss of the last batch, norm before clipping, gradients as they are applied, classifier and encoder after it."""
    encoder = _encoder().double()
    weight = nn.Parameter(initial_rows(CLASSES, DIM, dist.ShardRange(CLASSES, 0, CLASSES), config.seed).double())
    optimiser = _plain_optimiser(config, encoder, weight)
    record: dict[str, list] = {"loss": [], "norm": [], "gradient": [], "weight": [], "encoder": []}
    for numbers in _numbers(config):
        for number in numbers:
            images, label_N = _batch(number)
            inputs = to_input(images, CPU).double()
            loss = _plain_loss(config, torch.cat([encoder(part) for part in inputs.chunk(ranks)]), label_N, weight)
            (loss if config.accumulation == "sum" else loss / len(numbers)).backward()
        clipped = [*encoder.parameters(), *([weight] if config.clip == "all" else [])]
        record["loss"].append(loss.detach())
        record["norm"].append(nn.utils.clip_grad_norm_(clipped, config.max_grad_norm))
        record["gradient"].append(weight.grad.clone())
        if config.optimizer == "adamw" and not optimiser.state:
            gradient = torch.cat([p.grad.flatten() for p in [*encoder.parameters(), weight]])
            assert gradient[gradient != 0].abs().min() > 1e-7, "far above rounding, 1e-9, and AdamW's eps, 1e-8"
        optimiser.step()
        optimiser.zero_grad()
        record["weight"].append(weight.detach().clone())
        record["encoder"].append(nn.utils.parameters_to_vector(encoder.parameters()).detach())
    return record


# ---------------------------------------------------------------------------------------------------- the steps under test


def _train_all() -> dict[str, dict[str, list[torch.Tensor]]]:
    return {name: _train(_config(name)) for name in CASES}


def _train(config: Config) -> dict[str, list[torch.Tensor]]:
    rank, ranks = dist.rank_and_world()
    world = dist.World(rank, ranks, rank, ranks, CPU)
    encoder, joint = _encoder(), build.build_joint_loss(config, world)
    state = TrainState(encoder, joint, build_optimiser(config, encoder, joint.classifier), LossScale(enabled=False))
    step = build.build_train_step(config, world, state, lambda reason: None)
    weight, gradients = state.joint.classifier.weight, []
    apply = state.optimiser.step_if

    def note_gradient(finite: torch.Tensor) -> None:
        gradients.append(weight.grad.to_dense().clone())
        apply(finite)

    state.optimiser.step_if = note_gradient  # type: ignore[method-assign]
    record: dict[str, list] = {"loss": [], "norm": [], "gradient": gradients, "weight": [], "encoder": []}
    for numbers in _numbers(config):
        batches = []
        for images, labels in map(_batch, numbers):
            batches.append(DeviceBatch(images.chunk(ranks)[rank][None], labels.chunk(ranks)[rank], np.arange(1), ()))
        result = step(batches)
        assert result.terms is not None and step.finish_step() == ""
        record["loss"].append(result.terms.loss.detach())
        record["norm"].append(result.gradient_norm)
        record["weight"].append(weight.detach().clone())
        record["encoder"].append(nn.utils.parameters_to_vector(state.encoder.parameters()).detach())
    return copy.deepcopy(record)


@functools.cache
def _results(ranks: int):
    return run_world(ranks, _train_all)


def _close(found: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 5e-5) -> None:
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < tolerance, f"{what}: relative error {error:.1e}"


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_a_plain_loop(name, ranks):
    config, found = _config(name), [result[name] for result in _results(ranks)]
    expected = _plain_training(config, ranks)
    assert max(expected["norm"]) > config.max_grad_norm, "clipping takes part"
    for step in range(STEPS):
        for rank in found:
            for key in ("loss", "norm", "encoder"):
                _close(rank[key][step], expected[key][step], f"{key} of step {step}")
        for key in ("gradient", "weight"):
            _close(torch.cat([rank[key][step] for rank in found]), expected[key][step], f"{key} of step {step}")
