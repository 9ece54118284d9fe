"""The face data set: layouts, shards, exact counts, labels, and damage."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition import build
from recognition.data import FaceDataset, RecordError, RecordReader, RecordWriter
from recognition.data.dataset import _image_span
from recognition.data.records.format import HEADER, frame, pack
from tests.shared_files import FACES, GOLDEN, needs_faces, needs_golden
from utils.config import from_base
from utils.errors import UserError

RecordTuple = tuple[int, Any, bytes]


def write(path: Path, records: list[RecordTuple]) -> Path:
    with RecordWriter(path) as writer:
        for key, label, payload in records:
            writer.write(key, label, payload)
    return path


def insightface_records(labels: list[int], identities: int) -> list[RecordTuple]:
    images = len(labels)
    records: list[RecordTuple] = [(key, label, b"image %d" % key) for key, label in enumerate(labels, 1)]
    records += [(images + 1 + identity, [1, 2], b"") for identity in range(identities)]
    return [*records, (0, [images + 1, images + identities + 1], b"")]


def im2rec_records(labels: list[Any], first_key: int = 0) -> list[RecordTuple]:
    return [(key, label, b"image %d" % key) for key, label in enumerate(labels, first_key)]


# -- layouts


@needs_golden
@pytest.mark.parametrize(("name", "classes"), [("mxnet_insightface", 12), ("mxnet_im2rec", 7)])
def test_golden_layouts(name: str, classes: int) -> None:
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    images = sorted((record for record in expected["records"] if record["bytes"]), key=lambda record: record["key"])
    dataset = FaceDataset(GOLDEN / name)
    assert len(dataset) == expected["images"] == len(images)
    assert dataset.num_classes == classes == expected.get("identities", classes)
    assert dataset.labels().dtype == np.int64
    assert dataset.labels().tolist() == [record["label"][0] for record in images]
    for number, record in enumerate(images):
        payload, label = dataset.read(number)
        assert hashlib.sha256(payload).hexdigest() == record["payload_sha256"]
        assert (type(label), label) == (int, record["label"][0])
    assert dataset.image_size == ((112, 112) if name == "mxnet_insightface" else None)
    dataset.check_labels(classes)
    with pytest.raises(UserError, match=rf"outside \[0, {classes - 1}\)"):
        dataset.check_labels(classes - 1)


@needs_faces
@pytest.mark.parametrize("path", [FACES / "lfw_train", FACES / "lfw_train" / "train.rec"])
def test_real_faces(path: Path) -> None:
    dataset = FaceDataset(path)
    assert (len(dataset), dataset.num_classes, dataset.image_size) == (3831, 430, (112, 112))
    dataset.check_labels(430)
    assert np.array_equal(np.unique(dataset.labels()), np.arange(430))
    for image in (0, 1, 1915, 3830):
        payload, label = dataset.read(image)
        assert payload[:2] == b"\xff\xd8" and label == dataset.labels()[image]
    assert dataset.where(3830).startswith(f"{FACES / 'lfw_train' / 'train.rec'}: key 3831, byte offset ")


def test_record_0_with_two_labels_and_an_image_is_im2rec(tmp_path: Path) -> None:
    dataset = FaceDataset(write(tmp_path / "a.rec", im2rec_records([[2, 9], [0, 9], [4, 9]])))
    assert (len(dataset), dataset.num_classes) == (3, 5)
    assert dataset.labels().tolist() == [2, 0, 4]


def test_labels_count_and_not_the_identity_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list that is not sorted by label gets one identity record per run of equal labels."""
    dataset = FaceDataset(write(tmp_path / "a.rec", insightface_records([0, 1, 0, 1], identities=4)))
    assert (len(dataset), dataset.num_classes) == (4, 2)
    assert "has 4 identity records, but its labels are of 2 classes" in capsys.readouterr().err


def test_without_identity_records_the_labels_count(tmp_path: Path) -> None:
    records = insightface_records([0, 3, 1], identities=0)
    dataset = FaceDataset(write(tmp_path / "a.rec", records))
    assert (len(dataset), dataset.num_classes) == (3, 4)


