"""World-size invariance: the sharded joint loss on 1, 2, 3 and 4 real ranks against one plain dense reference.

Uneven classes, a queue that fills up and wraps round, a classifier that moves between the steps (so that drift
compensation has something to do). Compared: losses, feature gradients, classifier gradients, queue contents, statistics.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from losses.contrastive import ContrastiveLoss
from losses.joint import JointLoss
from losses.log_sum_exp import ChunkPlan
from losses.margins.adaface import AdaFace
from losses.possibly_same import PossiblySame
from losses.proxy_queue import FeatureQueue
from losses.quality import ClassifyAll, Partition, QualityStatistics, ViewPartition
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from tests.dense_reference import DenseReference
from tests.world import run_world
from utils import dist
from utils.labels import UNLABELLED

CLASSES, DIM, IMAGES, STEPS, RATE = 11, 8, 12, 6, 0.05
GROUP_C = torch.tensor([0] * 4 + [1] * 4 + [2] * 3)  # three data sets
RELATED_PP = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()  # the first two may have people in common


@dataclass(frozen=True)
class Case:
    """One variant of the method."""

    queue_size: int | None = 40  # 24 features per step: half full after the first, wrapping from the second on
    threshold: float | None = 0.2
    denominator: str = "paper"
    compensate: bool = True
    views: int = 2
    contrastive_weight: float = 1.0
    stop_gradient: bool = True
    average: str = "all"
    by_views: bool = False
    by_scale: bool = False  # the partition divides by grades instead of norms
    momentum: bool = False  # queue and positive keys come from another encoder's features
    only_original: bool = False  # that encoder sees the augmented view alone, and the other one the original
    target: str = "original"
    overlapping: bool = False  # classes of three data sets, of which the first two may have people in common
    same_label: bool = False  # a batch of one identity: no negatives at first
    unlabelled: bool = False  # half of the images have no label
    teacher: bool = False  # another encoder's features are a target
    warm_up: bool = False  # everything is classified and nothing contrasted
    classes: int = CLASSES


CASES = {
    "paper": Case(),
    "infonce, lambda 0.5": Case(denominator="infonce", contrastive_weight=0.5),
    "gradient through the key too": Case(stop_gradient=False),
    "mean over the selected": Case(average="selected"),
    "overlapping data sets": Case(overlapping=True),
    "overlapping data sets, infonce, batch queue": Case(overlapping=True, denominator="infonce", queue_size=24, compensate=False),
    "momentum encoder": Case(momentum=True, compensate=False),
    "teacher": Case(teacher=True),
    "teacher, one view": Case(teacher=True, views=1, queue_size=None),
    "momentum encoder, originals learn": Case(momentum=True, only_original=True, teacher=True, compensate=False),
    "originals learn, unlabelled, infonce": Case(
        momentum=True, only_original=True, unlabelled=True, denominator="infonce", compensate=False
    ),
    "better view is the target": Case(target="better"),
    "better view, infonce, gradient through it": Case(target="better", denominator="infonce", stop_gradient=False),
    "better view, momentum encoder, unlabelled": Case(target="better", momentum=True, unlabelled=True, compensate=False),
    "symmetric": Case(target="symmetric"),
    "symmetric, infonce, unlabelled": Case(target="symmetric", denominator="infonce", unlabelled=True, average="selected"),
    "symmetric, momentum encoder": Case(target="symmetric", momentum=True, compensate=False),
    "partition by views": Case(by_views=True),
    "partition by scale, unlabelled": Case(by_scale=True, unlabelled=True, threshold=0.3),
    "no partition": Case(threshold=None),
    "queue without compensation": Case(compensate=False),
    "queue smaller than a step": Case(queue_size=7),
    "queue of exactly a step": Case(queue_size=24),
    "no queue": Case(queue_size=None),
    "one view": Case(views=1, queue_size=None),
    "nothing is of high quality": Case(threshold=1.0),
    "nothing is of low quality": Case(threshold=-0.1),
    "one identity only": Case(same_label=True),
    "unlabelled images": Case(unlabelled=True),
    "unlabelled, infonce, mean over the selected": Case(unlabelled=True, denominator="infonce", average="selected"),
    "unlabelled, momentum encoder": Case(unlabelled=True, momentum=True, compensate=False),
    "unlabelled, teacher": Case(unlabelled=True, teacher=True),
    "unlabelled, partition by views": Case(unlabelled=True, by_views=True, stop_gradient=False),
    "unlabelled, warm-up": Case(unlabelled=True, warm_up=True),
    "unlabelled, a rank without classes": Case(unlabelled=True, classes=3),
}


def _batches(case: Case):
    """The global batches, which depend on the case alone: features [V, G, D] of widely varying norm, labels [G]."""
    generator = torch.Generator().manual_seed(5)
    for step in range(STEPS):
        norm = torch.rand(case.views, IMAGES, 1, generator=generator) * 40
        features = torch.nn.functional.normalize(torch.randn(case.views, IMAGES, DIM, generator=generator), dim=2) * norm
        labels = torch.randint(0, case.classes, (IMAGES,), generator=generator)
        if case.unlabelled:  # of so few images that some return while their entries are still in the queue
            labels[torch.randperm(IMAGES, generator=generator)[: IMAGES // 2]] = UNLABELLED - torch.arange(
                step, step + IMAGES // 2
            )
        yield features, torch.full_like(labels, 3) if case.same_label else labels


def _other_features(case: Case, step: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Features of the same images from a momentum encoder, [V, G, D] or [1, G, D] of the augmented view, and from a teacher,
    [1, G, D]."""
    generator = torch.Generator().manual_seed(100 + step)
    other_VGD = 8 * torch.randn(case.views, IMAGES, DIM, generator=generator)
    momentum_VGD = other_VGD[: 1 if case.only_original else 2]
    return momentum_VGD if case.momentum else None, other_VGD[-1:] if case.teacher else None


