"""The procedural faces, and the data set made of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.verification import load_bin
from recognition.data.demo.canvas import MARGIN
from recognition.data.demo.person import draw_person
from recognition.data.demo.relief import build_relief, five_points, pose_map
from recognition.data.demo.render import _figure
from recognition.data.demo.shot import draw_shot
from recognition.data.demo_faces import DemoSet, _draw_pairs, make_demo_set, render
from recognition.data.records.reader import RecordReader
from tests.shared_files import ROOT
from utils.errors import UserError
from utils.images.alignment import ARCFACE_TEMPLATE, similarity

SMALL = DemoSet(identities=5, images_per_identity=4, unseen=4, pairs=20, seed=3)
TINY = ["--images-per-identity", "4", "--unseen", "4", "--pairs", "20", "--workers", "1"]
FILES = {"train.rec", "train.idx", "property", "demo.json", "demo_hq.bin", "demo_mixed.bin", "demo_lq.bin"}


def _make(folder: Path, workers: int = 1, **changes: int) -> None:
    make_demo_set(folder, **({**vars(SMALL), **changes}), workers=workers)


def _decode(encoded: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    _make(folder)
    return folder


# -- faces


def test_a_face_depends_only_on_its_numbers() -> None:
    first = render(0, 1, 2)
    assert first.shape == (112, 112, 3) and first.dtype == np.uint8
    kept = first.copy()
    for identity in (4, 1, 9):  # other faces in between; the shared parts of this person are used again
        render(0, identity, 0)
    assert np.array_equal(render(0, 1, 2), kept)
    _figure.cache_clear()
    assert np.array_equal(render(0, 1, 2), kept)
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert np.abs(render(*other).astype(int) - kept).mean() > 8, other


def test_a_face_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from recognition.data.demo_faces import render; "
        "print(hashlib.sha256(render(7, 3, 1).tobytes()).hexdigest())"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert hashes == {hashlib.sha256(render(7, 3, 1).tobytes()).hexdigest() + "\n"}


def test_sizes_show_the_same_face() -> None:
    reference = cv2.GaussianBlur(render(0, 2, 1), (0, 0), 2).astype(float).ravel()
    for size in (56, 160, 224):
        image = render(0, 2, 1, size)
        assert image.shape == (size, size, 3)
        back = cv2.GaussianBlur(cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA), (0, 0), 2)
        assert np.corrcoef(back.astype(float).ravel(), reference)[0, 1] > 0.98


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 0, 55), (0, 0, 0, 225)])
def test_impossible_numbers_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected numbers of 0 or more"):
        render(*arguments)


def test_faces_are_aligned_to_the_five_points() -> None:
    """Eyes, nose and mouth of turned heads are within a few pixels of ArcFace's template."""
    errors = []
    for identity in range(12):
        person = draw_person(0, identity)
        relief = build_relief(person)
        for index in range(5):
            shot = draw_shot(0, identity, index, person)
            x, y = pose_map(person, relief, shot, 112)
            for target, place in zip(ARCFACE_TEMPLATE, five_points(person, shot), strict=True):
                distance = (x - place[0]) ** 2 + (y - place[1]) ** 2
                row, column = np.unravel_index(np.argmin(distance), distance.shape)
                errors.append(np.hypot(column - target[0], row - target[1]))
    # What alignment leaves: yaw and identity move single points, and `shot` adds about 1.5 pixels.
    assert np.median(errors) < 4.0 and np.quantile(errors, 0.95) < 10.0


def test_the_aligner_undoes_a_similarity() -> None:
    turn = np.deg2rad(25)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = ARCFACE_TEMPLATE @ rotation.T * 0.7 + (5, -9)
    matrix = similarity(moved, ARCFACE_TEMPLATE)
    assert np.allclose(moved @ matrix[:, :2].T + matrix[:, 2], ARCFACE_TEMPLATE)
    assert np.allclose(matrix[:, :2], rotation.T / 0.7)


def test_the_relief_has_a_nose_and_sockets() -> None:
    relief = build_relief(draw_person(0, 0))
    person = draw_person(0, 0)
    row = round(person.nose_y) + MARGIN
    assert relief.depth[row, 56 + MARGIN] > relief.depth[row, 56 + MARGIN + 14] + 4
    lengths = np.linalg.norm(relief.normals[..., :3], axis=2)
    assert np.allclose(lengths, 1, atol=1e-5)
    assert relief.normals[60 + MARGIN, 20 + MARGIN, 0] < 0 < relief.normals[60 + MARGIN, 92 + MARGIN, 0]


def test_people_differ_but_pixels_do_not_suffice() -> None:
    """Pairs of one person are more similar than chance, yet no threshold on pixel similarity comes close to solving the task."""
    people, pictures = 40, 4
    faces = np.stack(
        [
            cv2.resize(render(0, person, index), (28, 28), interpolation=cv2.INTER_AREA).astype(float).ravel()
            for person in range(people)
            for index in range(pictures)
        ]
    )
    faces -= faces.mean(axis=1, keepdims=True)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    similarity = faces @ faces.T
    owner = np.arange(people * pictures) // pictures
    above = np.triu(np.ones_like(similarity, bool), 1)
    same = similarity[above & (owner[:, None] == owner)]
    different = similarity[above & (owner[:, None] != owner)]
    balanced = max(((same > t).mean() + (different <= t).mean()) / 2 for t in np.linspace(-1, 1, 401))
    assert 0.55 < balanced < 0.75


