"""Every margin through the sharded softmax, on 1 and 3 ranks, compared with its equation over a full matrix in float64: alone,
with class sampling, with inter-class filtering and with a large scale. And compared with numeric differences."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses import margins
from losses.log_sum_exp import ChunkPlan
from losses.margins import margin as margin_module
from losses.margins.adaface import AdaFace
from losses.margins.arcface import ArcFace
from losses.margins.combined import Combined
from losses.margins.cosface import CosFace
from losses.margins.curricularface import CurricularFace
from losses.margins.magface import MagFace
from losses.possibly_same import PossiblySame
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from recognition.build import build_margin, with_margin
from tests.shared_files import ROOT
from tests.world import run_world
from utils.config import from_base, load
from utils.errors import UserError

CLASSES, DIM, COUNT, STEPS, SCALE = 230, 8, 14, 2, 16.0
MARGINS = {
    "adaface": lambda: AdaFace(0.4, SCALE),
    "arcface": lambda: ArcFace(0.5, SCALE),
    "cosface": lambda: CosFace(0.35, SCALE),
    "combined": lambda: Combined(0.9, 0.3, 0.15, SCALE),
    "arcface straight through": lambda: Combined(1.0, 0.5, 0.0, SCALE, epsilon=0.0, straight_through=True),
    "magface": lambda: MagFace(10.0, 110.0, 0.45, 0.8, 35.0, SCALE),
    "curricularface": lambda: CurricularFace(0.5, SCALE, rate=0.5),
}
VARIANTS = {
    "plain": HeadOptions(plan=ChunkPlan(COUNT * 64, COUNT * 64 * 4)),  # one chunk kept, the others computed again
    "sampled": HeadOptions(sample_rate=0.3, plan=ChunkPlan(COUNT * 64, 0)),
    "positives": HeadOptions(sample_rate=0.0, plan=ChunkPlan(COUNT * 64, COUNT * 64 * 4)),
    "filtered": HeadOptions(filter_above=0.3),
    "zeroed": HeadOptions(filter_above=0.3, filtered="zeroed", plan=ChunkPlan(COUNT * 64, COUNT * 64 * 4)),
    "overlapping": HeadOptions(sample_rate=0.3, filter_above=0.3, plan=ChunkPlan(COUNT * 64, 0)),
    "large scale": HeadOptions(),  # exp(100) is not a float32: the running sum
}


GROUP_C = torch.arange(CLASSES) % 3  # three data sets, of which the first two may have people in common
RELATED_PP = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()


def _batches():
    generator = torch.Generator().manual_seed(4)
    for _ in range(STEPS):
        direction = F.normalize(torch.randn(COUNT, DIM, generator=generator), dim=1)
        norm = 3 + 250 * torch.rand(COUNT, 1, generator=generator) ** 2  # beyond MagFace's limits on both sides
        share = torch.rand(COUNT, generator=generator) * (torch.rand(COUNT, generator=generator) > 0.3)
        yield direction * norm, torch.randint(0, CLASSES, (COUNT,), generator=generator), share


def _weight() -> torch.Tensor:
    return torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(1))


def _quality(feature_ND: torch.Tensor) -> torch.Tensor:
    return (feature_ND.detach().norm(dim=1) / 70 - 1).clamp(-1, 1)


def _margin(name: str, variant: str):
    margin = MARGINS[name]()
    if variant == "large scale" and name != "curricularface":
        return type(margin)(**{**vars(margin), "scale": 100.0})
    return margin


# ---------------------------------------------------------------------------------------------------- plain reference


def _dense(name, margin, variant, weight_CD, feature_ND, label_N, share_N, t, sampled):
    """The loss as the papers write it, and CurricularFace's new t."""
    limit, s = margin.cosine_limit, margin.scale
    cosine_NC = F.normalize(feature_ND) @ F.normalize(weight_CD).T
    own_NC = F.one_hot(label_N, CLASSES).bool()
    raw_N, cosine_NC = cosine_NC[own_NC], cosine_NC.clamp(-limit, limit)
    theta_N = cosine_NC[own_NC].acos()
    z_N, a_N = _quality(feature_ND), feature_ND.norm(dim=1).clamp(10, 110)
    shifted = {  # target logit / s
        "adaface": lambda: (theta_N - 0.4 * z_N).clamp(1e-3, math.pi - 1e-3).cos() - (0.4 * z_N + 0.4),
        "arcface": lambda: (theta_N + 0.5).clamp(max=math.pi - 1e-4).cos(),
        "arcface straight through": lambda: raw_N + ((theta_N + 0.5).cos() - raw_N).detach(),
        "cosface": lambda: theta_N.cos() - 0.35,
        "combined": lambda: (0.9 * theta_N + 0.3).clamp(max=math.pi - 1e-4).cos() - 0.15,
        "magface": lambda: (theta_N + 0.45 + 0.35 * (a_N - 10) / 100).clamp(max=math.pi - 1e-4).cos(),
        "curricularface": lambda: (theta_N + 0.5).clamp(max=math.pi - 1e-4).cos(),
    }[name]()
    negative_NC = cosine_NC
    if name == "curricularface":
        counted = share_N > 0
        t = 0.5 * raw_N[counted].mean().item() + 0.5 * t
        negative_NC = torch.where(cosine_NC > shifted.detach()[:, None], cosine_NC * (t + cosine_NC), cosine_NC)
    logits_NC = s * torch.where(own_NC, shifted[:, None], negative_NC)
    left_out_NC = torch.zeros_like(own_NC)
    if variant == "positives":
        assert torch.equal(sampled, label_N.unique())
    if variant == "overlapping":
        left_out_NC |= RELATED_PP[GROUP_C[label_N]][:, GROUP_C]
    if variant in ("sampled", "positives", "overlapping"):
        left_out_NC |= ~torch.isin(torch.arange(CLASSES), sampled)[None]
    if variant == "zeroed":
        logits_NC = torch.where((cosine_NC > 0.3) & ~own_NC, 0.0, logits_NC)
    if variant in ("filtered", "overlapping"):
        left_out_NC |= cosine_NC > 0.3
    loss_N = F.cross_entropy(logits_NC.masked_fill(left_out_NC & ~own_NC, -torch.inf), label_N, reduction="none")
    if name == "magface":
        loss_N = loss_N + 35 * (1 / a_N + a_N / 110**2)
    return (loss_N * share_N).sum(), t