def _grades(case: Case, step: int) -> torch.Tensor | None:
    return torch.rand(IMAGES, generator=torch.Generator().manual_seed(200 + step)) if case.by_scale else None


def _initial_weight(classes: int) -> torch.Tensor:
    return torch.randn(classes, DIM, generator=torch.Generator().manual_seed(1))


def _build(case: Case) -> JointLoss:
    possibly_same = PossiblySame(GROUP_C.numpy().astype(np.uint8), RELATED_PP.numpy()) if case.overlapping else None
    plan = ChunkPlan(chunk_elements=64 * 3, keep_bytes=24 * 2 * 4)  # several chunks, some kept and some recomputed
    options = HeadOptions(plan=plan)
    head = ShardedSoftmax(case.classes, DIM, AdaFace(0.4, 64.0), options=options, possibly_same=possibly_same)
    head.weight.data.copy_(_initial_weight(case.classes)[head.shard.start : head.shard.stop])
    queue = contrastive = None
    if case.queue_size:
        queue = FeatureQueue(case.queue_size, DIM, head.shard, case.compensate)
        contrastive = ContrastiveLoss(
            64.0, case.denominator, case.stop_gradient, plan, possibly_same=possibly_same, target=case.target
        )
    quality = QualityStatistics(0.333, 0.01, 20.0, 4.0)
    partition = ClassifyAll() if case.warm_up else ViewPartition() if case.by_views else Partition(case.threshold)
    return JointLoss(head, quality, partition, queue, contrastive, case.contrastive_weight, case.average)


def _run_sharded(names: list[str]) -> dict[str, dict[str, list]]:
    """Run all cases on this rank. One process runs several cases, because starting processes takes the time."""
    return {name: _run_case(CASES[name]) for name in names}


def _run_case(case: Case) -> dict[str, list]:
    rank, world = dist.rank_and_world()
    local = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    joint = _build(case)
    record: dict[str, list] = {key: [] for key in ("terms", "features", "weight", "statistics", "queue", "shares")}
    for step, (features_VGD, labels_G) in enumerate(_batches(case)):
        mine_VBD = features_VGD[case.only_original :, local].clone().requires_grad_()
        joint.zero_grad()
        labels = dist.gather_labels(labels_G[local])
        terms = joint(dist.gather_rows(mine_VBD), labels, *_other_features(case, step), _grades(case, step))
        terms.loss.backward()
        record["terms"].append(torch.stack([terms.classification, terms.contrastive, terms.loss.detach()]))
        record["features"].append(mine_VBD.grad / world)  # DDP would average
        record["weight"].append(joint.classifier.weight.grad.clone())
        record["statistics"].append(torch.stack([joint.quality.mean, joint.quality.std]))
        record["shares"].append(torch.stack([terms.high_quality_share, terms.low_quality_pair_share]))
        if joint.queue is not None:
            record["queue"].append(joint.queue.global_rows())
        joint.classifier.weight.data.sub_(RATE * joint.classifier.weight.grad)
    return record


@functools.cache
def _sharded(world: int) -> list[dict]:
    return run_world(world, _run_sharded, sorted(CASES))