# -- the set


def test_every_file_is_the_same_for_every_number_of_workers(small_set: Path, tmp_path: Path) -> None:
    _make(tmp_path / "again", workers=2)
    assert {path.name for path in small_set.iterdir()} == FILES
    for name in FILES:
        assert (small_set / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_records_have_insightfaces_layout(small_set: Path) -> None:
    reader = RecordReader(small_set / "train.rec")
    count, people, each = 20, 5, 4
    assert reader.keys.tolist() == list(range(count + people + 1))
    head = reader.read(0)
    assert head.flag == 2 and head.label.tolist() == [count + 1, count + people + 1] and not len(head.payload)
    low_quality = 0
    for key in range(1, count + 1):
        record = reader.read(key)
        identity, index = divmod(key - 1, each)
        assert record.flag == 0 and record.label.tolist() == [identity] and record.id == key and record.id2 == 0
        image, face = _decode(bytes(record.payload)), render(SMALL.seed, identity, index)
        difference = np.abs(image.astype(int) - face).mean()
        low_quality += difference > 6
        assert difference < 30, key
    assert low_quality <= 6
    for identity in range(people):
        record = reader.read(count + 1 + identity)
        assert record.flag == 2 and not len(record.payload)
        assert record.label.tolist() == [1 + identity * each, 1 + (identity + 1) * each]
    assert (small_set / "property").read_text() == "5,112,112\n"


def test_a_tenth_of_the_training_images_is_degraded(tmp_path: Path) -> None:
    _make(tmp_path / "set", identities=6, images_per_identity=30)
    reader = RecordReader(tmp_path / "set" / "train.rec")
    poor = 0
    for key in range(1, 181):
        identity, index = divmod(key - 1, 30)
        face = render(SMALL.seed, identity, index)
        image = _decode(bytes(reader.read(key).payload))
        poor += cv2.Laplacian(image, cv2.CV_64F).var() < 0.3 * cv2.Laplacian(face, cv2.CV_64F).var()
    assert 0.04 < poor / 180 < 0.18


def test_the_three_bins_contain_the_same_pairs(small_set: Path) -> None:
    loaded = {name: load_bin(small_set / f"demo_{name}.bin") for name in ("hq", "mixed", "lq")}
    sharp, mixed, poor = ([bytes(image) for image in loaded[name][0]] for name in ("hq", "mixed", "lq"))
    assert all(issame.tolist() == [True, False] * 10 for _, issame in loaded.values())
    assert mixed[0::2] == sharp[0::2] and mixed[1::2] == poor[1::2]
    for place, (identity, index) in enumerate(who for pair in _draw_pairs(SMALL) for who in pair):
        face = render(SMALL.seed, identity, index)
        assert np.abs(_decode(sharp[place]).astype(int) - face).mean() < 6
        detail = [cv2.Laplacian(_decode(images[place]), cv2.CV_64F).var() for images in (sharp, poor)]
        assert detail[1] < 0.3 * detail[0]


def test_pairs_are_distinct_and_unseen_and_half_of_each_fold_is_one_person() -> None:
    parameters = DemoSet(identities=7, images_per_identity=5, unseen=9, pairs=120)
    pairs = _draw_pairs(parameters)
    assert len({frozenset(pair) for pair in pairs}) == 120
    assert {identity for pair in pairs for identity, _ in pair} <= set(range(7, 16))
    same = [left[0] == right[0] for left, right in pairs]
    assert same == ([True] * 6 + [False] * 6) * 10
    assert all(left != right for left, right in pairs)


def test_a_complete_set_is_reused(small_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in small_set.iterdir()}
    _make(small_set)
    assert "is reused" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in small_set.iterdir()} == before


def test_existing_files_are_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    _make(folder)  # an empty folder is used
    with pytest.raises(UserError, match="contains another demo set"):
        _make(folder, seed=4)
    (folder / "demo_lq.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"demo_lq\.bin: missing or not \d+ bytes long"):
        _make(folder)
    (folder / "demo.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(UserError, match="does not describe a demo set"):
        _make(folder)
    (folder / "demo.json").unlink()
    with pytest.raises(UserError, match="is not a demo set"):
        _make(folder)
    assert (folder / "demo_lq.bin").read_bytes() == b"short"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pairs": 30}, "multiple of 20"),
        ({"pairs": 0}, "it must be 20 or more"),
        ({"identities": 1}, "identities is 1"),
        ({"images_per_identity": 1}, "images_per_identity is 1"),
        ({"unseen": 1}, "unseen is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"low_quality_share": 1.5}, "low_quality_share is 1.5"),
        ({"pairs": 60}, "make 24 such pairs"),
        ({"workers": 0}, "--workers 0: must be 1 or more"),
    ],
)
def test_parameters_out_of_range_are_named(tmp_path: Path, changes: dict[str, int], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        _make(tmp_path / "set", **changes)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "from recognition.data.demo_faces import main; from utils.errors import exit_on_user_error; "
        "exit_on_user_error(main)"
    )
    command = [sys.executable, "-c", code, "--out", str(tmp_path / "set"), "--identities", "3", *TINY]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "cannot be written" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_makes_a_set(tmp_path: Path) -> None:
    out = str(tmp_path / "deep" / "set")
    command = [sys.executable, "-m", "recognition.data.demo_faces", "--out", out, "--identities", "2", *TINY]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "deep" / "set").iterdir()} == FILES