def test_shards_are_sorted_by_name_and_keys_ascend(tmp_path: Path) -> None:
    write(tmp_path / "c.rec", im2rec_records([9], first_key=500))
    write(tmp_path / "a.rec", im2rec_records([5, 6, 7])[::-1])
    write(tmp_path / "b.rec", insightface_records([1, 2], identities=3))
    dataset = FaceDataset(tmp_path)
    assert dataset.labels().tolist() == [5, 6, 7, 1, 2, 9]
    assert dataset.num_classes == 10
    assert dataset.starts.tolist() == [0, 3, 5, 6]
    assert [dataset.read(image) for image in range(6)] == [
        (b"image 0", 5),
        (b"image 1", 6),
        (b"image 2", 7),
        (b"image 1", 1),
        (b"image 2", 2),
        (b"image 500", 9),
    ]
    assert [dataset.locate(image) for image in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 0)]
    assert dataset.where(5) == f"{tmp_path / 'c.rec'}: key 500, byte offset 0"
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            dataset.read(outside)


def test_train_rec_takes_precedence_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train.rec", im2rec_records([0, 1]))
    assert len(FaceDataset(tmp_path)) == 2
    assert not capsys.readouterr().err
    write(tmp_path / "val.rec", im2rec_records([0]))
    assert len(FaceDataset(tmp_path)) == 2
    assert "train.rec is used, 1 other .rec files are not (val.rec)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["faces_val", "faces_test", "test", "val_00001", "Validation", "x-dev-2", "faces.test"])
def test_files_that_are_not_for_training_are_refused_by_name(name: str, tmp_path: Path) -> None:
    write(tmp_path / f"{name}.rec", im2rec_records([0, 1]))
    (tmp_path / "._a.rec").write_bytes(b"AppleDouble")
    config = from_base(rec=str(tmp_path), queue="none", views=1)
    with pytest.raises(UserError, match=f"contains only {name}.rec, by name not for training; give one"):
        build.open_dataset(config)
    assert len(FaceDataset(tmp_path)) == 2  # for the packing tools
    for other in ("faces_train", "latest", "contest", "devon", "medieval"):
        write(tmp_path / f"{other}.rec", im2rec_records([0, 1]))
    with pytest.raises(UserError, match=rf"contains {name}\.rec, by name not for training, and .*latest\.rec"):
        FaceDataset(tmp_path)
    assert len(build.open_dataset(replace(config, rec=str(tmp_path / f"{name}.rec")))) == 2
    (tmp_path / f"{name}.rec").unlink()
    dataset = build.open_dataset(config)
    assert len(dataset) == 10
    assert dataset.describe_files() == "contest.rec, devon.rec, faces_train.rec, latest.rec, medieval.rec"


@pytest.mark.parametrize("labels", [[0, 0, 0], [3, 3]])
def test_a_single_identity_is_refused(labels: list[int], tmp_path: Path) -> None:
    path = write(tmp_path / "a.rec", im2rec_records(labels))
    with pytest.raises(UserError, match=rf"all {len(labels)} images have label {labels[0]}; training needs at least two"):
        build.open_dataset(from_base(rec=str(path), num_classes=7))


# -- counts that float32 cannot represent


@pytest.mark.parametrize(
    ("images", "identities"), [(1 << 24, 3), ((1 << 24) + 2, 2), ((1 << 24) - 2, 1), ((1 << 24) - 1, 0), (1 << 24, 0)]
)
def test_counts_beyond_float32(images: int, identities: int, tmp_path: Path) -> None:
    """A sparse file with only those records that the search reads, 40 bytes each."""
    last = images + identities
    path = tmp_path / "train.rec"
    with path.open("wb") as file:
        for key in [0, 1, 2, *range(images - 8, last + 1)]:
            file.seek(40 * key)
            if 1 <= key <= images:
                file.write(frame(pack(1, b"an image", key)))
            else:
                file.write(frame(pack([images + 1, last + 1], b"", key)))
    (tmp_path / "train.idx").write_text("0\t0\n1\t40\n")
    reader = RecordReader(path)
    reader.keys = np.arange(last + 1)  # the result of parsing such a long index
    reader.offsets = 40 * reader.keys
    assert _image_span(reader, True) == (1, images + 1, identities)