def _close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=2e-4, atol=2e-5, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("name", sorted(CASES))
def test_sharded_equals_dense(name, world):
    case = CASES[name]
    ranks = [result[name] for result in _sharded(world)]
    reference = DenseReference(
        _initial_weight(case.classes),
        case.queue_size,
        case.threshold,
        denominator=case.denominator,
        initial_std=4.0,
        contrastive_weight=case.contrastive_weight,
        compensate=case.compensate,
        stop_gradient=case.stop_gradient,
        average=case.average,
        by_views=case.by_views,
        warm_up=case.warm_up,
        related_CC=RELATED_PP[GROUP_C][:, GROUP_C] if case.overlapping else None,
        target=case.target,
    )
    for step, (features_VGD, labels_G) in enumerate(_batches(case)):
        features_VGD = features_VGD.double().requires_grad_()
        reference.weight.grad = None
        others = (other if other is None else other.double() for other in _other_features(case, step))
        losses = torch.stack(reference.step(features_VGD, labels_G, *others, _grades(case, step)))
        losses[2].backward()
        for rank in ranks:
            _close(rank["terms"][step], losses.detach(), f"losses of step {step}")
            _close(rank["statistics"][step], torch.tensor([reference.norm_mean, reference.norm_std]), "quality statistics")
        features_grad = torch.cat([rank["features"][step] for rank in ranks], dim=1)
        _close(features_grad, features_VGD.grad[case.only_original :], f"feature gradient of step {step}")
        weight_grad = torch.cat([rank["weight"][step] for rank in ranks])
        _close(weight_grad, reference.weight.grad, f"classifier gradient of step {step}")
        if case.queue_size:
            _check_queue(ranks, step, reference, case)
        reference.weight.data.sub_(RATE * reference.weight.grad)


def _check_queue(ranks: list[dict], step: int, reference: DenseReference, case: Case) -> None:
    rows = {key: torch.cat([rank["queue"][step][key] for rank in ranks]) for key in ranks[0]["queue"][step]}
    assert rows["label"].tolist() == [entry[1] for entry in reference.queue]
    _close(rows["feature"], torch.stack([entry[0] for entry in reference.queue]), "queue features")
    if case.compensate:
        _close(rows["proxy"], torch.stack([entry[2] for entry in reference.queue]), "queue proxies")


def test_the_cases_cover_what_they_claim():
    """The comparison above would be empty if no pair were ever of low quality, or the queue never wrapped."""
    shares = torch.stack(_sharded(1)[0]["paper"]["shares"])
    assert (shares[:, 0] < 1).all() and (shares[:, 0] > 0.3).all()
    assert (shares[:, 1] > 0).all() and (shares[:, 1] < 1).sum() >= STEPS // 2
    assert 3 * CASES["paper"].queue_size < IMAGES * 2 * STEPS
    nothing_high = torch.stack(_sharded(1)[0]["nothing is of high quality"]["terms"])
    assert (nothing_high[:, 0] == 0).all() and (nothing_high[:, 1] != 0).all()
    nothing_low = torch.stack(_sharded(1)[0]["nothing is of low quality"]["terms"])
    assert (nothing_low[:, 1] == 0).all()
    one_identity = torch.stack(_sharded(1)[0]["one identity only"]["terms"])
    assert (one_identity[:, 1] == 0).all() and one_identity.isfinite().all()
    unlabelled = _sharded(1)[0]["unlabelled images"]["queue"][-1]
    assert (unlabelled["label"] <= UNLABELLED).sum() > 10 and not unlabelled["proxy"][unlabelled["label"] < 0].any()


def _reshard_queue(parts: list[dict[str, torch.Tensor]] | None, total: int) -> tuple[dict, dict, int]:
    """Load a queue that another number of ranks saved; returns its state and this rank's labels."""
    classes = dist.shard_range(CLASSES)
    queue = FeatureQueue(40, DIM, classes)
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    mine = dist.shard_range(len(whole["label"]))
    queue.load_global_rows({key: value[mine.start : mine.stop] for key, value in whole.items()}, total)
    labels = queue.labels(0, len(queue))
    rank, world = dist.rank_and_world()
    assert bool((classes.owns(labels) | (labels <= UNLABELLED) & ((UNLABELLED - labels) % world == rank)).all())
    return queue.global_rows(), {"labels": labels}, queue.total


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(4, 1), (1, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("name", ["paper", "unlabelled images"])
def test_queue_moves_between_world_sizes(name, saved_by, loaded_by):
    saved = [rank[name]["queue"][-1] for rank in _sharded(saved_by)]
    total = IMAGES * 2 * STEPS
    loaded = run_world(loaded_by, _reshard_queue, saved, total)
    for key in saved[0]:
        before = torch.cat([part[key] for part in saved])
        after = torch.cat([rows[key] for rows, _, _ in loaded])
        assert torch.equal(before, after), key
    assert all(loaded_total == total for _, _, loaded_total in loaded)
