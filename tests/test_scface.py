"""SCface: which images count, alignment by landmarks, figures against a plain loop, real faces, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.present.plots import draw_similarities
from eval.protocols.bootstrap import rank_interval
from eval.protocols.scface import distance_metrics, find_scface
from tests.shared_files import FACES, needs_faces
from utils.errors import UserError
from utils.images.alignment import ARCFACE_TEMPLATE


def lay_out(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def release(root: Path, people: int = 3, cameras=(1, 5)) -> Path:
    names = [f"mugshot/{p:03}_frontal.jpg" for p in range(1, people + 1)]
    names += [f"cams/{p:03}_cam{c}_{d}.jpg" for p in range(1, people + 1) for c in cameras for d in (1, 2, 3)]
    return lay_out(root, names)


def test_cameras_and_distances(tmp_path):
    release(tmp_path)
    lay_out(
        tmp_path, ["x/001_cam6_1.jpg", "x/001_cam7_2.jpg", "x/001_cam8.jpg", "x/001_L1.jpg", "x/notes.txt", "x/001_cam1_4.jpg"]
    )
    lay_out(tmp_path, ["distance_1/001_cam1_1.jpg"])  # the release holds images twice
    data = find_scface(tmp_path)
    assert len(data.images) == 3 + 3 * 2 * 3
    assert np.bincount(data.distances).tolist() == [3, 6, 6, 6]
    assert data.people[:4].tolist() == [1, 2, 3, 1]
    assert data.images[3] == tmp_path / "cams/001_cam1_1.jpg"


def test_figures_equal_a_plain_loop(tmp_path):
    data = find_scface(release(tmp_path, people=30))
    generator = np.random.default_rng(0)
    features = (
        generator.normal(size=(31, 6))[data.people]
        + generator.normal(size=(len(data.images), 6)) * (4 - data.distances)[:, None] / 3
    )
    found = data.evaluate(features)
    assert list(found) == ["d1", "d2", "d3"]
    unit = [row / np.sqrt(sum(row * row)) for row in features]
    gallery = [index for index, distance in enumerate(data.distances) if distance == 0]
    for distance, each in enumerate(found.values(), 1):
        own, others = [], []
        for probe in np.flatnonzero(data.distances == distance):
            scores = {data.people[entry]: sum(unit[probe] * unit[entry]) for entry in gallery}
            own.append(scores.pop(data.people[probe]))
            others.append(max(scores.values()))
        metrics = distance_metrics(each)
        assert metrics["rank1"] == np.mean(np.array(own) > np.array(others))
        assert metrics["matched"] == pytest.approx(np.mean(own), abs=1e-12)
        assert metrics["unmatched"] == pytest.approx(np.mean(others), abs=1e-12)
        assert metrics["gain"] == pytest.approx(np.mean(own) - np.mean(others), abs=1e-12)
        assert metrics["probes"] == 60


@pytest.mark.parametrize("points", [ARCFACE_TEMPLATE, np.vstack([ARCFACE_TEMPLATE[:3], ARCFACE_TEMPLATE[3:].mean(axis=0)])])
def test_photographs_are_cut_out_by_their_landmarks(points, tmp_path):
    # A smooth picture, turned, shrunk and shifted into a photograph; its landmarks bring it back.
    y, x = np.mgrid[:112, :112]
    face = np.stack([128 + 100 * np.sin(x / 17), 128 + 100 * np.cos(y / 13), 1.0 * (x + y)], axis=2).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((56, 56), 25, 1.6)
    turn[:, 2] += 70, 90
    photograph = cv2.warpAffine(face, turn, (300, 320), flags=cv2.INTER_CUBIC)
    release(tmp_path)
    cv2.imwrite(str(tmp_path / "mugshot/001_frontal.jpg"), photograph[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    seen = points @ turn[:, :2].T + turn[:, 2]
    (tmp_path / "all.txt").write_text("001_frontal\t" + "\t".join(f"{number:.4f}" for number in seen.reshape(-1)) + "\n")
    aligned = find_scface(tmp_path).load(0)
    assert aligned.shape == (112, 112, 3)
    inside = np.abs(aligned[4:-4, 4:-4].astype(int) - face[4:-4, 4:-4])
    assert inside.mean() < 2.5


def test_missing_probes_count_as_failures(tmp_path):
    release(tmp_path, cameras=(1, 2))
    (tmp_path / "cams/003_cam2_1.jpg").unlink()
    data = find_scface(tmp_path)
    assert data.missing_probes() == ["003_cam2_1"]
    found = data.evaluate(np.eye(4)[data.people])
    metrics = [distance_metrics(each) for each in found.values()]
    assert [each["rank1"] for each in metrics] == [5 / 6, 1, 1]
    assert [each["probes"] for each in metrics] == [6, 6, 6]
    assert [each["missing_probes"] for each in metrics] == [1, 0, 0]
    assert metrics[0]["matched"] == 1 and metrics[0]["unmatched"] == 0  # of those that exist
    assert found["d1"].cmc(2).tolist() == [5 / 6] * 2
    low, high = rank_interval([found["d1"]], 1, 1000)
    assert low < 5 / 6 < high
    draw_similarities({"x": found})
    half = {name: replace(each, other_score=each.other_score + 0.8) for name, each in found.items()}  # gains 0.2, not 1
    titles = [axes.get_title("left") for axes in draw_similarities({"x": found, "half": half}).axes]
    assert titles == ["d1 (4.2 m): +400%", "d2 (2.6 m): +400%", "d3 (1.0 m): +400%"]


def test_all_txt_tells_which_probes_there_were(tmp_path):
    """Person 3 has no second camera by all.txt, person 2 has lost an image; person 9 is not searched for."""
    release(tmp_path, cameras=(1, 2))
    names = [path.stem for path in tmp_path.rglob("*.jpg") if not path.stem.startswith("003_cam2")]
    for path in [*tmp_path.rglob("003_cam2*"), tmp_path / "cams/002_cam1_3.jpg"]:
        path.unlink()
    lines = [f"{name} 38 51 73 51 56 71 41 92 70 92" for name in [*names, "009_cam1_1", "001_cam8"]]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    data = find_scface(tmp_path)
    assert data.missing_probes() == ["002_cam1_3"]
    metrics = [distance_metrics(each) for each in data.evaluate(np.eye(4)[data.people]).values()]
    assert [each["probes"] for each in metrics] == [5, 5, 5] and [each["missing_probes"] for each in metrics] == [0, 0, 1]


@needs_faces
def test_real_folders_are_read():
    data = find_scface(FACES / "val/scface")
    assert np.bincount(data.distances).tolist() == [100, 128, 128, 128]  # cameras 1 and 2, no infrared
    assert len(data.landmarks) == 584 and data.missing_probes() == []
    np.testing.assert_array_equal(data.load(0), cv2.imread(str(data.images[0]))[:, :, ::-1])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"does not contain SCface; looked for 001_frontal\.jpg … and 001_cam1_1\.jpg … .* found 0 and 0"
    ):
        find_scface(tmp_path)
    release(tmp_path)
    lay_out(tmp_path, ["009_cam1_1.jpg"])
    with pytest.raises(UserError, match="1 have none"):
        find_scface(tmp_path)
    lay_out(tmp_path, ["009_frontal.jpg", "9_frontal.jpg"])
    with pytest.raises(UserError, match="1 several"):
        find_scface(tmp_path)
    with pytest.raises(UserError, match="gallery needs at least two people"):
        find_scface(release(tmp_path / "one", people=1))


def test_bad_landmarks_and_images_are_named(tmp_path):
    release(tmp_path)
    data = find_scface(tmp_path)
    with pytest.raises(UserError, match=r"001_frontal\.jpg: the image .* cannot be decoded"):
        data.load(0)
    cv2.imwrite(str(data.images[0]), np.zeros((90, 80, 3), np.uint8))
    with pytest.raises(UserError, match=r"001_frontal\.jpg: 80x90 pixels, and all\.txt under .* has no landmarks"):
        data.load(0)
    (tmp_path / "all.txt").write_text("001_frontal" + " 7" * 10)
    with pytest.raises(UserError, match="coincide"):
        find_scface(tmp_path).load(0)
    (tmp_path / "all.txt").write_text("\n001_frontal 1 2 3\n")
    with pytest.raises(UserError, match=r"all\.txt: line 2: 3 coordinates"):
        find_scface(tmp_path)
    (tmp_path / "all.txt").write_text("001_frontal 1 two")
    with pytest.raises(UserError, match=r"all\.txt: line 1: .*two"):
        find_scface(tmp_path)
    with pytest.raises(UserError, match="3 features for 21 images"):
        data.evaluate(np.ones((3, 4)))