# -- errors


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (9, r"label 9 is outside \[0, 5\) \(1 of 4 images are\); set num_classes to 10"),
        (5, r"label 5 is outside \[0, 5\)"),
        (-1, r"label -1 is outside \[0, 5\)"),
        (2.5, "label 2.5 is not a class"),
        (float("nan"), "label nan is not a class"),
        (float("-inf"), "label -inf is not a class"),
        (1e9, "label 1000000000 is not exact in float32"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_labels_that_are_not_a_class(label: float, problem: str, several: bool, tmp_path: Path) -> None:
    header = HEADER.pack(1, 0, 2, 0) + struct.pack("<f", label) if several else HEADER.pack(0, label, 2, 0)
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, 4, b"image")
        writer.write(1, 0, b"image")
        writer.write_raw(2, header + b"image")
        writer.write(3, 0, b"image")
    with pytest.raises(UserError, match=problem) as caught:
        FaceDataset(tmp_path).check_labels(5)
    assert f"{tmp_path / 'a.rec'}: key 2, byte offset 80: label" in str(caught.value)
    if "outside" not in problem:
        with pytest.raises(RecordError, match=problem):
            FaceDataset(tmp_path).read(2)


def test_more_classes_than_float32_labels(tmp_path: Path) -> None:
    dataset = FaceDataset(write(tmp_path / "a.rec", im2rec_records([0])))
    dataset.check_labels(1 << 24)
    with pytest.raises(UserError, match="exact only up to 16777216"):
        dataset.check_labels((1 << 24) + 1)


def test_an_index_with_a_gap(tmp_path: Path) -> None:
    write(tmp_path / "train.rec", insightface_records([0, 1, 2, 3], identities=4))
    index = (tmp_path / "train.idx").read_text().splitlines(keepends=True)
    (tmp_path / "train.idx").write_text("".join(line for line in index if not line.startswith("3\t")))
    with pytest.raises(UserError, match=r"train\.idx: key 3, an image, is missing"):
        FaceDataset(tmp_path)
    (tmp_path / "train.idx").write_text("".join(line for line in index if not line.startswith("7\t")))
    with pytest.raises(UserError, match="announces 4 identities, but the index lists 3"):
        FaceDataset(tmp_path)
    (tmp_path / "train.idx").write_text("".join(line for line in index if line[0] in "012"))
    with pytest.raises(RecordError, match=r"announces that the images end before key 5, but they do not"):
        FaceDataset(tmp_path)


@pytest.mark.parametrize("claim", [[2, 6], [4, 8], [99, 103], [0, 4], [-5, 0], [1e30, 2e30]])
def test_record_0_that_is_wrong(claim: list[float], tmp_path: Path) -> None:
    records = insightface_records([0, 1], identities=4)
    write(tmp_path / "train.rec", [*records[:-1], (0, claim, b"")])
    with pytest.raises(RecordError, match=r"train\.rec: key 0, byte offset \d+: announces"):
        FaceDataset(tmp_path)


@pytest.mark.parametrize("records", [[(0, 1, b"")], [(0, [1, 2, 3], b"")], [(4, [3, 4], b""), (5, 1, b"image")]])
def test_a_first_record_that_is_neither_layout(records: list[RecordTuple], tmp_path: Path) -> None:
    write(tmp_path / "train.rec", records)
    with pytest.raises(RecordError, match="neither an image nor"):
        FaceDataset(tmp_path)


def test_a_missing_image(tmp_path: Path) -> None:
    dataset = FaceDataset(write(tmp_path / "a.rec", [(0, 0, b"image"), (1, 0, b""), (2, 1, b"image")]))
    for look in (lambda: dataset.read(1), dataset.labels, lambda: dataset.num_classes, lambda: dataset.check_labels(2)):
        with pytest.raises(RecordError, match="key 1, byte offset 40: contains no image"):
            look()


def test_an_index_rebuilt_from_positions_is_an_error(tmp_path: Path) -> None:
    """Without usable ids record 0 cannot be identified. This must be an error, never a wrong data set."""
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, label, payload in insightface_records([0, 1, 2], identities=3):
            writer.write(key, label, payload, id=7)
    (tmp_path / "train.idx").unlink()
    with pytest.raises(RecordError, match="key 3, byte offset 120: contains no image"):
        FaceDataset(tmp_path).check_labels(3)


