"""A packed set with some images degraded, some of those with wrong labels; a set divided into training and held-out people."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.verification import FOLDS, _correct_by_fold, load_bin
from recognition.data import FaceDataset
from recognition.data.pack.commands.split import draw_pairs
from tests.pack_tools import encoded, make_people, pack, picture, read_files, write_files
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


# ------------------------------------------------------------------------------------------------ split


def _people_in(packed: Path, photos: Path) -> list[str]:
    """The folder of each image's bytes, in the set's order."""
    owner = {content: path.split("/")[0] for path, content in read_files(photos).items()}
    return [owner[payload] for payload, _ in _content(packed)]


@pytest.mark.parametrize("shards", [1, 2])
def test_split_holds_people_out_and_pairs_them(tmp_path: Path, shards: int) -> None:
    photos, train = tmp_path / "photos", tmp_path / "train"
    make_people(photos, {f"p{number:02}": 2 + number % 4 for number in range(20)})
    pack("folder", photos, tmp_path / "packed", "--shards", shards)
    for name, seed in (("train", 1), ("again", 1), ("other", 2)):
        pack("split", tmp_path / "packed", tmp_path / name, "--held-out", 0.3, "--pairs", 20, "--seed", seed, "--shards", shards)
    assert read_files(train) == read_files(tmp_path / "again")
    assert read_files(train)["held_out.csv"] != read_files(tmp_path / "other")["held_out.csv"]
    pack("verify", train)
    with (train / "held_out.csv").open(newline="") as file:
        held_out = {row["name"]: int(row["images"]) for row in csv.DictReader(file)}
    trained = set(_people_in(train, photos))
    assert len(held_out) == 6 and trained == {f"p{number:02}" for number in range(20)} - held_out.keys()
    assert {label for _, label in _content(train)} == set(range(14))
    assert len(_content(train)) == len(_content(tmp_path / "packed")) - sum(held_out.values())

    path_of = {content: path for path, content in read_files(photos).items()}
    images, same = load_bin(train / "held_out_hq.bin")
    pairs = [(path_of[a], path_of[b]) for a, b in zip(images[::2], images[1::2], strict=True)]
    people = [tuple(path.split("/")[0] for path in pair) for pair in pairs]
    assert same.tolist() == [a == b for a, b in people] == [True, False] * 10
    assert len({frozenset(pair) for pair in pairs}) == 20 and {name for pair in people for name in pair} == held_out.keys()
    (tmp_path / "pairs.txt").write_text("".join(f"{a} {b} {int(s)}\n" for (a, b), s in zip(pairs, same, strict=True)))
    for quality, degrade in (("mixed", "second"), ("lq", "both")):
        pack("pairs", tmp_path / "pairs.txt", photos, tmp_path / "x.bin", "--degrade", degrade, "--seed", 1)
        assert (train / f"held_out_{quality}.bin").read_bytes() == (tmp_path / "x.bin").read_bytes()


def test_folders_and_lists_are_split_like_packed_sets(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    files = make_people(photos, {f"p{number}": 4 for number in range(8)})
    pack("folder", photos, tmp_path / "packed")
    (photos / "list.txt").write_text("".join(f"{path} {path[1]}\n" for path in sorted(files)))
    for name, source in (("train", "packed"), ("from_folder", "photos"), ("from_list", "photos/list.txt")):
        pack("split", tmp_path / source, tmp_path / name, "--held-out", 0.4, "--pairs", 12)
    train, from_list = read_files(tmp_path / "train"), read_files(tmp_path / "from_list")
    assert read_files(tmp_path / "from_folder") == train and {"images.csv", "property"} <= train.keys()
    assert all(from_list[name] == train[name] for name in ("train.rec", "images.csv", "property"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/list.txt").write_text("".join(f"../photos/{path} {path[1]}\n" for path in sorted(files)))
    pack("split", tmp_path / "elsewhere/list.txt", tmp_path / "outside", "--held-out", 0.4, "--pairs", 12)
    outside = read_files(tmp_path / "outside")
    assert outside["train.rec"] == train["train.rec"] and "images.csv" not in outside  # it lists paths below one folder
    write_files(photos, {"p0/9.jpg": encoded(picture(5, 92, 112))})
    with pytest.raises(UserError, match="expected 112x112"):
        pack("split", photos, tmp_path / "odd", "--held-out", 0.4, "--pairs", 12)


def _drawn(sizes: list[int], pairs: int) -> np.ndarray:
    """The owners of the images of the drawn pairs."""
    starts = np.cumsum([0, *sizes])
    drawn = draw_pairs(np.split(np.arange(starts[-1]), starts[1:-1]), pairs, np.random.default_rng(0))
    assert len({frozenset(pair) for pair in drawn.tolist()}) == len(drawn)
    return np.repeat(np.arange(len(sizes)), sizes)[drawn]


def test_pairs_are_spread_over_the_people_and_too_few_people_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    owners = _drawn([2] * 5 + [9] * 75, 100)
    assert (owners[::2, 0] == owners[::2, 1]).all() and (owners[1::2, 0] != owners[1::2, 1]).all()
    assert max(np.bincount(owners[::2, 0])[:5]) == 1 and set(np.bincount(owners[::2, 0]).tolist()[5:]) <= {0, 1}
    assert len(np.unique(owners[1::2], axis=0)) == 50 and capsys.readouterr().err == ""
    assert len(_drawn([1, 1, 9], 200)) == 2 * (1 + 9 + 9)
    assert "3 held-out people with 11 images allow only 38 of 200 pairs" in (err := capsys.readouterr().err)
    assert "too few for 10 folds of different people: the folds share people" in err
    assert len(_drawn([50, 50], 200)) == 200
    assert "2 held-out people are few for 200 pairs" in capsys.readouterr().err
    owners = _drawn([2] * 5 + [9] * 20, 100)
    assert np.bincount(owners[::2, 0]).tolist()[:5] == [1] * 5 and set(np.bincount(owners[::2, 0]).tolist()[5:]) <= {2, 3}
    assert "25 held-out people are few for 100 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("pairs", [12, 46, 100])
def test_the_folds_of_drawn_pairs_have_no_person_in_common(pairs: int) -> None:
    folds = [set(fold.ravel().tolist()) for fold in np.array_split(_drawn([1] * 4 + [2] * 10 + [7] * 30, pairs), FOLDS)]
    assert not any(one & two for one, two in itertools.combinations(folds, 2))
    same = np.zeros(pairs, bool)
    same[::2] = True
    sizes = _correct_by_fold(np.ones(pairs), same)[1]
    assert sizes.tolist() == [len(fold) for fold in np.array_split(same, FOLDS)]  # as verification divides them


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--held-out", 0.2), "--held-out 0.2: holds out 1 of 4 people; at least two must go"),
        (("--held-out", 1.5), "--held-out 1.5: holds out 4 of 4 people"),
        (("--held-out", 0.5, "--pairs", 8), "--pairs 8: 2 held-out people .* at least 10"),
        (("--seed", -1), "--seed -1: must not be negative"),
    ],
)
def test_mistakes_in_splitting_are_named(packed: Path, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack("split", packed, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
