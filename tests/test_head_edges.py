"""Edge cases of the sharded head: fewer classes than ranks, no training signal, reduced precision, resuming with another number
of ranks, and the GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from losses.contrastive import ContrastiveLoss
from losses.joint import JointLoss
from losses.log_sum_exp import ChunkPlan
from losses.margins.arcface import ArcFace
from losses.margins.curricularface import CurricularFace
from losses.proxy_queue import FeatureQueue
from losses.quality import Partition, QualityStatistics
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from recognition.build import build_joint_loss
from recognition.checkpoints import state, store
from recognition.checkpoints.writer import CheckpointWriter
from recognition.optimiser import LossScale, RowAdamW, RowSGD, coalesce_gradients
from recognition.train_state import TrainState
from tests.world import run_world
from utils import dist
from utils.config import from_base

DIM = 6


def _joint(classes: int, rate: float = 1.0, margin=None, queue_size: int = 50, threshold: float | None = 0.2) -> JointLoss:
    head = ShardedSoftmax(classes, DIM, margin or ArcFace(0.5, 16.0), seed=3, options=HeadOptions(sample_rate=rate))
    queue = FeatureQueue(queue_size, DIM, head.shard)
    quality, contrastive = QualityStatistics(0.333, 0.01, 20.0, 4.0), ContrastiveLoss(16.0, "paper", True)
    return JointLoss(head, quality, Partition(threshold), queue, contrastive, 1.0, "all")


def _batch(step: int, classes: int, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A step's features and labels of all ranks."""
    generator = torch.Generator().manual_seed(step)
    features_VGD = torch.randn(2, images, DIM, generator=generator) * 40 * torch.rand(2, images, 1, generator=generator)
    return features_VGD, torch.randint(0, classes, (images,), generator=generator)


def _few_classes() -> list[dict[str, torch.Tensor]]:
    return [_two_classes(rate) for rate in (1.0, 0.5)]


def _two_classes(rate: float) -> dict[str, torch.Tensor]:
    joint, losses = _joint(2, rate), []
    optimiser = RowSGD([joint.classifier.weight], lr=0.1, momentum=0.9, fused=True)
    for step in range(3):
        features_VGD, label_G = _batch(step, 2, 7)  # seven images: an odd batch size
        features_VGD.requires_grad_()
        terms = joint(features_VGD, label_G)
        terms.loss.backward()
        coalesce_gradients([joint.classifier.weight])
        optimiser.step()
        optimiser.zero_grad()
        losses.append(torch.stack([terms.classification, terms.contrastive]))
    return {"losses": torch.stack(losses), "features": features_VGD.grad, "weight": joint.classifier.weight.detach().clone()}


