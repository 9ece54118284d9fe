"""Sampling of classes: the samples; rows that are not drawn keep every bit; and no result depends on the number of ranks."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from losses.margins.arcface import ArcFace
from losses.sampling import ClassSampler
from losses.sharded_softmax import HeadOptions, ShardedSoftmax, initial_rows
from recognition.optimiser import GradientNorm, RowAdamW, RowSGD, coalesce_gradients, scale_gradients
from tests.world import run_world
from utils.dist import ShardRange, shard_range

CLASSES, DIM, COUNT, STEPS, RATE = 530, 6, 12, 4, 0.2
OPTIMISERS = {
    "sgd": lambda p: RowSGD(p, lr=0.3, momentum=0.9, weight_decay=0.01, fused=True),
    "adamw": lambda p: RowAdamW(p, lr=0.05, weight_decay=0.01, fused=True),
}


def _sample(classes: int, rate: float, draw: int, labels: torch.Tensor, seed: int = 5) -> torch.Tensor:
    whole = ShardRange(classes, 0, classes)
    return ClassSampler(whole, rate, seed).rows(draw, labels, torch.device("cpu"))


@pytest.mark.parametrize("classes", [1, 7, 99, 100, 101, 530, 20_011])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.33, 0.99])
def test_sample_is_the_same_for_any_number_of_ranks_and_holds_the_positives(classes, rate):
    labels = torch.randint(0, classes, (20,), generator=torch.Generator().manual_seed(1))
    whole = _sample(classes, rate, 3, labels)
    assert torch.isin(labels, whole).all()
    assert (whole.diff() > 0).all() and whole.min() >= 0 and whole.max() < classes
    assert abs(len(whole) - rate * classes) <= 0.5 + 20
    for world in (2, 3, 7):
        parts = []
        for rank in range(world):
            shard = shard_range(classes, rank, world)
            parts.append(ClassSampler(shard, rate, 5).rows(3, labels, torch.device("cpu")) + shard.start)
        assert torch.equal(torch.cat(parts), whole)


def test_every_class_is_drawn_equally_often_and_draws_differ():
    none, classes, draws = torch.empty(0, dtype=torch.int64), 250, 400
    counts = torch.zeros(classes)
    for draw in range(draws):
        counts[_sample(classes, 0.3, draw, none)] += 1
    spread = (draws * 0.3 * 0.7) ** 0.5
    assert ((counts - 0.3 * draws).abs() < 4.5 * spread).all()
    assert 0.5 * spread < counts.std() < 1.5 * spread
    overlap = torch.isin(_sample(20_000, 0.3, 0, none), _sample(20_000, 0.3, 1, none)).float().mean()
    assert 0.27 < overlap < 0.33
    assert not torch.equal(_sample(1000, 0.3, 0, none), _sample(1000, 0.3, 0, none, seed=6))


def _batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        yield torch.randn(COUNT, DIM, generator=generator), torch.randint(0, CLASSES, (COUNT,), generator=generator)


def _train_all() -> dict[str, list[dict[str, torch.Tensor]]]:
    return {name: _train(name) for name in OPTIMISERS}


def _train(name: str) -> list[dict[str, torch.Tensor]]:
    head = ShardedSoftmax(CLASSES, DIM, ArcFace(0.5, 8.0), seed=11, options=HeadOptions(sample_rate=RATE))
    optimiser, record = OPTIMISERS[name]([head.weight]), []
    for feature_ND, label_N in _batches():
        optimiser.zero_grad()
        for half in (slice(0, COUNT // 2), slice(COUNT // 2, COUNT)):  # gradient accumulation: two draws per step
            labels, share = label_N[half], torch.full((COUNT // 2,), 1 / COUNT)
            head(F.normalize(feature_ND[half]), labels, share, share, host_label_N=labels).backward()
        coalesce_gradients([head.weight])
        scale_gradients([head.weight], 0.5)
        gradient = head.weight.grad
        norm = GradientNorm(torch.nn.Linear(1, 1), head).value()
        optimiser.step()
        state = {key: value.clone() for key, value in optimiser.state[head.weight].items()}
        rows = torch.zeros(head.shard.size, dtype=torch.bool)
        rows[gradient.indices()[0]] = True
        weight = head.weight.detach().clone()
        record.append({"weight": weight, "gradient": gradient.to_dense(), "rows": rows, "norm": norm, **state})
    return record


@functools.cache
def _trained(world: int):
    return run_world(world, _train_all)


def _whole(world: int, name: str, step: int, key: str) -> torch.Tensor:
    return torch.cat([rank[name][step][key] for rank in _trained(world)])


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_rows_that_are_not_drawn_stay_bit_for_bit_and_the_others_move_as_the_dense_optimiser_moves_them(name):
    state = ("momentum_buffer",) if name == "sgd" else ("exp_avg", "exp_avg_sq", "row_step")
    seen = torch.zeros(CLASSES, dtype=torch.bool)
    for step in range(1, STEPS):
        rows = _whole(1, name, step, "rows")
        assert RATE * CLASSES <= rows.sum() <= 2 * RATE * CLASSES + COUNT
        for key in ("weight", *state):
            assert torch.equal(_whole(1, name, step, key)[~rows], _whole(1, name, step - 1, key)[~rows]), key
        seen |= rows
        assert not torch.equal(_whole(1, name, step, "weight")[rows], _whole(1, name, step - 1, "weight")[rows])
    assert 0 < seen.sum() < CLASSES


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_each_row_moves_as_if_the_dense_optimiser_had_seen_its_steps_alone(name):
    """Compared with PyTorch's optimiser for one row alone, over the steps in which it was drawn."""
    moved = torch.stack([_whole(1, name, step, "rows") for step in range(STEPS)]).sum(0)
    for row in [int((moved == times).nonzero()[0]) for times in (1, 2, 3)]:
        first = next(step for step in range(STEPS) if _whole(1, name, step, "rows")[row])
        start = _initial()[row] if first == 0 else _whole(1, name, first - 1, "weight")[row]
        parameter = torch.nn.Parameter(start.clone())
        kind = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
        settings = {"lr": 0.3, "momentum": 0.9} if name == "sgd" else {"lr": 0.05}
        plain = kind([parameter], weight_decay=0.01, **settings)
        for step in range(STEPS):
            if _whole(1, name, step, "rows")[row]:
                parameter.grad = _whole(1, name, step, "gradient")[row].clone()
                plain.step()
        torch.testing.assert_close(parameter.detach(), _whole(1, name, STEPS - 1, "weight")[row], rtol=1e-5, atol=1e-6)


def _initial() -> torch.Tensor:
    return initial_rows(CLASSES, DIM, ShardRange(CLASSES, 0, CLASSES), 11)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_training_with_sampled_classes_is_the_same_for_any_number_of_ranks(name):
    for step in range(STEPS):
        assert torch.equal(_whole(1, name, step, "rows"), _whole(3, name, step, "rows"))
        expected = torch.linalg.vector_norm(_whole(1, name, step, "gradient").double())
        for rank in _trained(3):
            torch.testing.assert_close(rank[name][step]["norm"], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(_whole(1, name, STEPS - 1, "weight"), _whole(3, name, STEPS - 1, "weight"), rtol=1e-4, atol=1e-5)
