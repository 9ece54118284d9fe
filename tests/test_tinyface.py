"""TinyFace: which images count, figures against a plain loop, real faces, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.protocols.bootstrap import rank_interval
from eval.protocols.identification import search_metrics
from eval.protocols.tinyface import DISTRACTOR, PARTS, RANKS, find_tinyface
from tests.shared_files import FACES, needs_faces
from utils.errors import UserError

NAMES = {
    "Probe": ["3_2.jpg", "4_2.png"],
    "Gallery_Match": ["3_1.jpg", "4_1.JPG", "4_3.jpg"],
    "Gallery_Distractor": ["x-1.jpg", "9.jpg"],
}


def lay_out(root: Path, names: dict[str, list[str]], *folders: str) -> Path:
    for folder in folders:
        for part, files in names.items():
            (root / folder / part).mkdir(parents=True)
            for file in files:
                (root / folder / part / file).write_bytes(b"")
    return root


ALIGNED, PROTOCOL = "aligned_pad_0.1_pad_high", "tinyface/Testing_Set"


def test_images_and_labels(tmp_path):
    data = find_tinyface(lay_out(tmp_path, NAMES, ALIGNED))
    assert [path.name for path in data.images] == ["3_2.jpg", "4_2.png", "3_1.jpg", "4_1.JPG", "4_3.jpg", "9.jpg", "x-1.jpg"]
    assert data.labels.tolist() == [3, 4, 3, 4, 4, DISTRACTOR, DISTRACTOR] and data.probes == 2
    assert find_tinyface(tmp_path / ALIGNED).labels.tolist() == data.labels.tolist()  # the aligned folder itself


def test_the_release_says_which_images_count(tmp_path):
    lay_out(tmp_path, NAMES, ALIGNED)
    kept = {"Probe": ["4_2.jpg"], "Gallery_Match": ["4_1.jpg", "4_3.jpg"], "Gallery_Distractor": ["9.jpg"]}
    lay_out(tmp_path, kept, PROTOCOL)
    data = find_tinyface(tmp_path)
    assert [path.name for path in data.images] == ["4_2.png", "4_1.JPG", "4_3.jpg", "9.jpg"] and data.probes == 1
    (tmp_path / PROTOCOL / "Gallery_Match/5_1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of the 3 images of .* are missing, such as 5_1"):
        find_tinyface(tmp_path)


def test_figures_equal_a_plain_loop(tmp_path):
    generator = np.random.default_rng(0)
    probes = [(person, n) for person in range(20) for n in (1, 2)]
    matches = [(person, n) for person in range(20) for n in range(3, 4 + person % 3)]
    names = dict(zip(PARTS, ([f"{p}_{n}.jpg" for p, n in part] for part in (probes, matches)), strict=False))
    names["Gallery_Distractor"] = [f"{p}.jpg" for p in range(100)]  # numbers of people: still nobody's mates
    data = find_tinyface(lay_out(tmp_path, names, ALIGNED))
    features = generator.normal(size=(len(data.images), 6))
    centres = generator.normal(size=(20, 6))
    features += np.where((data.labels >= 0)[:, None], 1.5 * centres[data.labels], 0)
    metrics = search_metrics(data.evaluate(features), RANKS)
    unit = [row / np.sqrt(sum(row * row)) for row in features]
    for rank in RANKS:
        hits = 0
        for probe in range(data.probes):
            gallery = range(data.probes, len(unit))
            order = sorted(gallery, key=lambda entry: -sum(unit[probe] * unit[entry]))
            hits += any(data.labels[entry] == data.labels[probe] for entry in order[:rank])
        assert metrics[f"rank{rank}"] == hits / data.probes
    assert 0 < metrics["rank1"] < metrics["rank20"] and metrics["mated_probes"] == 40


def test_probes_whose_mates_are_lost_count_as_failures(tmp_path):
    names = {
        "Probe": [f"{p}_1.jpg" for p in range(10)],
        "Gallery_Match": [f"{p}_2.jpg" for p in range(10)],
        "Gallery_Distractor": ["9.jpg"],
    }
    whole = find_tinyface(lay_out(tmp_path / "whole", names, ALIGNED))
    lost = find_tinyface(lay_out(tmp_path / "lost", {**names, "Gallery_Match": names["Gallery_Match"][:7]}, ALIGNED))
    features = np.eye(11)
    rates = search_metrics(whole.evaluate(features[[*range(10), *range(10), 10]]), RANKS)
    assert rates == {"rank1": 1.0, "rank5": 1.0, "rank20": 1.0, "mated_probes": 10, "unmated_probes": 0}
    found = lost.evaluate(features[[*range(10), *range(7), 10]])
    assert search_metrics(found, RANKS) == {"rank1": 0.7, "rank5": 0.7, "rank20": 0.7, "mated_probes": 7, "unmated_probes": 3}
    assert found.cmc(3).tolist() == [0.7] * 3
    low, high = rank_interval([found], 1, 1000)
    assert low < 0.7 < high < 1


@needs_faces
def test_real_folders_are_read():
    data = find_tinyface(FACES / "val/tinyface")
    assert (data.probes, len(data.images)) == (189, 189 + 150 + 500)
    assert data.load(0).shape == (112, 112, 3)
    assert data.images[0].parts[-3] == ALIGNED


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"does not contain TinyFace; looked for .*aligned_pad_0\.1_pad_high/Probe"):
        find_tinyface(tmp_path)
    (tmp_path / ALIGNED / "Probe").mkdir(parents=True)
    with pytest.raises(UserError, match="Probe: contains no images"):
        find_tinyface(tmp_path)
    (tmp_path / ALIGNED / "Probe/1_1.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match="looked for the folders Probe, Gallery_Match, Gallery_Distractor; Gallery_Match is missing"
    ):
        find_tinyface(tmp_path)
    with pytest.raises(UserError, match=r"wrong_1\.jpg: expected a name that begins with the person's number"):
        find_tinyface(lay_out(tmp_path / "b", {**NAMES, "Probe": ["wrong_1.jpg"]}, ALIGNED))


def test_bad_images_and_features_are_named(tmp_path):
    data = find_tinyface(lay_out(tmp_path, NAMES, ALIGNED))
    with pytest.raises(UserError, match=r"3_2\.jpg: the image \(0 bytes\) cannot be decoded"):
        data.load(0)
    with pytest.raises(UserError, match="6 features for 7 images"):
        data.evaluate(np.ones((6, 4)))
