"""The classifier's gradient, computed while the optimiser applies it, moves the rows as the stored one does, to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from losses.log_sum_exp import ChunkPlan
from losses.margins.arcface import ArcFace
from losses.margins.curricularface import CurricularFace
from losses.sharded_softmax import HeadOptions, ShardedSoftmax, streamed_gradient
from recognition.optimiser import GradientNorm, RowSGD, scale_gradients
from tests.commands import metrics, train
from tests.world import run_world
from utils import dist
from utils.config import from_base
from utils.errors import UserError

CLASSES, DIM, COUNT = 331, 6, 10
PLANS = {  # 64 classes per chunk: all exponentials kept, the first chunk's, none
    "all kept": ChunkPlan(64 * COUNT),
    "one kept": ChunkPlan(64 * COUNT, keep_bytes=64 * COUNT * 4),
    "none kept": ChunkPlan(64 * COUNT, keep_bytes=0),
}
MARGINS = {"arcface": lambda: ArcFace(0.5, 16.0), "curricularface": lambda: CurricularFace(0.5, 16.0)}


def _steps(margin: str, plan: str, gradient: str, clip: float, classes: int, spoilt_step: int) -> dict[str, torch.Tensor]:
    """Four steps with momentum, weight decay, a loss scale and clipping; one of them is not finite, and must change nothing."""
    encoder = nn.Linear(1, 1)
    head = ShardedSoftmax(classes, DIM, MARGINS[margin](), 3, HeadOptions(plan=PLANS[plan], gradient=gradient))
    optimiser = RowSGD([head.weight], lr=0.3, momentum=0.9, weight_decay=0.01, fused=True)
    norms, features = [], []
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        unit_ND = nn.functional.normalize(torch.randn(COUNT, DIM, generator=generator))
        if step == spoilt_step:
            unit_ND[3] = math.nan
        label_N = torch.randint(0, classes, (COUNT,), generator=generator)
        loss = head(unit_ND.requires_grad_(), label_N, torch.zeros(COUNT), torch.full((COUNT,), 1 / COUNT))
        (loss * 8.0).backward()
        scale_gradients([head.weight], 1 / 8)
        norm = GradientNorm(encoder, head)
        if clip:
            scale_gradients([head.weight], (clip / norm.value()).clamp(max=1.0).float())
        optimiser.step_if(norm.finite_W.all())
        norms.append(norm.value())
        optimiser.zero_grad()
        assert head.weight.grad is None and streamed_gradient(head.weight) is None
        features.append(unit_ND.grad)
    momentum = optimiser.state[head.weight]["momentum_buffer"]
    return {"weight": head.weight.detach(), "momentum": momentum, "features": torch.stack(features), "norms": torch.stack(norms)}


def _compare() -> list[str]:
    """The comparisons that fail."""
    wrong = []
    cases = [(margin, plan, 0.0, CLASSES, -1) for margin in MARGINS for plan in PLANS]
    cases += [
        ("arcface", "one kept", 0.0, CLASSES, 2),
        ("arcface", "one kept", 0.0, CLASSES, 0),
        ("arcface", "all kept", 0.0, 2, -1),
    ]
    for case in [*cases, ("arcface", "one kept", 1e-3, CLASSES, 1)]:
        margin, plan, clip, classes, spoilt = case
        stored, streamed = (_steps(margin, plan, how, clip, classes, spoilt) for how in ("stored", "streamed"))
        torch.testing.assert_close(streamed["norms"], stored["norms"], rtol=1e-6, atol=0, equal_nan=True)
        assert stored["norms"].isfinite().sum() == (4 if spoilt < 0 else 3)
        for name in ("weight", "momentum", "features"):
            if clip:  # the norm adds up in another order
                torch.testing.assert_close(streamed[name], stored[name], rtol=1e-5, atol=1e-7, equal_nan=True)
            elif not torch.equal(streamed[name].nan_to_num(7.0), stored[name].nan_to_num(7.0)):
                wrong.append(f"{name} of {case} on rank {dist.rank_and_world()[0]}")
    return wrong


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_move_as_with_a_stored_gradient(world):
    assert run_world(world, _compare) == [[]] * world


def _two_backward_passes() -> bool:
    head = ShardedSoftmax(5, DIM, ArcFace(0.5, 16.0), options=HeadOptions(gradient="streamed"))
    unit_ND = nn.functional.normalize(torch.ones(2, DIM)).requires_grad_()
    losses = [head(unit_ND, torch.arange(2), torch.zeros(2), torch.full((2,), 0.5)) for _ in range(2)]
    losses[0].backward()
    with pytest.raises(RuntimeError, match="holds one backward pass"):
        losses[1].backward()
    return True


def test_a_second_backward_pass_is_refused():
    assert run_world(1, _two_backward_passes) == [True]


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"sample_rate": 0.5}, {"gradient_acc": 2}])
def test_what_cannot_be_streamed_is_refused(change):
    with pytest.raises(UserError, match="head_gradient='streamed' needs"):
        from_base(head_gradient="streamed", num_classes=9, rec="synthetic", **change)


def test_a_run_may_change_between_the_ways_when_it_resumes(demo_set, tmp_path):
    steps = {}
    for ways in (("stored", "streamed"), ("streamed", "stored")):
        for max_steps, way in zip((1, 2), ways, strict=True):
            output = tmp_path / ways[0]
            done = train(
                "tests/tiny_config", f"rec={demo_set}", f"output={output}", f"max_steps={max_steps}", f"head_gradient={way}"
            )
            assert done.returncode == 0, done.stderr
        steps[ways] = [[line[name] for name in ("loss_classification", "norm_mean", "gradient_norm")] for line in metrics(output)]
    first, second = steps.values()
    assert len(first) == 2 and [row[:2] for row in first] == [row[:2] for row in second]
    assert [row[2] for row in first] == pytest.approx([row[2] for row in second], rel=1e-6)
