"""Every pair of a labelled set, against brute force; `eval verify --all-pairs` and `eval threshold --all-pairs`."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.operating import is_measurable
from eval.present.tables import read_results
from eval.protocols import all_pairs
from eval.protocols.all_pairs import GROUPS, PERCENTILES, count_different, count_pairs
from eval.roc import roc_curve
from recognition.data.dataset import FaceDataset
from recognition.data.records.writer import RecordWriter
from tests.eval_commands import run_eval
from tests.test_operating import cells
from utils import dist
from utils.errors import UserError


@pytest.fixture
def alone():
    dist.start()
    yield
    dist.stop()


def labelled_rows(ties: bool, images: int = 150, identities: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and qualities; with `ties`, of 64 components +-1, whose cosines are multiples of 1/32."""
    generator = np.random.default_rng(int(ties))
    labels = generator.integers(0, identities, images)
    rows = generator.standard_normal((identities, 64))[labels] + 1.5 * generator.standard_normal((images, 64))
    rows = np.sign(rows) if ties else rows * generator.uniform(1, 9, (images, 1))
    return rows.astype(np.float32), labels, np.round(generator.uniform(0, 5, images), 1)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("block", [64, 2048])
def test_counts_equal_brute_force(ties, block, monkeypatch):
    monkeypatch.setattr(all_pairs, "_BLOCK", block)
    rows, labels, quality = labelled_rows(ties)
    found = count_pairs(rows, labels, quality, "set")
    unit = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    i, j = np.triu_indices(len(rows), 1)
    scores, issame = np.round((unit @ unit.T)[i, j] * 2**20) / 2**20, labels[i] == labels[j]
    roc = roc_curve(scores, issame)
    assert (found.roc.same_pairs, found.roc.different_pairs) == (roc.same_pairs, roc.different_pairs)
    assert count_different(labels) == roc.different_pairs and found.roc.auc == pytest.approx(roc.auc, abs=1e-12 if ties else 1e-6)
    for fmr, point in found.points:
        assert (point is not None) == is_measurable(fmr, roc.different_pairs)
        if point is not None:
            allowed = [t for t in np.append(np.unique(scores), np.inf) if np.mean(scores[~issame] >= t) <= fmr]
            assert point.fnmr == pytest.approx(min(np.mean(scores[issame] < t) for t in allowed), abs=1e-12)
            assert point.fnmr == pytest.approx(np.mean(scores[issame] < point.threshold - 1e-6), abs=1e-12)
            assert point.fmr == pytest.approx(np.mean(scores[~issame] >= point.threshold - 1e-6), abs=1e-12)
            assert point.interval[0] <= point.fnmr <= point.interval[1]
    worst = np.empty(len(rows), int)
    worst[np.argsort(-quality, kind="stable")] = np.arange(len(rows)) * 3 // len(rows)
    for group in (None, 0, 1, 2):
        chosen = scores[~issame & ((np.maximum(worst[i], worst[j]) == group) | (group is None))]
        for percent in PERCENTILES:
            expected = np.quantile(chosen, percent / 100, method="inverted_cdf")
            measurable = is_measurable(1 - percent / 100, len(chosen))
            assert found.percentile(percent, group) == (pytest.approx(expected, abs=1e-6) if measurable else None)
    named = count_pairs(rows, labels, -quality, "set", groups=(["good", "fair", "poor"], worst))
    assert (named.different_GK == found.different_GK).all() and list(named.metrics()) == ["", "good", "fair", "poor"]


def test_intervals_allow_for_pairs_of_one_identity():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 12)
    bad = labels < 5  # all pairs of five people are missed: identities, not pairs, are the sample
    rows = np.where(bad[:, None], 0.0, generator.standard_normal((20, 128))[labels]) + 0.9 * generator.standard_normal((240, 128))
    (point,) = count_pairs(rows.astype(np.float32), labels, np.ones(240), "set").points_at([1e-2])
    low, high = point.interval
    assert low < 0.13 and high > 0.42 and 0.2 < point.fnmr < 0.3  # of 1,320 independent pairs, 0.23 to 0.28


def test_sets_without_pairs_of_both_kinds_are_named():
    rows = np.eye(4, dtype=np.float32)
    for labels, message in (
        ([1, 1, 1, 1], "set: shows one identity only"),
        ([0, 1, 2, 3], "set: has one image of each identity"),
    ):
        with pytest.raises(UserError, match=message):
            count_pairs(rows, np.array(labels), np.ones(4), "set")


