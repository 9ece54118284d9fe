"""Image folders to packed sets and back; shuffle, merge, subset, verify, reindex, grid."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.protocols.tinyface import find_tinyface
from eval.verification import load_bin
from recognition.data import FaceDataset, RecordReader, RecordWriter
from recognition.data.augment import AUGMENTATIONS, UNIFORMS
from recognition.data.batch import BatchMaker, BatchSpec
from recognition.data.pack.benchmark_rows import DIFFERENT, SAME
from recognition.data.pack.commands.verify import verify
from recognition.data.records.format import RecordError
from tests.pack_tools import encoded, make_people, pack, picture, read_files, write_files
from tests.shared_files import FACES, ROOT, needs_faces
from utils.config import from_base
from utils.errors import UserError
from utils.images import decode_image, is_raw_face
from utils.randomness import uniforms

PEOPLE = {"ann": 3, "bob": 1, "cy": 5, "deb d'Été, jr": 2}


@pytest.fixture
def people(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    return tmp_path / "photos", make_people(tmp_path / "photos", PEOPLE)


def _content(path: Path) -> list[tuple[int, bytes]]:
    faces = FaceDataset(path)
    return [(label, payload) for payload, label in map(faces.read, range(len(faces)))]


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("shards", [1, 3])
def test_folder_to_rec_to_folder_is_byte_exact(tmp_path: Path, people: tuple[Path, dict[str, bytes]], shards: int) -> None:
    photos, files = people
    pack("folder", photos, tmp_path / "packed", "--shards", shards)
    assert len(list((tmp_path / "packed").glob("*.rec"))) == shards
    expected = [(sorted(PEOPLE).index(path.split("/")[0]), content) for path, content in sorted(files.items())]
    assert _content(tmp_path / "packed") == expected
    pack("unpack", tmp_path / "packed", tmp_path / "back")
    assert read_files(tmp_path / "back") == files


def test_insightface_layout(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    pack("folder", people[0], tmp_path / "packed")
    reader = RecordReader(tmp_path / "packed/train.rec")
    assert reader.read(0).label.tolist() == [12, 16]
    assert [reader.read(key).label.tolist() for key in range(12, 16)] == [[1, 4], [4, 5], [5, 10], [10, 12]]
    assert reader.read(4).label.tolist() == [1] and reader.read(4).flag == 0 and reader.read(4).id == 4
    assert (tmp_path / "packed/property").read_text() == "4,112,112"
    assert FaceDataset(tmp_path / "packed").num_classes == 4
    assert _rows(tmp_path / "packed/classes.csv") == [[str(k), name, str(PEOPLE[name])] for k, name in enumerate(sorted(PEOPLE))]


def test_few_images_and_other_files_are_left_out(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    photos, _ = people
    write_files(photos, {"ann/notes.txt": b"x", "ann/.hidden.jpg": b"x", "stray.jpg": b"x", ".git/0.jpg": b"x"})
    pack("folder", photos, tmp_path / "packed", "--min-images", 3, "--no-list")
    assert [row[1] for row in _rows(tmp_path / "packed/classes.csv")] == ["ann", "cy"]
    assert Counter(label for label, _ in _content(tmp_path / "packed")) == {0: 3, 1: 5}
    assert not (tmp_path / "packed/images.csv").exists()


def test_bad_images_stop_or_are_counted_without_gaps_in_the_labels(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    photos, files = people
    write_files(photos, {"bob/0.jpg": files["bob/0.jpg"][:500], "cy/9.jpg": b"", "cy/a.png": b"no image"})
    with pytest.raises(UserError, match=r"bob/0\.jpg: the image \(500 bytes\) cannot be decoded: it is truncated"):
        pack("folder", photos, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    pack("folder", photos, tmp_path / "packed", "--on-error", "skip")
    assert len(_rows(tmp_path / "packed/skipped.csv")) == 3
    assert Counter(label for label, _ in _content(tmp_path / "packed")) == {0: 3, 1: 5, 2: 2}
    assert [row[1] for row in _rows(tmp_path / "packed/classes.csv")] == ["ann", "cy", "deb d'Été, jr"]
    assert verify(tmp_path / "packed", 1).faults == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing",), "missing: the folder cannot be read"),
        (("photos", "--shards", 12), "--shards 12"),
        (("photos", "--min-images", 6), "no folder contains 6"),
        (("photos", "--quality", 0), "--quality 0"),
        (("photos", "--size", 3), "--size 3"),
        (("photos/ann",), "contains no folders"),
    ],
)
def test_mistakes_in_packing_a_folder(tmp_path: Path, people: object, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack("folder", tmp_path / str(arguments[0]), tmp_path / "packed", *arguments[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_shuffle_keeps_every_image_with_its_label_and_path(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    photos, files = people
    pack("folder", photos, tmp_path / "packed")
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        pack("shuffle", tmp_path / "packed", tmp_path / name, "--seed", seed, "--shards", 2)
    one = _content(tmp_path / "one")
    assert sorted(one) == sorted(_content(tmp_path / "packed")) and one != _content(tmp_path / "packed")
    assert read_files(tmp_path / "one") == read_files(tmp_path / "same")
    assert one != _content(tmp_path / "other")
    pack("unpack", tmp_path / "one", tmp_path / "back")
    assert read_files(tmp_path / "back") == files


def test_subset_relabels(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    photos, files = people
    pack("folder", photos, tmp_path / "packed")
    (tmp_path / "list.txt").write_text("deb d'Été, jr\n0\n\n")
    pack("subset", tmp_path / "packed", tmp_path / "some", "--identities", tmp_path / "list.txt", "--max-images", 2)
    paths = ["ann/0.jpg", "ann/1.jpg", *sorted(files)[-2:]]
    assert _content(tmp_path / "some") == [(place // 2, files[path]) for place, path in enumerate(paths)]
    assert FaceDataset(tmp_path / "some").num_classes == 2
    assert [row[2] for row in _rows(tmp_path / "some/images.csv")] == paths
    pack("subset", tmp_path / "packed", tmp_path / "drawn", "--random", 2, "--min-images", 2)
    assert len(_rows(tmp_path / "drawn/classes.csv")) == 2
    for text, message in (("nobody\n", "line 1: 'nobody'"), ("0\nann\n", "line 2: 'ann' is label 0"), ("4\n", "line 1: '4'")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            pack("subset", tmp_path / "packed", tmp_path / "none", "--identities", tmp_path / "list.txt")


def test_merge_in_three_ways(tmp_path: Path) -> None:
    first = make_people(tmp_path / "a", {"ann": 2, "bob": 2})
    second = {path: encoded(picture(77 + number)) for number, path in enumerate(("bob/0.jpg", "eve/0.jpg"))}
    write_files(tmp_path / "b", second)
    for name in "ab":
        pack("folder", tmp_path / name, tmp_path / f"{name}_packed")
    both = tmp_path / "a_packed", tmp_path / "b_packed"
    everything = Counter([*first.values(), *second.values()])
    for classes, labels, names in (
        ("separate", [0, 0, 1, 1, 2, 3], ["1_ann", "1_bob", "2_bob", "2_eve"]),
        ("by-name", [0, 0, 1, 1, 1, 2], ["ann", "bob", "eve"]),
    ):
        pack("merge", *both, "--out", tmp_path / classes, "--classes", classes)
        content = _content(tmp_path / classes)
        assert [label for label, _ in content] == labels and Counter(image for _, image in content) == everything
        assert [row[1] for row in _rows(tmp_path / classes / "classes.csv")] == names
        pack("unpack", tmp_path / classes, tmp_path / f"{classes}_back")
        assert Counter(read_files(tmp_path / f"{classes}_back").values()) == everything
    with pytest.raises(UserError, match=r"label 0 is 'bob', elsewhere 'ann'"):
        pack("merge", *both, "--out", tmp_path / "same", "--classes", "same")
    pack("merge", both[0], both[0], "--out", tmp_path / "same", "--classes", "same")
    assert [label for label, _ in _content(tmp_path / "same")] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_several_labels_are_kept(tmp_path: Path) -> None:
    images = [encoded(picture(k)) for k in range(4)]
    with RecordWriter(tmp_path / "in.rec") as writer:
        for key, image in enumerate(images):
            writer.write(key, [key % 2, 0.25 * key, 9], image, id2=40 + key)
    pack("subset", tmp_path / "in.rec", tmp_path / "out", "--identities", _file(tmp_path / "l.txt", "1"))
    reader = RecordReader(tmp_path / "out/train.rec")
    found = [(reader.read(key).label.tolist(), reader.read(key).payload, reader.read(key).id2) for key in (1, 2)]
    assert found == [([0, 0.25, 9], images[1], 41), ([0, 0.75, 9], images[3], 43)]


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _faults(path: Path) -> set[str]:
    return {what for what, _, fault in verify(path, 2).rows if fault}


def test_verify_finds_each_fault(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    pack("folder", people[0], tmp_path / "packed", "--no-list")
    packed, rec, idx = tmp_path / "packed", tmp_path / "packed/train.rec", tmp_path / "packed/train.idx"
    sound, index = rec.read_bytes(), idx.read_bytes()
    assert _faults(packed) == set()
    reader = RecordReader(rec)
    begin = int(reader.offsets[reader.position(5)])

    middle = bytearray(sound)
    middle[begin + 40 : begin + 60] = bytes(20)
    rec.write_bytes(middle)
    assert _faults(packed) == {"images that cannot be decoded"}
    middle = bytearray(sound)
    middle[begin : begin + 4] = b"none"
    rec.write_bytes(middle)
    assert "records that cannot be read" in _faults(packed)
    pack("subset", packed, tmp_path / "clean", "--drop-damaged")
    assert _faults(tmp_path / "clean") == set() and len(FaceDataset(tmp_path / "clean")) == 10
    rec.write_bytes(sound)

    lines = index.splitlines(keepends=True)
    first, second = lines[1].split(b"\t"), lines[2].split(b"\t")
    idx.write_bytes(b"".join([lines[0], first[0] + b"\t" + second[1], second[0] + b"\t" + first[1], *lines[3:]]))
    assert _faults(packed) == {"index entries with another record's key"}
    idx.unlink()
    assert _faults(packed) == {"files without an index"}
    idx.write_bytes(index)
    (packed / "property").write_text("4,100,100")
    assert _faults(packed) == {"images that are not 100x100, the size in `property`"}
    (packed / "property").write_text("4,112,112")
    (packed / "classes.csv").write_text("label,name,images\n0,a,1\n1,../b,1\n2,c,1\n3,d,1\n")
    assert _faults(packed) == {"lists"}
    with pytest.raises(UserError, match="1 kinds of fault"):
        pack("verify", packed)


@pytest.mark.parametrize("shards", [1, 2])
def test_convert_changes_nothing_but_the_encoding(tmp_path: Path, people: object, shards: int, capsys) -> None:
    pack("folder", tmp_path / "photos", tmp_path / "jpeg", "--shards", shards)
    pack("convert", tmp_path / "jpeg", tmp_path / "raw", "--encoding", "raw", "--shards", shards)
    assert "11 images as raw, 0.00 GB\nraw images load faster if" in capsys.readouterr().out
    pack("convert", tmp_path / "raw", tmp_path / "png", "--encoding", "png", "--shards", shards)
    pack("convert", tmp_path / "jpeg", tmp_path / "same", "--shards", shards)
    assert _content(tmp_path / "same") == _content(tmp_path / "jpeg")  # copied byte for byte
    decoded = [
        [(label, decode_image(payload, "")) for label, payload in _content(tmp_path / name)] for name in ("jpeg", "raw", "png")
    ]
    for (label, jpeg), *others in zip(*decoded, strict=True):
        assert all(other == label and np.array_equal(image, jpeg) for other, image in others)
    assert all(is_raw_face(payload) for _, payload in _content(tmp_path / "raw"))
    assert _faults(tmp_path / "raw") == _faults(tmp_path / "png") == set()
    for name in ("property", "classes.csv", "images.csv"):
        assert (tmp_path / "raw" / name).read_bytes() == (tmp_path / "jpeg" / name).read_bytes()
    pack("unpack", tmp_path / "raw", tmp_path / "back")
    assert {f"{path.relative_to(tmp_path / 'photos')}.bmp" for path in (tmp_path / "photos").rglob("*.jpg")} == set(
        read_files(tmp_path / "back")
    )
    pack("folder", tmp_path / "back", tmp_path / "again", "--encoding", "raw", "--shards", shards)
    assert _content(tmp_path / "again") == _content(tmp_path / "raw")


def test_convert_accepts_any_labels_other_sizes_and_image_files(
    tmp_path: Path, people: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [-1, -1, 0, 1, 1, 5]
    (tmp_path / "odd").mkdir()
    with RecordWriter(tmp_path / "odd/train.rec") as writer:
        for key, label in enumerate(labels):
            writer.write(key, label, encoded(picture(key, 96, 96)))
    pack("convert", tmp_path / "odd", tmp_path / "png", "--encoding", "png")
    for (label, png), (expected, jpeg) in zip(_content(tmp_path / "png"), _content(tmp_path / "odd"), strict=True):
        assert label == expected and np.array_equal(decode_image(png, ""), decode_image(jpeg, ""))
    assert not (tmp_path / "png/classes.csv").exists()
    with pytest.raises(UserError, match="the image is 96x96, expected 112x112"):
        pack("convert", tmp_path / "odd", tmp_path / "raw", "--encoding", "raw")
    with pytest.raises(UserError, match="--size 96: raw images have 112x112 pixels"):
        pack("folder", people[0], tmp_path / "small", "--size", 96, "--encoding", "raw")
    pack("folder", people[0], tmp_path / "packed", "--encoding", "raw")
    assert "raw images load faster if they fit into memory" in capsys.readouterr().out
    pack("convert", people[0], tmp_path / "converted", "--encoding", "raw")
    assert read_files(tmp_path / "converted") == read_files(tmp_path / "packed")


def test_folders_and_lists_are_verified_and_shown_like_packed_sets(
    tmp_path: Path, people: tuple[Path, dict[str, bytes]], monkeypatch
) -> None:
    photos, files = people
    (tmp_path / "list.txt").write_text(
        "".join(f"photos/{path} {sorted(PEOPLE).index(path.split('/')[0])}\n" for path in sorted(files))
    )
    pack("folder", photos, tmp_path / "packed")
    for source in ("packed", "photos", "list.txt"):
        assert _faults(tmp_path / source) == set()
        pack("grid", tmp_path / source, tmp_path / f"{source}.png")
    assert len({picture.read_bytes() for picture in tmp_path.glob("*.png")}) == 1
    with pytest.raises(UserError, match=r"photos: its images are files already; give a packed set"):
        pack("unpack", photos, tmp_path / "back")
    write_files(
        photos, {"ann/x.jpg": files["cy/1.jpg"], "bob/x.jpg": b"no image", "zoe/1.png": encoded(picture(1, 92, 112), ".png")}
    )
    monkeypatch.setattr("recognition.data.sets.pictures._CHECKED", 1)  # the others are left to `verify`
    report = verify(photos, 2)
    assert {what for what, _, fault in report.rows if fault} == {
        "images that cannot be decoded",
        "images that repeat one of another identity",
        "images that are not 112x112",
        "sizes",
    }
    assert [re.sub(r"(^| )/.*?/photos/", r"\1", message.split(";")[0]) for message in report.messages] == [
        "bob/x.jpg: the image (8 bytes) cannot be decoded: it is not a JPEG, PNG, WebP, GIF, TIFF, BMP or PGM/PPM/PBM file",
        "cy/1.jpg (image 7, label 2) repeats ann/x.jpg (image 3, label 0)",
        "zoe/1.png: the image is 112x92",
    ]


def test_raw_records_of_the_wrong_length(tmp_path: Path) -> None:
    raw = encoded(picture(1), ".bmp")
    with RecordWriter(tmp_path / "x.rec") as writer:
        for key, payload in enumerate((raw, raw[:-4], raw + bytes(4), encoded(picture(2)))):
            writer.write(key, key % 2, payload)
    place = r"x\.rec: key 1, byte offset 37720: the image \(37682 bytes\) cannot be decoded: it is neither.*37686 bytes"
    settings = {"batch_size": 4, "num_classes": 2, "views": 1, "queue": "none", "shuffle": "none"}
    for augmentation in ("none", "qgface"):
        images = np.empty((1, 4, 112, 112, 3), np.uint8)
        spec = BatchSpec.of(from_base(augmentation=augmentation, **settings))
        with pytest.raises(RecordError, match=place):
            BatchMaker(FaceDataset(tmp_path), spec).fill(0, 0, images)
        batch = BatchMaker(FaceDataset(tmp_path), replace(spec, on_error="skip")).fill(0, 0, images)
        assert batch.labels_B.tolist() == [0, -1, -1, 1] and [fault.key for fault in batch.skipped] == [1, 2]
        assert (images[0, 1:3] == 128).all()
    report = verify(tmp_path / "x.rec", 1)
    assert ("images that cannot be decoded", "2", True) in report.rows
    for message, key, length in zip(report.messages, (1, 2), (37682, 37690), strict=False):
        assert re.search(rf"x\.rec: key {key}, byte offset \d+: the image \({length} bytes\) cannot be decoded", message)


def test_verify_counts_gaps_and_duplicates(tmp_path: Path) -> None:
    images = [encoded(picture(k)) for k in range(3)]
    with RecordWriter(tmp_path / "x.rec") as writer:
        for key, (label, image) in enumerate([(0, 0), (0, 0), (0, 1), (2, 1), (2, 2)]):
            writer.write(key, label, images[image])
    report = verify(tmp_path / "x.rec", 1)
    assert ("images that repeat one of the same identity", "1", False) in report.rows
    assert ("images that repeat one of another identity", "1", True) in report.rows
    assert ("labels without an image", "1", True) in report.rows
    assert report.faults == 2 and verify(tmp_path / "x.rec", 1, any_labels=True).faults == 1
    assert [re.sub(r"[^ ]*/|, byte offset \d+", "", message) for message in report.messages] == [
        "x.rec: key 1 (image 1, label 0) repeats x.rec: key 0 (image 0, label 0)",
        "x.rec: key 3 (image 3, label 2) repeats x.rec: key 2 (image 2, label 0)",
    ]
    pack("subset", tmp_path / "x.rec", tmp_path / "clean", "--drop-repeated")
    assert _content(tmp_path / "clean") == [(0, images[0]), (1, images[2])] and _faults(tmp_path / "clean") == set()


def test_verify_names_repeated_images_by_their_paths(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    photos, files = people
    write_files(photos, {"bob/9.jpg": files["cy/1.jpg"]})
    pack("folder", photos, tmp_path / "packed")
    assert verify(tmp_path / "packed", 2).messages == ["cy/1.jpg (image 6, label 2) repeats bob/9.jpg (image 4, label 1)"]


def test_reindex(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    pack("folder", people[0], tmp_path / "packed")
    rec, idx = tmp_path / "packed/train.rec", tmp_path / "packed/train.idx"
    written = sorted(idx.read_bytes().splitlines())
    pack("reindex", rec)  # reports that it is correct
    idx.unlink()
    pack("reindex", rec)
    assert sorted(idx.read_bytes().splitlines()) == written
    idx.write_bytes(b"0\t0\n")
    with pytest.raises(UserError, match="--force"):
        pack("reindex", rec)
    pack("reindex", rec, "--force")
    assert sorted(idx.read_bytes().splitlines()) == written
    with rec.open("r+b") as file:
        file.seek(int(RecordReader(rec).offsets[3]))
        file.write(b"bad")
    with pytest.raises(UserError, match="byte offset"):
        pack("reindex", rec, "--force")
    pack("reindex", rec, "--force", "--on-error", "skip")
    kept = [line for line in written if line.split(b"\t")[0] not in (b"2", b"3")]  # nor the one before, whose end is unknown
    assert sorted(idx.read_bytes().splitlines()) == kept


def test_grid_shows_images_and_augmentations(tmp_path: Path, people: tuple[Path, dict[str, bytes]]) -> None:
    photos, files = people
    pack("folder", photos, tmp_path / "packed")
    pack("grid", tmp_path / "packed", tmp_path / "g.png", "--first", 2, "--images", 4)
    sheet = cv2.imread(str(tmp_path / "g.png"))
    assert sheet.shape == (2 + 2 * 114, 2 + 4 * 114, 3)
    expected = cv2.imdecode(np.frombuffer(files["deb d'Été, jr/1.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(sheet[116:228, 116:228], expected)
    assert (sheet[116:228, 230:] == 255).all()  # two images only
    one_row = ("--images", 3, "--first", 1, "--identities", 1)
    pack("grid", tmp_path / "packed", tmp_path / "v.png", "--augmentation", "qgface", *one_row)
    views = cv2.imread(str(tmp_path / "v.png"), cv2.IMREAD_COLOR_RGB)
    original = views[2:114, 2:114]
    draw = uniforms(0, 0, np.arange(2) + 3, UNIFORMS)[1]
    assert np.array_equal(views[2:114, 230:342], AUGMENTATIONS["qgface"](original, draw))


@needs_faces
def test_grid_shows_benchmarks(tmp_path: Path) -> None:
    """Figures 4b-4d: pairs with the colour of their kind, templates, people of TinyFace."""
    out = tmp_path / "sheet.png"

    def sheet(source: str, *arguments: object) -> np.ndarray:
        pack("grid", FACES / "val" / source, out, "--first", 28, *arguments)
        return cv2.imread(str(out), cv2.IMREAD_COLOR_RGB)

    encoded, issame = load_bin(FACES / "val/lfw_hq.bin")
    shown = sheet("lfw_hq.bin", "--identities", 2, "--images", 4)
    assert issame[28:32].tolist() == [True, True, False, False] and shown.shape == (2 + 2 * 114, 2 + 4 * 114, 3)
    for place, (top, left) in enumerate([(2, 2), (2, 230), (116, 2), (116, 230)]):
        colour = SAME if issame[28 + place] else DIFFERENT
        face = decode_image(encoded[2 * (28 + place)], "")
        assert (shown[top, left : left + 112] == colour).all()
        assert np.array_equal(shown[top + 3 : top + 109, left + 3 : left + 109], face[3:-3, 3:-3])

    images = find_tinyface(FACES / "val/tinyface")
    person = np.unique(images.labels[: images.probes])[28]
    assert np.array_equal(sheet("tinyface")[2:114, 2:114], images.load(int(np.argmax(images.labels == person))))
    assert len(np.unique(sheet("IJBB", "--identities", 3)[2:114, 2:114])) > 100
    for arguments, message in (
        (("--augmentation", "qgface"), "is a benchmark"),
        (("--first", 600), "has 600, counted from 0"),
        (("--images", 1), "two or more"),
    ):
        with pytest.raises(UserError, match=message):
            pack("grid", FACES / "val/lfw_hq.bin", out, *arguments)


@needs_faces
def test_grey_pictures_of_other_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ORL: 40 people x 10 PGMs of 92x112."""
    pack("folder", FACES / "orl", tmp_path / "packed")
    found = "orl: 400 images were made to fit (--fit crop); the first: s1/1.pgm is 92x112; "
    warned = capsys.readouterr().err
    assert found in warned and f"python -m recognition.data.pack align {FACES / 'orl'} ALIGNED --detector" in warned
    report = verify(tmp_path / "packed", 2)
    assert report.faults == 0 and ("images", "400", False) in report.rows and ("classes", "40", False) in report.rows
    faces = FaceDataset(tmp_path / "packed")
    source = cv2.imread(str(FACES / "orl/s1/1.pgm"), cv2.IMREAD_COLOR)[10:102]  # its central square
    wanted = cv2.resize(source, (112, 112), interpolation=cv2.INTER_CUBIC)
    found = cv2.imdecode(np.frombuffer(faces.read(0)[0], np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(found.astype(int) - wanted).mean() < 3
    pack("unpack", tmp_path / "packed", tmp_path / "back")
    assert (tmp_path / "back/s1/1.pgm.jpg").read_bytes() == faces.read(0)[0]
    pack("folder", tmp_path / "back", tmp_path / "again", "--no-list")
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


@needs_faces
def test_a_set_written_by_mxnet_is_packed_again_byte_for_byte(tmp_path: Path) -> None:
    """3,831 images of 430 people, unpacked to folders and packed: records, index and metadata are equal."""
    source = FACES / "lfw_train"
    pack("unpack", source, tmp_path / "photos")
    pack("folder", tmp_path / "photos", tmp_path / "packed")
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / "packed" / name).read_bytes() == (source / name).read_bytes()


def test_mxnet_reads_packed_sets(tmp_path: Path) -> None:
    """With scripts/check_with_mxnet.py: every record, and every pixel of a file without metadata records."""
    interpreter = os.environ.get("QGFACE_MXNET_PYTHON")
    if not interpreter:
        pytest.skip("QGFACE_MXNET_PYTHON names no interpreter with mxnet")
    make_people(tmp_path / "photos", PEOPLE)
    pack("folder", tmp_path / "photos", tmp_path / "whole")
    pack("folder", tmp_path / "photos", tmp_path / "small", "--size", 16, "--png", "--shards", 2)
    pack("convert", tmp_path / "whole", tmp_path / "raw", "--encoding", "raw")
    expected = {}
    sources = ("whole/train", "whole"), ("raw/train", "raw"), ("small/shard_00000", "part"), ("small/shard_00001", "flat")
    for source, name in sources:
        for suffix in (".rec", ".idx"):
            (tmp_path / f"{name}{suffix}").write_bytes((tmp_path / f"{source}{suffix}").read_bytes())
        reader = RecordReader(tmp_path / f"{name}.rec")
        expected[f"{name}.rec"] = [
            {"key": int(key), "label": r.label.tolist(), "flag": r.flag, "id": r.id, "id2": r.id2, "payload": r.payload.hex()}
            for key, r in ((key, reader.read(key)) for key in reader.keys[np.argsort(reader.offsets)])
        ]
    for record in expected["flat.rec"]:
        image = cv2.imdecode(np.frombuffer(bytes.fromhex(record["payload"]), np.uint8), cv2.IMREAD_COLOR_RGB)
        record["pixels"] = hashlib.sha256(image.transpose(2, 0, 1).tobytes()).hexdigest()
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    command = [interpreter, "-m", "scripts.check_with_mxnet", "read", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "all read back byte for byte" in done.stdout, done.stdout + done.stderr