# ---------------------------------------------------------------------------------------------------- on the ranks


def _run_all() -> dict[tuple[str, str], list[dict[str, torch.Tensor]]]:
    return {(name, variant): _run(name, variant) for name in MARGINS for variant in VARIANTS}


def _run(name: str, variant: str) -> list[dict[str, torch.Tensor]]:
    related = PossiblySame(GROUP_C.numpy().astype(np.uint8), RELATED_PP.numpy()) if variant == "overlapping" else None
    head = ShardedSoftmax(CLASSES, DIM, _margin(name, variant), seed=7, options=VARIANTS[variant], possibly_same=related)
    head.weight.data.copy_(_weight()[head.shard.start : head.shard.stop])
    record = []
    for feature_ND, label_N, share_N in _batches():
        feature_ND.requires_grad_()
        head.weight.grad = None
        norm_N = feature_ND.norm(dim=1)
        loss = head(F.normalize(feature_ND), label_N, _quality(feature_ND), share_N, norm_N, label_N)
        loss.backward()
        gradient, rows = head.weight.grad, torch.arange(head.shard.size)
        if gradient.is_sparse:
            rows, gradient = gradient.coalesce().indices()[0], gradient.to_dense()
        record.append({"loss": loss.detach(), "features": feature_ND.grad, "weight": gradient, "rows": rows + head.shard.start})
    return record


@functools.cache
def _results(world: int):
    return run_world(world, _run_all)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("name", sorted(MARGINS))
def test_margin_equals_its_equation(name, variant, world):
    ranks, t = [result[name, variant] for result in _results(world)], 0.0
    for step, (feature_ND, label_N, share_N) in enumerate(_batches()):
        sampled = torch.cat([rank[step]["rows"] for rank in ranks])
        feature_ND, weight_CD = feature_ND.double().requires_grad_(), _weight().double().requires_grad_()
        loss, t = _dense(name, _margin(name, variant), variant, weight_CD, feature_ND, label_N, share_N, t, sampled)
        loss.backward()
        for rank in ranks:
            torch.testing.assert_close(rank[step]["loss"].double(), loss.detach(), rtol=1e-5, atol=1e-5)
        features = torch.stack([rank[step]["features"] for rank in ranks]).sum(0)
        weight = torch.cat([rank[step]["weight"] for rank in ranks])
        for got, expected in ((features, feature_ND.grad), (weight, weight_CD.grad)):
            assert (got - expected).norm() / expected.norm() < 2e-5