def test_fewer_classes_than_ranks():
    """With two classes on three ranks, the last rank has none, but still takes part in every collective."""
    (cases,), worlds = run_world(1, _few_classes), run_world(3, _few_classes)
    for alone, *ranks in zip(cases, *worlds, strict=True):
        assert [len(rank["weight"]) for rank in ranks] == [1, 1, 0]
        for rank in ranks:
            torch.testing.assert_close(rank["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
        assert alone["losses"].isfinite().all() and (alone["losses"][:, 0] > 0).all()
        torch.testing.assert_close(torch.cat([rank["weight"] for rank in ranks]), alone["weight"], rtol=1e-4, atol=1e-6)


def _nothing_to_learn() -> list[tuple[float, float]]:
    """Largest gradients of features and weight for: all features unclassified and uncontrasted, with and without sampling."""
    result = []
    for rate in (1.0, 0.3):
        for margin in (ArcFace(0.5, 16.0), CurricularFace(0.5, 16.0)):
            joint = _joint(200, rate, margin, threshold=1.0)  # nothing is of high quality ...
            joint.contrastive_weight = 0.0  # ... and low quality has no weight
            features_VGD, label_G = _batch(0, 200, 5)
            features_VGD.requires_grad_()
            terms = joint(features_VGD, label_G)
            terms.loss.backward()
            assert terms.loss.item() == 0.0 and terms.contrastive.isfinite()
            gradient = joint.classifier.weight.grad
            result.append((features_VGD.grad.abs().max().item(), gradient.to_dense().abs().max().item()))
            if isinstance(margin, CurricularFace):
                assert margin.t.item() == 0.0, "a step without a classified sample moves t"
    return result


def test_nothing_to_learn_from_gives_zero_and_no_nan():
    for rank in run_world(2, _nothing_to_learn):
        assert rank == [(0.0, 0.0)] * 4


def _gradient_memory() -> None:
    head = ShardedSoftmax(9, DIM, ArcFace(0.5, 16.0), seed=3)

    def backward(seed: int) -> None:
        unit_ND = F.normalize(torch.randn(5, DIM, generator=torch.Generator().manual_seed(seed)))
        head(unit_ND, torch.arange(5), torch.zeros(5), torch.full((5,), 1 / 5)).backward()

    backward(1)
    first_CD = head.weight.grad.clone()
    view_D, address, head.weight.grad = head.weight.grad[2], head.weight.grad.data_ptr(), None
    backward(2)  # a view of the last gradient is still in use
    assert head.weight.grad.data_ptr() != address and torch.equal(view_D, first_CD[2])
    address, second_CD = head.weight.grad.data_ptr(), head.weight.grad.clone()
    backward(1)  # added to the one of the second batch
    assert head.weight.grad.data_ptr() == address
    torch.testing.assert_close(head.weight.grad, first_CD + second_CD)
    addresses = set()
    for _ in range(3):
        head.weight.grad = None
        backward(1)
        assert torch.equal(head.weight.grad, first_CD)
        addresses.add(head.weight.grad.data_ptr())
    assert len(addresses) == 1


def test_the_gradients_memory_is_used_again_but_not_while_anything_uses_it():
    run_world(1, _gradient_memory)


def _bf16_losses(classes: int) -> dict[str, float]:
    """The loss in both precisions, for features near their classes' rows."""
    heads = {p: ShardedSoftmax(classes, 128, ArcFace(0.5, 64.0), options=HeadOptions(precision=p)) for p in ("fp32", "bf16")}
    generator = torch.Generator().manual_seed(0)
    label_N = torch.randint(0, classes, (64,), generator=generator)
    noise_ND = 0.1 * torch.randn(64, 128, generator=generator)
    unit_ND = F.normalize(F.normalize(heads["fp32"].weight.detach()[label_N]) + noise_ND)
    quality_N, share_N = torch.zeros(64), torch.full((64,), 1 / 64)
    return {precision: head(unit_ND, label_N, quality_N, share_N).item() for precision, head in heads.items()}


def _bf16_gradients(classes: int, images: int) -> dict[str, torch.Tensor]:
    """Relative error of the gradients with bf16 products, with all, some and no exponentials kept; and of a streamed update."""
    generator = torch.Generator().manual_seed(4)
    features_ND = F.normalize(torch.randn(images, 64, generator=generator))
    label_N = torch.randint(0, classes, (images,), generator=generator)
    plans = {"all": ChunkPlan(64 * images), "some": ChunkPlan(64 * images, 64 * images * 2), "none": ChunkPlan(64 * images, 0)}

    def rows_after_a_step(**options) -> tuple[torch.Tensor, torch.Tensor]:
        head = ShardedSoftmax(classes, 64, ArcFace(0.5, 16.0), 3, HeadOptions(**options))
        unit_ND = features_ND.clone().requires_grad_()
        head(unit_ND, label_N, torch.zeros(images), torch.full((images,), 1 / images)).backward()
        before = head.weight.detach().clone()
        RowSGD([head.weight], lr=1.0, momentum=0.9, fused=True).step()
        return unit_ND.grad, head.weight.detach() - before

    exact, errors = rows_after_a_step(precision="fp32"), {}
    for name, plan in plans.items():
        for gradient in ("stored", "streamed"):
            found = rows_after_a_step(precision="bf16", plan=plan, gradient=gradient)
            errors[f"{name} {gradient}"] = torch.stack(
                [(value - wanted).norm() / wanted.norm().clamp_min(1e-9) for value, wanted in zip(found, exact, strict=True)]
            )
    return errors


@pytest.mark.parametrize("world", [1, 2, 3])
def test_bf16_gradients(world):
    for errors in run_world(world, _bf16_gradients, 331, 12):
        assert len(errors) == 6
        for name, pair in errors.items():
            assert pair.max() < 0.01, name


def test_bf16_loss_at_half_a_million_classes():
    (losses,) = run_world(1, _bf16_losses, 500_000)
    assert losses["fp32"] > 1
    assert abs(losses["bf16"] / losses["fp32"] - 1) < 1e-3


# ---------------------------------------------------------------------------------------------------- state over ranks

OPTIMISERS = {
    "sgd": lambda p: RowSGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: RowAdamW(p, lr=0.05, fused=True),
}
CASES = [("sgd", 1.0), ("sgd", 0.3), ("adamw", 1.0), ("adamw", 0.3)]
IMAGES, CLASSES = 6, 211


def _steps(joint: JointLoss, optimiser: torch.optim.Optimizer, first: int, last: int) -> list[torch.Tensor]:
    losses = []
    for step in range(first, last):
        terms = joint(*_batch(step, CLASSES, IMAGES))
        terms.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(terms.loss.detach())
    return losses


def _parts(name: str, rate: float):
    encoder, joint = torch.nn.Linear(2, 2), _joint(CLASSES, rate, CurricularFace(0.5, 16.0), queue_size=30)
    torch.nn.init.zeros_(encoder.weight)
    return encoder, joint, OPTIMISERS[name]([joint.classifier.weight]), LossScale(enabled=True)


def _save_all(folder) -> list[list[torch.Tensor]]:
    return [_save(folder / str(number), *case) for number, case in enumerate(CASES)]


def _load_all(folder) -> list[list[torch.Tensor]]:
    return [_load(folder / str(number), *case) for number, case in enumerate(CASES)]


def _save(folder, name: str, rate: float) -> list[torch.Tensor]:
    """Four steps, a checkpoint, and the losses of the next four steps."""
    encoder, joint, optimiser, scale = _parts(name, rate)
    _steps(joint, optimiser, 0, 4)
    captured = state.capture(TrainState(encoder, joint, optimiser, scale))
    CheckpointWriter(folder, from_base(async_save=False)).save(4, captured)
    return _steps(joint, optimiser, 4, 8)


def _load(folder, name: str, rate: float) -> list[torch.Tensor]:
    encoder, joint, optimiser, scale = _parts(name, rate)
    state.restore(store.newest(folder), TrainState(encoder, joint, optimiser, scale))
    return _steps(joint, optimiser, 4, 8)


def test_head_state_is_restored_on_another_number_of_ranks(tmp_path):
    """Classifier, optimiser state, queue, CurricularFace's t and the number of draws, written by two ranks, read by three."""
    expected = run_world(2, _save_all, tmp_path)[0]
    for rank in run_world(3, _load_all, tmp_path):
        for case, got, wanted in zip(CASES, rank, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}")


@pytest.mark.parametrize("wanted, encoder, native, expected", [
    ("auto", "auto", True, "bf16"),
    ("auto", "auto", False, "fp32"),
    ("auto", "bf16", False, "fp32"),  # emulated: slower than fp32
    ("auto", "fp32", True, "fp32"),
    ("fp32", "bf16", True, "fp32"),
    ("bf16", "fp32", False, "bf16"),
])  # fmt: skip
def test_products_follow_the_encoder(monkeypatch, wanted, encoder, native, expected):
    monkeypatch.setattr("recognition.encoders.embedder._has_native_bf16", lambda device: native)
    config = from_base(rec="x", num_classes=8, embedding_size=4, head_precision=wanted, precision=encoder, queue_size=8)
    loss = build_joint_loss(config, dist.start())
    assert loss.classifier.sum_options.precision == loss.contrastive.sum_options.precision == expected
    dist.stop()