def test_folders_and_property(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no \.rec file"):
        FaceDataset(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        FaceDataset(tmp_path / "none")
    (tmp_path / "b.rec").touch()
    write(tmp_path / "a.rec", im2rec_records([0]))
    with pytest.raises(UserError, match=r"b\.rec: the \.rec file is empty"):
        FaceDataset(tmp_path)
    (tmp_path / "b.rec").unlink()
    assert FaceDataset(tmp_path).image_size is None
    rec_builder = "3,112,112\n5000\n"
    for text, size in (
        ("3,112,96\n", (112, 96)),
        (rec_builder, (112, 112)),
        ("\ufeff3, 112, 112\r\n5000\r\n", (112, 112)),
        ("112,112", None),
        ("a,b,c", None),
        ("", None),
    ):
        (tmp_path / "property").write_text(text, encoding="utf-8", newline="")
        if size:
            assert FaceDataset(tmp_path).image_size == size
        else:
            with pytest.raises(UserError, match=r"property: line 1: must contain"):
                _ = FaceDataset(tmp_path).image_size


def test_tolerated_damage_is_marked_and_no_other_record_is_affected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.rec", im2rec_records([4, 3, 2, 1, 0, 4]))
    offsets = RecordReader(path).offsets.tolist()
    damaged = bytearray(path.read_bytes())
    damaged[offsets[2] + 5] ^= 1  # its length
    damaged[offsets[4] + 12 : offsets[4] + 16] = struct.pack("<f", float("nan"))
    path.write_bytes(damaged[:-4])
    with pytest.raises(RecordError, match=r"key 5.*truncated"):
        FaceDataset(path)
    dataset = FaceDataset(path, strict=False)
    assert len(dataset) == 6
    assert dataset.labels().tolist() == [4, 3, -1, 1, -1, -1]
    dataset.check_labels(5)
    for image in range(6):
        if image in (2, 4, 5):
            with pytest.raises(RecordError) as caught:
                dataset.read(image)
            assert (caught.value.key, caught.value.offset) == (image, offsets[image])
        else:
            assert dataset.read(image) == (b"image %d" % image, int(dataset.labels()[image]))
    with pytest.raises(UserError, match=r"key 0, byte offset 0: label 4 is outside"):
        dataset.check_labels(4)


# -- processes


def _read_all(dataset: FaceDataset, answers: Any) -> None:
    answers.put([dataset.read(image) for image in range(len(dataset))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_the_same(method: str, tmp_path: Path) -> None:
    write(tmp_path / "a.rec", insightface_records([0, 1, 1], identities=2))
    write(tmp_path / "b.rec", im2rec_records([3, 2]))
    dataset = FaceDataset(tmp_path)
    expected = [dataset.read(image) for image in range(5)]
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    worker = context.Process(target=_read_all, args=(dataset, answers))
    worker.start()
    assert answers.get(timeout=60) == expected
    worker.join()


@needs_golden
@pytest.mark.parametrize("name", ["mxnet_insightface", "mxnet_im2rec"])
def test_random_damage_gives_declared_errors_only(name: str, tmp_path: Path) -> None:
    """Mutated golden files: every read returns an image and a label, or raises UserError."""
    source = {end: (GOLDEN / name / f"train.{end}").read_bytes() for end in ("rec", "idx")}
    draw = np.random.default_rng(11)
    errors = reads = 0
    for trial in range(150):
        files = {end: bytearray(data) for end, data in source.items()}
        hit = files["idx" if trial % 3 == 0 else "rec"]
        places = draw.integers(0, len(hit), 3) if trial % 2 else 4 * draw.integers(0, len(hit) // 4, 40)
        for place in places.tolist():
            hit[place] = int(draw.integers(256))
        if trial % 5 == 0:
            del hit[int(draw.integers(len(hit))) :]
        for end, data in files.items():
            (tmp_path / f"train.{end}").write_bytes(data)
        if trial % 7 == 0:
            (tmp_path / "train.idx").unlink()
        try:
            dataset = FaceDataset(tmp_path, strict=bool(trial % 4))
        except UserError:
            errors += 1
            continue
        for image in range(len(dataset)):
            try:
                payload, label = dataset.read(image)
                assert 0 < len(payload) <= len(source["rec"]) and isinstance(label, int)
                reads += 1
            except RecordError as error:
                assert error.offset == int(str(error).split("byte offset ")[1].split(":")[0])
                errors += 1
    assert errors > 50 and reads > 500