def test_the_cases_cover_what_they_claim():
    """Some negatives are hard and some are not, some are filtered, some norms lie beyond MagFace's limits."""
    feature_ND, label_N, share_N = next(_batches())
    cosine_NC = F.normalize(feature_ND) @ F.normalize(_weight()).T
    boundary_N = (cosine_NC.gather(1, label_N[:, None])[:, 0].acos() + 0.5).cos()
    assert 0.1 < (cosine_NC > boundary_N[:, None]).float().mean() < 0.9
    assert 0.05 < (cosine_NC > 0.3).float().mean() < 0.5
    norm_N = feature_ND.norm(dim=1)
    assert (norm_N < 10).any() and (norm_N > 110).any() and ((norm_N > 10) & (norm_N < 110)).any()
    assert 0 < (share_N == 0).sum() < COUNT


def test_margins_by_name():
    for name in margins.names():
        config = replace(load(str(ROOT / "configs" / "base")), margin=name)
        assert type(build_margin(config)) is type(MARGINS[name]())
    with pytest.raises(UserError, match=r"margin='arcfaze': unknown margin 'arcfaze': did you mean 'arcface'"):
        build_margin(replace(config, margin="arcfaze"))


def test_each_margin_has_its_own_default():
    for name, m in {"adaface": 0.4, "arcface": 0.5, "cosface": 0.4, "curricularface": 0.5}.items():
        assert with_margin(from_base(margin=name)).margin_m == m
        assert with_margin(from_base(margin=name, margin_m=0.2)).margin_m == 0.2
    assert build_margin(from_base(margin="arcface")) == ArcFace(0.5, 64.0)
    assert build_margin(from_base(margin="combined")) == Combined(1.0, 0.5, 0.0, 64.0)


def test_straight_through_has_the_value_with_the_margin_and_the_gradient_without_it():
    margin_list = {"margin_list": (1.0, 0.5, 0.0)}
    for settings in ({"margin": "arcface", "margin_m": 0.5}, {"margin": "combined", **margin_list}):
        margin = build_margin(from_base(**settings, margin_gradient="straight_through"))
        cosine_N = torch.linspace(-1, 1, 101, dtype=torch.float64, requires_grad=True)  # also where theta + m is beyond pi
        logit_N = margin.target_logit(cosine_N, cosine_N, cosine_N)
        torch.testing.assert_close(logit_N, 64 * (cosine_N.acos() + 0.5).cos())
        (gradient_N,) = torch.autograd.grad(logit_N.sum(), cosine_N)
        assert margin.cosine_limit == 1 and (gradient_N == 64).all()


def test_a_margin_from_elsewhere(monkeypatch):
    for table in ("_BUILDERS", "_DEFAULT_M"):
        monkeypatch.setattr(margin_module, table, dict(getattr(margin_module, table)))
    margins.register("cosface of a test")(lambda config: CosFace(2 * config.margin_m, config.scale))
    config = replace(load(str(ROOT / "configs" / "base")), margin="cosface of a test")
    assert build_margin(config) == CosFace(0.8, 64.0)


def _numeric_gradients() -> dict[str, bool]:
    return {name: _numeric_gradient(name) for name in margins.names()}


def _numeric_gradient(name: str) -> bool:
    margin = MARGINS[name]()
    if name == "curricularface":
        margin.rate = 0.0  # otherwise t would change with every call
        margin.t.fill_(0.3)
    head = ShardedSoftmax(9, 4, margin).double()
    generator = torch.Generator().manual_seed(2)
    head.weight.data.normal_(generator=generator)
    feature_ND = (torch.randn(5, 4, generator=generator).double() * 20).requires_grad_()
    label_N, share_N = torch.tensor([0, 3, 3, 8, 5]), torch.rand(5, generator=generator).double()
    quality_N = torch.linspace(-0.8, 0.9, 5).double()

    def loss(feature_ND: torch.Tensor, weight_KD: torch.Tensor) -> torch.Tensor:
        del weight_KD  # it is the head's parameter, which gradcheck changes in place
        return head(F.normalize(feature_ND), label_N, quality_N, share_N, feature_ND.norm(dim=1))

    return torch.autograd.gradcheck(loss, (feature_ND, head.weight), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_gradients_equal_numeric_differences():
    (passed,) = run_world(1, _numeric_gradients)
    assert passed == dict.fromkeys(margins.names(), True)
