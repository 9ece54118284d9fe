"""A run may resume with any number of ranks: except for rounding, its losses equal those of the run that kept its ranks."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from recognition.checkpoints import store
from tests.commands import metrics
from tests.plug import Run

# 13 classes are not divisible by 4, 2 or 3, a queue of 40 not by 3. Synchronised BatchNorm, because a rank's own statistics
# depend on the number of ranks; a small lr, because training amplifies rounding.
SETTINGS = ("sync_bn=True", "lr=0.002", "num_workers=0", "save_every=3", "keep_last=9")
LEGS = ((4, 3), (2, 4), (3, 5), (1, 6), (4, 7))  # ranks, last step
LAST = LEGS[-1][1]
EXACT = ("high_quality_share", "low_quality_pair_share", "lr", "epoch")
LOSSES = ("loss", "loss_classification", "loss_contrastive")


@pytest.fixture(scope="module")
def stayed_and_moved(demo_set, unlabelled, tmp_path_factory) -> tuple[Path, Path]:
    """Outputs of a run that stayed at 4 ranks, and of one that went 4 -> 2 -> 3 -> 1 -> 4, on the same global batches."""
    stayed, moved = (tmp_path_factory.mktemp("ranks") / name for name in ("stayed", "moved"))
    settings = (*SETTINGS, f"unlabelled={unlabelled}")  # 3 of the 12 images of a batch
    Run(demo_set, stayed, *settings, f"max_steps={LAST}", ranks=4).succeed()
    shutil.copytree(stayed, moved)
    for folder in store.complete_checkpoints(moved):
        if folder != store.folder_of(moved, LEGS[0][1]):
            shutil.rmtree(folder)
    for (_, begin), (ranks, end) in itertools.pairwise(LEGS):
        text = Run(demo_set, moved, *settings, f"max_steps={end}", ranks=ranks).succeed()
        assert f"resumed from {store.folder_of(moved, begin)}" in text and f" images = {ranks} rank(s) x " in text
    return stayed, moved


def test_losses_are_equal_from_the_first_resumed_step_on(stayed_and_moved):
    expected, actual = map(metrics, stayed_and_moved)
    assert [line["step"] for line in actual] == [line["step"] for line in expected] == list(range(1, LAST + 1))
    assert any(line["loss_contrastive"] > 1 for line in expected) and any(line["high_quality_share"] < 1 for line in expected)
    first = LEGS[0][1]
    for one, other in zip(expected[first:], actual[first:], strict=True):
        step = other["step"]
        assert [other[name] for name in EXACT] == [one[name] for name in EXACT], step
        # Relative to the loss; later steps carry the rounding of earlier ones, amplified by PReLU's kink (below).
        within, gradient_within = (1e-6, 1e-4) if step == first + 1 else (1e-4, 2e-3)
        assert [other[name] for name in LOSSES] == pytest.approx([one[name] for name in LOSSES], abs=within * one["loss"]), step
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=gradient_within), step
        assert other["quality_mean"] == pytest.approx(one["quality_mean"], rel=1e-6), step


def test_the_state_is_the_same(stayed_and_moved):
    """At step 6, written by four ranks and by one that resumed from three: all tensors are close, the queue's order is equal.

    One activation that rounding moves across PReLU's kink changes a gradient by a few thousandths, hence the tolerance.
    """
    one, other = (store.read_tensors(store.folder_of(output, 6)) for output in stayed_and_moved)
    assert one.keys() == other.keys() and one["queue.label"].equal(other["queue.label"])
    assert one["classifier.weight"].shape[0] == 13 and len(one["queue.label"]) == 40 and (one["queue.label"] < 0).sum() == 10
    for name, value in one.items():
        value, found = value.double(), other[name].double()
        distance = torch.linalg.vector_norm(value - found) / torch.linalg.vector_norm(value).clamp_min(1e-3)
        assert distance < 1e-2, f"{name} differs by {distance:.1e}"
