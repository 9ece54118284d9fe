"""Norms by view and the queue's drift: the figures equal a plain reference, and measuring them changes nothing."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from losses.proxy_queue import FeatureQueue
from losses.quality import Partition, QualityStatistics, ViewPartition
from recognition.data.augment import SCALE_DRAW, UNIFORMS
from recognition.monitor.diagnostics import FILE, DifferencesFile, describe_norms, norms_by_kind
from recognition.monitor.pictures import HIGH_QUALITY, LOW_QUALITY, sheet_of_pairs
from recognition.monitor.queue_drift import Drift, measure_drift
from recognition.snapshot import batch_statistics
from recognition.trainer import Trainer
from tests.commands import metrics
from tests.shared_files import ROOT
from tests.world import run_world
from utils import config, dist
from utils.errors import UserError
from utils.randomness import uniforms

COMMON = ("max_steps=4", "num_workers=0", "frequent=1")
DIAGNOSING = ("dropout=0.3", "gradient_acc=2", "max_steps=2", "save_every=2")
CONSTANT = ("lr=1e-9", "queue_size=100", "diagnose_every=2")
SYNCED = ("sync_bn=True", "lr=0.002", "diagnose_every=2", "save_every=2")
ORIGINALS = ("queue=momentum", "momentum_views=augmented", "queue_momentum=0.5", "partition=scale", "quality_threshold=0.25")
RUNS = {  # number of ranks -> (output folder, settings), one after the other in the same processes
    1: [
        ("diagnoses1", (*DIAGNOSING, "diagnose_every=1")), ("plain1", (*DIAGNOSING, "diagnose_every=0")), ("constant1", CONSTANT),
        ("synced1", SYNCED), ("batch", ("queue=batch", "diagnose_every=2")),
        ("momentum", ("queue=momentum", "queue_momentum=0.5", "diagnose_every=2")),
        ("originals1", (*SYNCED, *ORIGINALS)),
        ("none", ("queue=none", "views=1", "diagnose_every=2")),
    ],
    2: [
        ("diagnoses2", (*DIAGNOSING, "diagnose_every=1")), ("plain2", (*DIAGNOSING, "diagnose_every=0")), ("constant2", CONSTANT),
        ("synced2", (*SYNCED, "max_steps=3")), ("synced2", SYNCED), ("originals2", (*SYNCED, *ORIGINALS)),
    ],
}  # fmt: skip


def _train_all(folder: str, demo_set: str) -> None:
    """Train in this rank; the tests read the output folders afterwards."""
    rank, size = dist.rank_and_world()
    world = dist.World(rank, size, rank, size, torch.device("cpu"))
    for name, settings in RUNS[size]:
        arguments = [f"rec={demo_set}", f"output={folder}/{name}", *COMMON, *settings]
        Trainer(config.load(str(ROOT / "tests/tiny_config"), arguments), world).run()


@pytest.fixture(scope="module")
def runs(demo_set, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for ranks in RUNS:
        run_world(ranks, _train_all, str(folder), str(demo_set), timeout=300)
    return folder


def _differences(output: Path) -> dict[str, dict[str, list]]:
    return json.loads((output / FILE).read_text())


def _state(output: Path) -> dict[tuple[str, str], torch.Tensor]:
    (folder,) = (output / "checkpoints").glob("step-*2")
    return {(file.name, name): value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def _training(output: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in ("time", "images_per_second")} for line in metrics(output)]


# ------------------------------------------------------------------------------------------------ in whole runs


@pytest.mark.parametrize("ranks", [1, 2])
def test_diagnostics_change_nothing(runs, ranks):
    """Per-rank BatchNorm, dropout, accumulated gradients: bit for bit as in the run without diagnostics."""
    diagnoses, plain = runs / f"diagnoses{ranks}", runs / f"plain{ranks}"
    with_diagnoses, without = _state(diagnoses), _state(plain)
    assert with_diagnoses.keys() == without.keys() and any("running_mean" in name for _, name in without)
    assert [name for name in without if not torch.equal(with_diagnoses[name], without[name])] == []
    assert _training(diagnoses) == _training(plain)
    assert _differences(diagnoses)["proxy, as stored"]["steps"] == [1, 2]
    assert not (plain / FILE).exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_with_constant_weights_an_entry_equals_its_fresh_feature(runs, ranks):
    """24 entries per step, 100 in the queue: a diagnosis every two steps compares with the batch of two updates ago."""
    folder = runs / f"constant{ranks}"
    assert set(_differences(folder)) == {"proxy, as stored", "proxy, compensated"}
    for curves in _differences(folder).values():
        assert curves["steps"] == [2, 4] and curves["age"] == [2, 2]
        assert curves["cosine"] == pytest.approx([1, 1], abs=1e-6)
        assert all(0 < positive < negative for positive, negative in zip(curves["positive"], curves["negative"], strict=True))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    diagnosed = [line for line in lines if "diagnostics/threshold_norm" in line]
    assert [line["step"] for line in diagnosed] == [2, 4]
    for line in diagnosed:
        assert 0 <= line["diagnostics/augmented/high_quality_share"] <= 1
        assert line["diagnostics/original/norm_p05"] < line["diagnostics/original/norm_p95"]


def test_figures_do_not_depend_on_the_number_of_ranks_or_on_an_interruption(runs):
    """Two ranks that stopped and resumed report the figures of one process that never stopped."""
    one, two = _differences(runs / "synced1"), _differences(runs / "synced2")
    assert one.keys() == two.keys() == {"proxy, as stored", "proxy, compensated"}
    for name in one:
        assert one[name]["steps"] == two[name]["steps"] == [2, 4]
        for key in ("positive", "negative", "cosine"):
            assert one[name][key] == pytest.approx(two[name][key], rel=0.01)
    assert min(one["proxy, as stored"]["cosine"]) < 1 - 1e-5, "the weights have moved"


def test_queues_without_proxies_and_runs_without_queue(runs):
    assert list(_differences(runs / "batch")) == ["batch"]
    (curves,) = _differences(runs / "momentum").values()
    assert all(0 < cosine < 1 for cosine in curves["cosine"]), "entries are the momentum encoder's"
    assert not (runs / "none" / FILE).exists()
    lines = (runs / "none" / "metrics.jsonl").read_text()
    assert "diagnostics/augmented/high_quality_share" in lines and "original" not in lines


def test_the_encoder_learns_from_originals_alone_on_any_number_of_ranks(runs):
    """The momentum encoder's features of the augmented views, 12 per step, fill the queue of 40. A diagnosis every
    two steps compares the batch of the step before."""
    (one,), (two,) = (_differences(runs / f"originals{ranks}").values() for ranks in (1, 2))
    assert one["steps"] == two["steps"] == [2, 4] and one["age"] == [2, 2]
    assert one["cosine"] == pytest.approx(two["cosine"], rel=0.01) and 0 < min(one["cosine"]) < 1
    assert one["own_key"] == [None, None], "no originals in the queue"
    alone, together = (metrics(runs / f"originals{ranks}") for ranks in (1, 2))
    assert all(line["loss_contrastive"] != 0 and line["high_quality_share"] == 1 for line in alone)
    draws_NG = [uniforms(3, 0, np.arange(12) + 12 * step, UNIFORMS)[:, SCALE_DRAW] for step in range(4)]
    shares = [line["low_quality_pair_share"] for line in alone]
    assert shares == pytest.approx([np.mean(draws_G <= 0.25) for draws_G in draws_NG])
    diagnosed = [json.loads(line) for line in (runs / "originals2" / "metrics.jsonl").read_text().splitlines()]
    assert shares[::2] == pytest.approx(
        [line[key] for line in diagnosed if (key := "diagnostics/low_quality_pair_share") in line]
    )
    for key in ("loss_classification", "loss_contrastive", "high_quality_share", "norm_mean"):
        assert [line[key] for line in alone] == pytest.approx([line[key] for line in together], rel=0.01), key


def test_tensorboard_has_norms_by_quality_pairs_and_gradient_scale(runs):
    board = EventAccumulator(str(runs / "constant1" / "tensorboard")).Reload()
    histograms = {f"norms/{kind}" for kind in ("augmented", "original", "high_quality", "low_quality")}
    assert set(board.Tags()["histograms"]) <= histograms and "norms/high_quality" in board.Tags()["histograms"]
    for name in ("pairs/HQ_blue_LQ_orange", "gradient_scale"):
        assert [image.step for image in board.Images(name)] == [2], "once within ten diagnoses"
    assert not EventAccumulator(str(runs / "plain1" / "tensorboard")).Reload().Tags()["images"]


def test_pairs_are_sorted_by_quality_and_framed_by_the_partition():
    shade_VB = torch.tensor([[10, 20, 30], [40, 50, 60]], dtype=torch.uint8)
    images = shade_VB[:, :, None, None, None].expand(2, 3, 8, 8, 3)
    quality = torch.tensor([[-0.9, 0.1, 0.5], [0.9, 0.3, 0.2]])
    sheet = sheet_of_pairs(images, quality, quality > -0.5)
    assert sheet.shape == (2 * 16, 3 * 16, 3)
    assert sheet[8, 8::16, 0].tolist() == [60, 50, 40] and sheet[24, 8::16, 0].tolist() == [30, 20, 10]
    framed = {(row, column): tuple(sheet[16 * row, 16 * column]) for row in range(2) for column in range(3)}
    assert framed.pop((1, 2)) == LOW_QUALITY and set(framed.values()) == {HIGH_QUALITY}
    assert sheet_of_pairs(images[:1], quality[:1], quality[:1] > -0.5).shape == (16, 3 * 16, 3)


def test_norms_by_kind_leave_out_empty_kinds():
    norm_VR, high_VR = torch.tensor([[1.0, 4.0], [2.0, 3.0]]), torch.tensor([[False, True], [True, True]])
    kinds = {kind: norms.tolist() for kind, norms in norms_by_kind(norm_VR, high_VR).items()}
    assert kinds == {"augmented": [1, 4], "original": [2, 3], "high_quality": [4, 2, 3], "low_quality": [1]}
    assert "low_quality" not in norms_by_kind(norm_VR, torch.ones_like(high_VR))


# ------------------------------------------------------------------------------------------------ the figures


VIEWS, IMAGES, DIM, CLASSES, SIZE, STEPS = 2, 10, 6, 7, 50, 5
KEPT = (4, 2, 0)


def _steps() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Features [V, G, D], labels [G] and the whole classifier [C, D] per step."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(VIEWS, IMAGES, DIM, generator=generator) * 9, torch.randint(0, CLASSES, (IMAGES,), generator=generator),
         torch.randn(CLASSES, DIM, generator=generator)) for _ in range(STEPS + 1)
    ]  # fmt: skip


def _measured_by_ranks(kept: int, wrong_labels: bool) -> dict[str, Drift]:
    shard = dist.shard_range(CLASSES)
    queue = FeatureQueue(SIZE, DIM, shard)
    *steps, (fresh_VGD, _, now_CD) = _steps()
    for feature_VGD, label_G, weight_CD in steps:
        queue.enqueue(feature_VGD.flatten(0, 1), label_G.repeat(VIEWS), lambda labels, w=weight_CD: w[labels])
    label_G = steps[kept][1] if not wrong_labels else steps[kept][1] + 1
    return measure_drift(queue, lambda labels: now_CD[labels], fresh_VGD, label_G, label_G, kept * VIEWS * IMAGES)


def _expected(kept: int, compensated: bool) -> Drift:
    """One entry and one query at a time."""
    *steps, (fresh_VGD, _, now_CD) = _steps()
    entries = [
        (step, view, image, feature_VGD[view, image], int(label_G[image]), weight_CD[label_G[image]])
        for step, (feature_VGD, label_G, weight_CD) in enumerate(steps)
        for view in range(VIEWS) for image in range(IMAGES)
    ][-SIZE:]  # fmt: skip
    positive, negative, itself, own_key = [], [], [], []
    for step, view, image, feature, label, then in entries:
        if compensated:
            feature = feature + feature.norm() / then.norm() * (now_CD[label] - then)
        if step == kept:
            itself.append(float(F.cosine_similarity(feature, fresh_VGD[view, image], dim=0)))
            if view == 1:
                own_key.append(1 - float(F.cosine_similarity(feature, fresh_VGD[0, image], dim=0)))
        for query, query_label in enumerate(steps[kept][1].tolist()):
            difference = 1 - float(F.cosine_similarity(feature, fresh_VGD[0, query], dim=0))
            if query_label != label:
                negative.append(difference)
            elif (step, image) != (kept, query):
                positive.append(difference)
    return Drift(*(sum(values) / len(values) if values else math.nan for values in (positive, negative, itself, own_key)))


def _measured(kept: int) -> dict[str, list[float]]:
    return {kind: list(astuple(drift)) for kind, drift in _measured_by_ranks(kept, wrong_labels=False).items()}


def _measured_all() -> list[dict[str, list[float]]]:
    assert _measured_by_ranks(4, wrong_labels=True) == {}
    return [_measured(kept) for kept in KEPT]


@pytest.mark.parametrize("ranks", [1, 2])
def test_drift_equals_a_plain_reference(ranks):
    """Step 4 is the newest; half of step 2 and all of step 0 have left the queue."""
    for measured in run_world(ranks, _measured_all):
        for kept, found in zip(KEPT, measured, strict=True):
            assert set(found) == {"as stored", "compensated"}
            for kind, drift in found.items():
                expected = _expected(kept, compensated=kind == "compensated")
                assert drift == pytest.approx(astuple(expected), abs=1e-5, nan_ok=True)
    assert math.isnan(_expected(0, False).cosine) and not math.isnan(_expected(2, False).cosine)


def test_description_of_norms():
    quality, partition = QualityStatistics(0.333, 0.01, 20.0, 2.0), Partition(0.2)
    norm_VR = torch.stack([torch.linspace(10, 20, 101), torch.linspace(15, 25, 101)])
    found = describe_norms(norm_VR, quality, partition)
    assert found["threshold_norm"] == pytest.approx(20 + 2.001 / 0.333 * (2 * 0.2 - 1))
    high = norm_VR > found["threshold_norm"]
    assert found["augmented/high_quality_share"] == pytest.approx(float(high[0].float().mean()))
    assert found["original/high_quality_share"] == pytest.approx(float(high[1].float().mean()))
    assert 0 < found["augmented/high_quality_share"] < found["original/high_quality_share"] < 1
    assert found["low_quality_pair_share"] == pytest.approx(1 - float(high.all(dim=0).float().mean()))
    assert found["augmented_norm_smaller_share"] == 1.0
    two_of_three = describe_norms(torch.tensor([[1.0, 4, 3], [2, 3, 4]]), quality, partition)
    assert two_of_three["augmented_norm_smaller_share"] == pytest.approx(2 / 3)
    assert (found["augmented/norm_p05"], found["original/norm_p50"]) == pytest.approx((10.5, 20.0))
    assert "threshold_norm" not in describe_norms(norm_VR, quality, Partition(None))
    by_view = describe_norms(norm_VR, quality, ViewPartition())
    assert (by_view["augmented/high_quality_share"], by_view["original/high_quality_share"]) == (0.0, 1.0)


def test_batch_statistics_leave_no_trace():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()).train()
    encoder[2].eval()  # a frozen part stays frozen
    images = torch.randn(5, 3, 8, 8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    with batch_statistics(encoder), torch.no_grad():
        inside = encoder(images)
    assert torch.equal(inside, encoder(images))  # training's own forward pass
    encoder.load_state_dict(before)
    with batch_statistics(encoder), torch.no_grad():
        encoder(images)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert [module.training for module in encoder.modules()] == [True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_file_of_differences(tmp_path):
    file = DifferencesFile(tmp_path / FILE, first_step=0)
    for step in (10, 20, 30):
        file.add("proxy", step, 3, Drift(math.nan, step / 10, 0.5, 1.0))
    file.write()
    again = DifferencesFile(tmp_path / FILE, first_step=20)
    expected = {"steps": [10, 20], "age": [3, 3], "positive": [None, None], "negative": [1.0, 2.0], "cosine": [0.5, 0.5],
                "own_key": [1.0, 1.0]}  # fmt: skip
    assert again.curves == {"proxy": expected}
    del again.curves["proxy"]["own_key"]  # as an earlier version wrote it
    again.add("proxy", 40, 3, Drift(0.1, 0.2, 0.3, 0.4))
    assert again.curves["proxy"]["own_key"] == [None, None, 0.4]
    (tmp_path / FILE).write_text('{"proxy": [')
    with pytest.raises(UserError, match="cannot be read"):
        DifferencesFile(tmp_path / FILE, first_step=20)
    assert DifferencesFile(tmp_path / FILE, first_step=0).curves == {} and not (tmp_path / FILE).exists()
