"""Operating points: thresholds by FMR, their intervals and tables, `eval threshold`, and thresholds in exported files."""

from __future__ import annotations

import json
import math
import pickle

import cv2
import numpy as np
import pytest
import torch

from eval.operating import (
    FMRS,
    is_measurable,
    operating_metrics,
    operating_point,
    points_of,
    rate_label,
    require_measurable,
    wilson_interval,
)
from eval.present.plots import draw_det
from eval.present.style import save_figure
from eval.present.tables import operating_table, read_results, write_results
from eval.roc import roc_curve
from eval.verification import cosine_of, ten_fold
from recognition.encoders.card import EncoderCard
from recognition.encoders.thresholds import Threshold, deploy, thresholds_of_run
from tests.eval_commands import run_eval
from utils import dist
from utils.errors import UserError


def scored_pairs(pairs: int = 4000, levels: int = 100_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    issame = generator.random(pairs) < 0.3
    return np.round((generator.normal(size=pairs) + 2 * issame) * levels) / levels, issame


@pytest.fixture
def alone():
    dist.start()
    yield
    dist.stop()


@pytest.mark.parametrize("levels", [5, 50, 100_000])
@pytest.mark.parametrize("fmr", [0.5, 0.1, 0.01, 3.7e-3, 1e-5])
def test_the_threshold_is_the_best_that_keeps_the_fmr(levels, fmr):
    scores, issame = scored_pairs(levels=levels)
    point = operating_point(roc_curve(scores, issame), fmr)
    allowed = [t for t in (*np.unique(scores), math.inf) if np.mean(scores[~issame] >= t) <= fmr]
    assert point.threshold in allowed and point.fmr == np.mean(scores[~issame] >= point.threshold) <= fmr
    assert point.fnmr == pytest.approx(np.mean(scores[issame] < point.threshold), abs=1e-12)
    assert point.fnmr == pytest.approx(min(np.mean(scores[issame] < t) for t in allowed), abs=1e-12)
    assert point.interval[0] <= point.fnmr <= point.interval[1]


def test_an_fmr_that_pairs_meet_exactly_is_met():
    scores, issame = np.arange(3000.0), np.arange(3000) >= 2000
    scores[:2000] += np.where(np.arange(2000) >= 1980, 1500, 0)  # 20 of 2,000 different pairs are among the same ones
    point = operating_point(roc_curve(scores, issame), 0.01)
    assert point.fmr == 0.01 and point.fnmr == 0.0


def test_wilsons_interval_has_the_published_values():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for errors, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(errors / trials, trials) == pytest.approx((low, high), abs=5e-5)


def test_rates_that_pairs_cannot_measure_are_null_and_named(tmp_path):
    assert [rate_label(rate) for rate in (0.1, 1e-4, 1.5e-3, 1e-6)] == ["1e-1", "1e-4", "1.5e-3", "1e-6"]
    assert is_measurable(1e-3, 10_000) and not is_measurable(1e-3, 9_999) and is_measurable(0.1, 100)
    scores, issame = scored_pairs()
    roc = roc_curve(scores, issame)
    metrics = operating_metrics(points_of(roc))
    for fmr in FMRS:
        found = [
            metrics[f"{name}{rate_label(fmr)}{end}"]
            for name, end in (("threshold@fmr=", ""), ("fnmr@fmr=", ""), ("fnmr@fmr=", " low"))
        ]
        assert all((value is None) == (fmr < 1e-2) for value in found)
    write_results(tmp_path / "r.json", {"set": metrics})
    assert json.loads((tmp_path / "r.json").read_text())["set"]["threshold@fmr=1e-3"] is None
    assert read_results(tmp_path / "r.json") == {"set": {name: value for name, value in metrics.items() if value is not None}}
    shown = str(operating_table({"a": metrics, "b": metrics}))
    assert shown.count("≤ 1e-3") == 2 and shown.count("Not measurable: FMR x needs 10/x pairs") == 1
    with pytest.raises(
        UserError, match=r"lfw: 300 different pairs cannot measure FMR 1e-4, which needs 100,000 .*use --fmr 3.4e-2"
    ):
        require_measurable(1e-4, 300, "lfw")
    for fmr in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(UserError, match="must be a rate above 0"):
            require_measurable(fmr, 300, "lfw")


def test_encoders_that_distinguish_nobody_have_no_threshold():
    metrics = ten_fold(np.ones((400, 4), np.float32), np.arange(200) % 2 == 0).metrics()
    assert metrics["threshold@fmr=1e-1"] is None and metrics["fnmr@fmr=1e-1"] == 1.0
    assert "–" in str(operating_table({"set": metrics}))


def test_thresholds_are_cosines(tmp_path):
    generator = np.random.default_rng(0)
    first = generator.normal(size=(400, 16))
    issame = np.arange(400) % 2 == 0
    rows = np.stack([first, np.where(issame[:, None], first, 0) + generator.normal(size=first.shape)], 1).reshape(800, 16)
    found = ten_fold(rows, issame)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (unit[0::2] * unit[1::2]).sum(axis=1)
    metrics = found.metrics()
    threshold = metrics["threshold@fmr=1e-1"] - 1e-9
    assert np.mean(cosines[~issame] >= threshold) <= 0.1
    assert np.mean(cosines[issame] < threshold) == pytest.approx(metrics["fnmr@fmr=1e-1"])
    assert np.mean(cosines[issame] < metrics["similarity_threshold"]) == pytest.approx(metrics["fnmr@similarity_threshold"])
    assert np.mean(cosines[~issame] > metrics["similarity_threshold"]) == pytest.approx(metrics["fmr@similarity_threshold"])
    assert cosine_of(-0.5) == 0.75


def test_det_plot_is_drawn(tmp_path):
    curves = {
        "large": roc_curve(*scored_pairs(200_000)),
        "small": roc_curve(*scored_pairs(50)),
        "perfect": roc_curve(np.arange(40.0), np.arange(40) > 20),
    }
    png, svg = save_figure(draw_det(curves), tmp_path / "det")
    assert cv2.imread(str(png)).shape[1] > 1000 and svg.stat().st_size < 500_000


# -------------------------------------------------------------------------------------------------- thresholds of encoders


def test_thresholds_travel_with_the_encoder(tmp_path):
    names = (
        "similarity_threshold",
        "fmr@similarity_threshold",
        "fnmr@similarity_threshold",
        "threshold@fmr=1e-1",
        "fnmr@fmr=1e-1",
    )
    figures = {"a": (0.4, 0.1, 0.2, 0.3, 0.5), "b": (0.6, 0.3, 0.4, 0.35, 0.6)}
    results = {name: {**dict(zip(names, values, strict=True)), "threshold@fmr=1e-2": None} for name, values in figures.items()}
    write_results(tmp_path / "results.json", results)
    balanced, at_fmr = thresholds_of_run(tmp_path)
    assert (balanced.cosine, balanced.fmr, balanced.fnmr) == pytest.approx((0.5, 0.2, 0.3))
    assert at_fmr == Threshold("fmr=1e-1", 0.35, 0.1, 0.6, "b")  # the highest holds on both sets
    deploy(tmp_path, 0.55, 1e-3, 0.7, "a, b")
    first, *others = thresholds_of_run(tmp_path)
    assert first == Threshold("deployed", 0.55, 1e-3, 0.7, "a, b") and others == [balanced, at_fmr]
    for dtype in (torch.float32, torch.bfloat16):
        encoder = torch.nn.BatchNorm2d(2, dtype=dtype)
        deploy(tmp_path, 0.55, 1e-3, 0.7, "a, b", encoder)
        assert thresholds_of_run(tmp_path, encoder)[0] == first
        encoder.running_mean[1] += 1e-2
        with pytest.raises(UserError, match=r"threshold\.json: was measured for other weights; run `eval threshold"):
            thresholds_of_run(tmp_path, encoder)
    card = EncoderCard("tiny", 512, "RGB", thresholds=(first, *others))
    metadata = card.to_metadata()
    assert EncoderCard.from_metadata(metadata, "f") == card
    for text in (
        "{",
        "[1]",
        '[{"name": "x"}]',
        '[{"name": "x", "cosine": 2, "fmr": null, "fnmr": null, "sets": ""}]',
        "[" * 100_000,
    ):
        with pytest.raises(UserError, match="f: its metadata cannot be read"):
            EncoderCard.from_metadata({**metadata, "thresholds": text}, "f")
    del metadata["thresholds"]  # as written before thresholds were
    assert EncoderCard.from_metadata(metadata, "f") == EncoderCard("tiny", 512, "RGB")
    (tmp_path / "threshold.json").write_text('{"a": {"threshold": 3, "fmr": 0.1, "fnmr": 0.1}}')
    with pytest.raises(UserError, match=r"threshold\.json: not a threshold"):
        thresholds_of_run(tmp_path)


def cells(images: torch.Tensor) -> torch.Tensor:
    return images.float().view(-1, 7, 16, 7, 16, 3).mean(dim=(2, 4)).flatten(1) - 127


def write_set(path, pairs: int = 200, noise: int = 90, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (pairs, 2, 7, 7, 3))
    issame = np.arange(pairs) % 2 == 0
    blocks[issame, 1] = (blocks[issame, 0] + generator.normal(0, noise, (int(issame.sum()), 7, 7, 3))).clip(0, 255)
    images = [
        cv2.resize(each.astype(np.uint8), (112, 112), interpolation=cv2.INTER_NEAREST) for each in blocks.reshape(-1, 7, 7, 3)
    ]
    path.write_bytes(pickle.dumps(([cv2.imencode(".png", image)[1].tobytes() for image in images], issame.tolist())))


def test_threshold_command_and_compare(alone, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out.json"
    (run / "checkpoints").mkdir(parents=True)
    for name, noise in (("easy", 60), ("hard", 150)):
        write_set(tmp_path / f"{name}.bin", noise=noise)
    bins = [tmp_path / "easy.bin", tmp_path / "hard.bin"]
    run_eval(cells, "threshold", run, "--bins", *bins, "--fmr", "0.05", "--json", out, "--deploy")
    shown, figures = capsys.readouterr().out, json.loads(out.read_text())
    chosen = figures["threshold"]
    assert "accept if the cosine" in shown and "FMR at most 5e-2" in shown
    assert figures["easy"]["fnmr"] < figures["hard"]["fnmr"] and chosen["fmr"] <= 0.05
    assert chosen["fnmr"] == pytest.approx((figures["easy"]["fnmr"] + figures["hard"]["fnmr"]) / 2)
    assert chosen["fmr"] == pytest.approx((figures["easy"]["fmr"] + figures["hard"]["fmr"]) / 2)
    for name, value in (("a", 20), ("b", 200)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((112, 112, 3), value, np.uint8))
    photos = [tmp_path / "a.png", tmp_path / "b.png"]
    run_eval(cells, "compare", *photos, "--checkpoint", run, "--json", out)
    shown, compared = capsys.readouterr().out, json.loads(out.read_text())["compare"]
    assert compared["threshold"] == chosen["threshold@fmr=5e-2"] and (compared["fmr"], compared["fnmr"]) == (0.05, chosen["fnmr"])
    assert "deployed, measured on easy, hard" in shown and "FMR 5 %, FNMR" in shown and compared["same"] == 0.0
    run_eval(cells, "compare", *photos, "--checkpoint", run, "--fmr", "0.05")
    with pytest.raises(UserError, match=r"has no threshold for FMR 1e-3 \(it has: deployed"):
        run_eval(cells, "compare", *photos, "--checkpoint", run, "--fmr", "1e-3")
    with pytest.raises(UserError, match="easy hard: 200 different pairs cannot measure FMR 1e-4"):
        run_eval(cells, "threshold", run, "--bins", *bins, "--fmr", "1e-4")
    with pytest.raises(UserError, match=r"--deploy: .*is not a run's folder"):
        run_eval(cells, "threshold", tmp_path / "x.onnx", "--bins", *bins, "--fmr", "0.1", "--deploy")
