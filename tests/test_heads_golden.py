"""The heads against numbers computed by AdaFace's authors' code (golden/author_heads.npz)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses.log_sum_exp import ChunkPlan
from losses.margins.adaface import AdaFace
from losses.margins.arcface import ArcFace
from losses.margins.cosface import CosFace
from losses.quality import QualityStatistics
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from tests.shared_files import GOLDEN, needs_golden
from tests.world import run_world

MARGINS = {"adaface": AdaFace(0.4, 64.0), "cosface": CosFace(0.4, 64.0), "arcface": ArcFace(0.5, 64.0)}


def _run_head(name: str) -> dict[str, torch.Tensor]:
    """Four successive batches through one head; losses, gradients, and the statistics after the last."""
    golden = np.load(GOLDEN / "author_heads.npz")
    weight = torch.from_numpy(golden["weight"])
    plan = ChunkPlan(chunk_elements=24 * 7, keep_bytes=24 * 64 * 4)
    head = ShardedSoftmax(*weight.shape, MARGINS[name], options=HeadOptions(plan=plan))
    head.weight.data.copy_(weight[head.shard.start : head.shard.stop])
    statistics = QualityStatistics(0.333, 0.01, 20.0, 100.0)
    result: dict[str, list] = {"loss": [], "features": [], "weight": []}
    for features, labels in zip(golden["features"], golden["labels"], strict=True):
        features_ND = torch.from_numpy(features).requires_grad_()
        head.weight.grad = None
        norm_N = features_ND.detach().norm(dim=1)
        statistics.update(norm_N)
        quality_N = statistics.normalise(norm_N)
        share_N = torch.full_like(norm_N, 1 / len(norm_N))
        loss = head(F.normalize(features_ND), torch.from_numpy(labels), quality_N, share_N)
        loss.backward()
        result["loss"].append(loss.detach())
        result["features"].append(features_ND.grad)
        result["weight"].append(head.weight.grad)
    stacked = {key: torch.stack(value) for key, value in result.items()}
    return {**stacked, "mean": statistics.mean, "std": statistics.std}


def _assert_close(actual, expected, what: str) -> None:
    expected = torch.from_numpy(np.asarray(expected)).double()
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < 1e-5, f"{what}: relative error {error:.2e}"


@needs_golden
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("name", sorted(MARGINS))
def test_head_equals_the_authors_numbers(name, world):
    golden = np.load(GOLDEN / "author_heads.npz")
    ranks = run_world(world, _run_head, name)
    for rank in ranks:
        _assert_close(rank["loss"], golden[f"{name}_loss"], "loss")
    for batch in range(4):
        features = torch.stack([rank["features"][batch] for rank in ranks]).sum(0)
        weight = torch.cat([rank["weight"][batch] for rank in ranks])
        _assert_close(features, golden[f"{name}_grad_features"][batch], f"feature gradient of batch {batch}")
        _assert_close(weight, golden[f"{name}_grad_weight"][batch], f"weight gradient of batch {batch}")
    if name == "adaface":
        _assert_close(ranks[0]["mean"], golden["adaface_batch_mean"][0], "moving mean")
        _assert_close(ranks[0]["std"], golden["adaface_batch_std"][0], "moving standard deviation")
