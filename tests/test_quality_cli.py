"""`python -m eval quality`: real faces, sharp and degraded; statistics; user errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.commands.quality import compare_norms
from recognition.encoders.card import QualityScale
from tests.eval_commands import run_eval
from tests.shared_files import FACES, needs_faces
from tests.world import run_world
from utils import dist
from utils.errors import UserError

VAL = FACES / "val"


def edges(images_nHWC: torch.Tensor) -> torch.Tensor:
    """Features whose norm is the sharpness: differences of neighbouring pixels."""
    grey = images_nHWC.float().mean(dim=3) / 100
    return (grey[:, 1:] - grey[:, :-1]).flatten(1)


def _quality(bins: list[str], out: Path) -> dict[str, dict[str, float]]:
    arguments = ["quality", "--checkpoint", "edges", "--bins", *bins, "--json", out, "--plots", out.parent]
    run_eval(edges, *arguments, quality=QualityScale(10.0, 5.0, 0.333, 0.5))
    dist.barrier()
    return json.loads(out.read_text())


@needs_faces
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_norm_of_sharpness_separates_sharp_from_degraded_faces(ranks: int, tmp_path: Path) -> None:
    bins = [str(VAL / f"lfw_{name}.bin") for name in ("hq", "mixed", "lq")]
    found = run_world(ranks, _quality, bins, tmp_path / "figures.json")[0]
    assert [figures["images"] for figures in found.values()] == [1200] * 3
    assert "auc" not in found["lfw_hq"] and found["lfw_lq"]["auc"] > 0.95 and found["lfw_lq"]["below_twin"] > 0.99
    assert 0.45 < found["lfw_mixed"]["below_twin"] < 0.55  # every second image is degraded, the others are the same
    assert found["lfw_hq"]["norm"] > found["lfw_mixed"]["norm"] > found["lfw_lq"]["norm"]
    assert found["lfw_lq"]["low_quality_share"] > found["lfw_hq"]["low_quality_share"]
    assert (tmp_path / "norms.png").is_file() and (tmp_path / "norms.svg").is_file()


def test_statistics_equal_their_definitions() -> None:
    rng = np.random.default_rng(1)
    norms = {"a": rng.normal(20, 3, 50), "b": rng.normal(18, 3, 50), "c": rng.normal(18, 3, 7)}
    scale = QualityScale(20.0, 3.0, 0.333, 0.4)
    found = compare_norms(norms, scale)
    for name in ("b", "c"):
        expected = np.mean([float(x < y) + 0.5 * float(x == y) for x in norms[name] for y in norms["a"]])
        assert found[name]["auc"] == pytest.approx(expected)
    assert found["b"]["below_twin"] == np.mean(norms["b"] < norms["a"]) and "below_twin" not in found["c"]
    assert found["c"]["low_quality_share"] == np.mean(norms["c"] <= scale.norm_of(0.4))
    assert found["c"]["quality"] == pytest.approx(np.mean(scale.u(norms["c"])))
    plain = compare_norms(norms, None)
    assert set(plain["a"]) == {"images", "norm", "norm_std"}


@needs_faces
def test_two_sets_of_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two sets have the same name"):
        _quality([str(VAL / "lfw_hq.bin")] * 2, tmp_path / "out.json")