def write_people(folder: Path, identities: int = 8, images: int = 10) -> None:
    """A packed set of coloured blocks, in insightface's layout without identity records."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    with RecordWriter(folder / "train.rec") as writer:
        for label in range(identities):
            face = generator.integers(0, 256, (7, 7, 3))
            for image in range(images):
                noisy = (face + generator.normal(0, 90, face.shape)).clip(0, 255).astype(np.uint8)
                large = cv2.resize(noisy, (112, 112), interpolation=cv2.INTER_NEAREST)
                writer.write(label * images + image, label, cv2.imencode(".png", large)[1].tobytes())


def test_commands_compare_every_pair(alone, tmp_path, capsys):
    write_people(tmp_path / "people")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    out = tmp_path / "out.json"
    run_eval(
        cells, "verify", "--checkpoint", tmp_path / "run", "--all-pairs", tmp_path / "people", "--json", out, "--cache", tmp_path
    )
    shown, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert "people: 80 images, 360 same and 2,800 different pairs" in shown and "high norm" in shown
    assert figures["people"]["threshold@fmr=1e-2"] is not None and figures["people"]["fnmr@fmr=1e-3"] is None
    assert figures["people"]["impostor_p99.9"] is None and set(figures) == {"people", *(f"people {group}" for group in GROUPS)}
    assert sum(figures[f"people {group}"]["different_pairs"] for group in GROUPS) == 2800
    assert (tmp_path / "run/eval/det_all_pairs.svg").is_file()
    assert read_results(out)["people"]["identities"] == 8
    people, csv = ["verify", "--checkpoint", tmp_path / "run", "--all-pairs", tmp_path / "people"], tmp_path / "groups.csv"
    csv.write_text("image,group\n" + "".join(f"{image},{'day' if image < 60 else 'night'}\n" for image in range(80)))
    run_eval(cells, *people, "--groups", csv, "--json", out, "--cache", tmp_path)
    assert json.loads(out.read_text())["people day"]["different_pairs"] == 60 * 50 // 2
    assert "night" in capsys.readouterr().out
    csv.write_text("image,group\n0,\n")
    with pytest.raises(UserError, match=r"groups\.csv: line 2: the group has no name"):
        run_eval(cells, *people, "--groups", csv)
    with pytest.raises(UserError, match="--groups needs --all-pairs"):
        run_eval(cells, *people[:3], "--bins", tmp_path / "a.bin", "--groups", csv)
    arguments = ["--all-pairs", tmp_path / "people/train.rec", "--fmr"]
    run_eval(cells, "threshold", tmp_path / "run", *arguments, "0.01", "--json", out)
    chosen = json.loads(out.read_text())["threshold"]
    assert chosen["threshold@fmr=1e-2"] == pytest.approx(figures["people"]["threshold@fmr=1e-2"], abs=2e-6)
    with pytest.raises(UserError, match=r"train\.rec: 2,800 different pairs cannot measure FMR 1e-4"):
        run_eval(cells, "threshold", tmp_path / "run", *arguments, "1e-4")
    for name, message in (("a.bin", "has pairs, but no identities"), ("gone", "no such file or folder")):
        with pytest.raises(UserError, match=message):
            run_eval(cells, "verify", "--checkpoint", tmp_path / "run", "--all-pairs", tmp_path / name)
    write_people(tmp_path / "one", identities=1)
    with pytest.raises(UserError, match="one: shows one identity only"):
        run_eval(cells, "verify", "--checkpoint", tmp_path / "run", "--all-pairs", tmp_path / "one")


def test_bins_with_identities_are_labelled_sets(alone, tmp_path, capsys):
    """`eval all` compares every pair of such a set too; an image that several pairs share counts once."""
    write_people(tmp_path / "people", identities=3, images=4)
    data = FaceDataset(tmp_path / "people")
    rows = 3 * [0, 1, 4, 5, 0, 4, 8, 9]
    encoded = [data.read(row)[0] for row in rows]
    (tmp_path / "pairs.bin").write_bytes(pickle.dumps((encoded, 3 * [True, True, False, True])))
    common = ("all", "--checkpoint", tmp_path / "x.onnx", "--data-root", tmp_path, "--json", tmp_path / "out.json")
    with pytest.raises(UserError, match=r"needs pairs\.labels\.txt next to it"):
        run_eval(cells, *common, "--all-pairs", tmp_path / "pairs.bin")
    (tmp_path / "pairs.labels.txt").write_text("".join(f"{row // 4}\n" for row in rows[1:]))
    with pytest.raises(UserError, match="23 identities for the 24 images"):
        run_eval(cells, *common, "--all-pairs", tmp_path / "pairs.bin")
    (tmp_path / "pairs.labels.txt").write_text("".join(f"{row // 4}\n" for row in rows))
    with pytest.raises(UserError, match="has the name of another benchmark, people"):
        run_eval(cells, *common, "--all-pairs", tmp_path / "people", tmp_path / "people")
    run_eval(cells, *common, "--all-pairs", tmp_path / "people", tmp_path / "pairs.bin")
    assert "pairs_faces: 6 images, 3 same and 12 different pairs" in capsys.readouterr().out
    assert {"pairs", "people", "pairs_faces", "pairs_faces low"} <= json.loads((tmp_path / "out.json").read_text()).keys()


def test_folders_of_photographs_are_labelled_sets(alone, tmp_path, capsys):
    write_people(tmp_path / "packed", identities=3, images=4)
    data = FaceDataset(tmp_path / "packed")
    for image in range(len(data)):
        encoded, label = data.read(image)
        (tmp_path / f"people/{label}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"people/{label}/{image}.png").write_bytes(encoded)
    run_eval(cells, "verify", "--checkpoint", tmp_path / "x.onnx", "--all-pairs", tmp_path / "people")
    assert "people: 12 images, 18 same and 48 different pairs" in capsys.readouterr().out
