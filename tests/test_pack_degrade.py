"""A packed set in which some images are degraded, and some of those have wrong labels."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data import FaceDataset
from tests.pack_tools import make_people, pack, read_files
from utils.errors import UserError

PEOPLE = {"ann": 6, "bob": 1, "cy": 9, "deb": 4}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    make_people(tmp_path / "photos", PEOPLE)
    pack("folder", tmp_path / "photos", tmp_path / "packed")
    return tmp_path / "packed"


def _content(path: Path) -> list[tuple[bytes, int]]:
    faces = FaceDataset(path)
    return [faces.read(number) for number in range(len(faces))]


def _listed(path: Path) -> list[tuple[int, int, int]]:
    with (path / "degraded.csv").open(newline="") as file:
        return [tuple(map(int, row)) for row in list(csv.reader(file))[1:]]


def _sharpness(payload: bytes) -> float:
    return float(cv2.Laplacian(cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_GRAYSCALE), cv2.CV_64F).var())


def test_a_share_is_degraded_and_the_rest_is_copied_byte_for_byte(packed: Path, tmp_path: Path) -> None:
    pack("degrade", packed, tmp_path / "mixed", "--share", 0.4, "--pixels", 6, 8)
    before, after, listed = _content(packed), _content(tmp_path / "mixed"), _listed(tmp_path / "mixed")
    assert [label for _, label in after] == [label for _, label in before]
    changed = {number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    assert changed == {number for number, _, _ in listed} and len(changed) == 8 == round(0.4 * len(before))
    assert all(label == right == before[number][1] for number, label, right in listed)
    pack("verify", tmp_path / "mixed")
    pack("degrade", packed, tmp_path / "fine", "--share", 0.4, "--pixels", 60, 60)  # the same images, less degraded
    assert {number for number, _, _ in _listed(tmp_path / "fine")} == changed
    fine = _content(tmp_path / "fine")
    assert all(_sharpness(after[number][0]) < _sharpness(fine[number][0]) for number in changed)


def test_the_result_depends_on_the_seed_alone(packed: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        pack("degrade", packed, tmp_path / name, "--share", 0.5, "--wrong-labels", 0.5, "--seed", seed)
    assert read_files(tmp_path / "one") == read_files(tmp_path / "again") != read_files(tmp_path / "other")


def test_wrong_labels_are_other_labels_and_every_identity_keeps_an_image(packed: Path, tmp_path: Path) -> None:
    pack("degrade", packed, tmp_path / "wrong", "--share", 1, "--wrong-labels", 1)
    listed = _listed(tmp_path / "wrong")
    assert len(listed) == 20 and {label for _, label, _ in listed} == {0, 1, 2, 3}
    assert sum(label == right for _, label, right in listed) <= len(PEOPLE)
    assert [label for _, label in _content(tmp_path / "wrong")] == [label for _, label, _ in listed]
    half = tmp_path / "half"
    pack("degrade", packed, half, "--share", 0.8, "--wrong-labels", 0.25)
    assert 0 < sum(label != right for _, label, right in _listed(half)) <= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--share", 1.5), "--share 1.5: must be from 0 to 1"),
        (("--wrong-labels", -1), "--wrong-labels -1.0: must be from 0 to 1"),
        (("--pixels", 9, 6), "--pixels 9 6: expected 1 <= LOW <= HIGH"),
        (("--quality", 0), "--quality 0: must be from 1 to 100"),
    ],
)
def test_mistakes_are_named(packed: Path, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        pack("degrade", packed, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
