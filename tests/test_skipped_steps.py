"""A skipped step leaves no trace on any rank, although the host learns of it only during the next step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from tests.step_parts import CLASSES, DIM, IMAGES, Parts, SmallStep
from tests.world import run_world
from utils import dist

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """steps: the batches of each step (several if gradients are accumulated). spoiled: the batches with infinite numbers."""

    parts: Parts
    where: str  # features, encoder (its gradient), classifier (its gradient)
    steps: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (3,), (4,))
    spoiled: tuple[int, ...] = (2,)


CASES = {
    "features": Case(Parts(), "features"),
    "gradient of the encoder": Case(Parts(), "encoder"),
    "gradient of one rank's classes": Case(Parts(), "classifier"),
    "the first step": Case(Parts(), "features", spoiled=(0,)),
    "the last step": Case(Parts(), "encoder", spoiled=(4,)),
    "three in a row, unlabelled images": Case(Parts(unlabelled=True), "features", spoiled=(1, 2, 3)),
    "sampled classes": Case(Parts(sample_rate=0.3), "classifier"),
    "sampled classes, AdamW, the first step": Case(Parts("adamw", 0.3), "features", spoiled=(0, 2)),
    "arcface_torch's arithmetic": Case(Parts(sample_rate=0.0, as_arcface_torch=True), "classifier", spoiled=(0, 2)),
    "arcface_torch's arithmetic, AdamW": Case(Parts("adamw", 0.0, as_arcface_torch=True), "features", spoiled=(0, 2)),
    "AdamW": Case(Parts("adamw"), "encoder", spoiled=(0, 3)),
    "no momentum": Case(Parts(momentum=0.0), "classifier"),
    "a margin with state": Case(Parts(curricular=True), "features"),
    "a queue smaller than a step": Case(Parts(queue_size=7), "features"),
    "a momentum encoder and an EMA": Case(Parts(follower=True), "encoder"),
    "an EMA, features": Case(Parts(follower=True), "features", spoiled=(0, 3)),
    "a large queue": Case(Parts(queue_size=5000), "classifier"),
    "the second of two accumulated batches": Case(Parts(), "features", steps=((0, 1), (2, 3), (4, 5), (6, 7)), spoiled=(3,)),
    "scaled, an overflow": Case(Parts(scaled=True), "classifier"),
    "scaled, an overflow in the encoder": Case(Parts("adamw", scaled=True), "encoder"),
}


def _spoil(small: SmallStep, where: str, batches: tuple[int, ...]) -> None:
    """Make numbers of these batches infinite, on the last rank alone."""
    rank, world = dist.rank_and_world()
    batch, current = small.batch, [0]

    def remembered(number: int):
        current[0] = number
        return batch(number)

    def spoil(value: torch.Tensor) -> torch.Tensor:
        return value * math.inf if rank == world - 1 and current[0] in batches else value

    small.batch = remembered
    if where == "features":
        small.state.encoder.register_forward_hook(lambda module, inputs, features: spoil(features))
    else:
        parameter = small.state.encoder[2].weight if where == "encoder" else small.state.joint.classifier.weight
        parameter.register_hook(spoil)


def _run(name: str, without_spoiled: bool) -> tuple[dict, list[str]]:
    case = CASES[name]
    small = SmallStep(case.parts, CPU)
    _spoil(small, case.where, case.spoiled)
    for numbers in case.steps:
        if not (without_spoiled and set(numbers) & set(case.spoiled)):
            small.learn(*numbers)
    return small.captured(), small.outcomes


def _run_all(names: list[str]) -> dict[str, list[tuple[dict, list[str]]]]:
    return {name: [_run(name, without_spoiled) for without_spoiled in (False, True)] for name in names}


@pytest.fixture(scope="module")
def runs() -> list[dict[str, list[tuple[dict, list[str]]]]]:
    return run_world(2, _run_all, sorted(CASES))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_skipped_step_leaves_no_trace(runs, name):
    """The state equals, bit for bit, that of a run without the spoiled steps."""
    case = CASES[name]
    for rank in runs:
        (state, outcomes), (expected, others) = rank[name]
        assert state.keys() == expected.keys() and len(state) > 10
        changed = [key for key, value in state.items() if not _same(value, expected[key])]
        if case.parts.scaled:
            scale = ["loss_scale", "loss_scale_good_steps"]
            assert changed == scale, "the scale is lower on all ranks, nothing else has changed"
            assert [(state[key], expected[key]) for key in scale] == [(32768.0, 65536.0), (2, 4)]
        else:
            assert changed == []
        assert others == [""] * len(others)
        assert [bool(why) for why in outcomes] == [bool(set(numbers) & set(case.spoiled)) for numbers in case.steps]


def _same(one, two) -> bool:
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_the_rank_is_named(runs):
    whys = {name: next(why for why in rank[name][0][1] if why) for rank in runs for name in CASES}
    assert whys["features"] == "features of rank 1 are not finite"
    assert whys["gradient of one rank's classes"] == "gradients of rank 1 are not finite"
    assert whys["gradient of the encoder"] == "gradients of rank 0, 1 are not finite"  # DDP has summed them


def _late() -> list[list[str]]:
    small = SmallStep(replace(Parts(), queue_size=7), CPU)
    _spoil(small, "features", (1,))
    reported = []
    for number in range(3):
        small.learn(number)
        reported.append(list(small.outcomes))
    small.step.finish_step()
    small.step.finish_step()
    return [*reported, small.outcomes]


def test_the_outcome_is_known_a_step_later_and_reported_once():
    reason = "features of rank 1 are not finite"
    for reported in run_world(2, _late):
        assert reported == [[], [""], ["", reason], ["", reason, ""]]


def _damaged_batch() -> tuple[dict, dict, list[str]]:
    small = SmallStep(Parts(), CPU)
    small.learn(0)
    before = small.captured()
    readable, lost = small.batch(1), replace(small.batch(2), labels_B=torch.full((IMAGES // 2,), -1))
    result = small.step([readable, lost])
    assert result.terms is None and result.damaged_records == IMAGES
    return before, small.captured(), small.outcomes


def test_a_batch_without_a_readable_record_undoes_those_accumulated_before_it():
    for before, after, outcomes in run_world(2, _damaged_batch):
        assert [key for key in before if not _same(before[key], after[key])] == []
        assert outcomes == ["", "every labelled record of the batch is damaged"]


def test_the_parts_do_what_the_cases_need():
    """Steps that change nothing would make every comparison above succeed."""
    (one,), (two,) = run_world(1, _states), run_world(1, _states)
    for before, after in one:
        moved = {key for key in before if not _same(before[key], after[key])}
        assert {"classifier.weight", "quality.mean", "queue.feature", "queue_total", "encoder.3.running_mean"} <= moved
        assert after["queue.feature"].shape == (31, DIM) and len(after["classifier.weight"]) == CLASSES
    assert all(_same(a[1][key], b[1][key]) for a, b in zip(one, two, strict=True) for key in a[1])


def _states() -> list[tuple[dict, dict]]:
    result = []
    for parts in (Parts(), Parts("adamw", 0.3)):
        small = SmallStep(parts, CPU)
        small.learn(0)
        small.learn(1)
        before = small.captured()
        small.learn(2)
        result.append((before, small.captured()))
    return result
