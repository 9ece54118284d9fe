"""Lists of pairs to .bin; TinyFace's and SCface's folders to records in the order of the protocol."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from eval.verification import load_bin
from recognition.data import RecordReader
from recognition.data.pack.commands.tinyface import ROLES
from recognition.data.pack.commands.verify import verify
from tests.pack_tools import encoded, pack, picture, write_files
from tests.shared_files import FACES, needs_faces
from utils.errors import UserError
from utils.images import decode_image, is_raw_face


def _lfw(folder: Path) -> dict[str, bytes]:
    names = ["Ann_Lee/Ann_Lee_0001", "Ann_Lee/Ann_Lee_0003", "Bob/Bob_0001", "Bob/Bob_0012", "Cy/Cy_0002"]
    files = {f"{name}.jpg": encoded(picture(number)) for number, name in enumerate(names)}
    write_files(folder, files)
    return files


def test_lfw_pairs_to_bin(tmp_path: Path) -> None:
    files = _lfw(tmp_path / "lfw")
    write_files(tmp_path / "lfw", {"Dee/Dee_0001.png": encoded(picture(9), ".png")})
    (tmp_path / "pairs.txt").write_text("2\t1\nAnn_Lee\t1\t3\nBob\t1\tCy\t2\nBob\t1\t12\nCy\t2\tDee\t1\n")
    pack("pairs", tmp_path / "pairs.txt", tmp_path / "lfw", tmp_path / "lfw.bin")
    images, issame = load_bin(tmp_path / "lfw.bin")
    assert issame.tolist() == [True, False, True, False]
    ann, bob, cy = "Ann_Lee/Ann_Lee", "Bob/Bob", "Cy/Cy"
    order = [f"{ann}_0001", f"{ann}_0003", f"{bob}_0001", f"{cy}_0002", f"{bob}_0001", f"{bob}_0012", f"{cy}_0002"]
    assert images[:7] == [files[f"{name}.jpg"] for name in order]
    assert images[7].startswith(b"\xff\xd8\xff")  # the PNG, encoded again


def test_pairs_by_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _lfw(tmp_path / "lfw")
    (tmp_path / "list.txt").write_text("Bob/Bob_0001.jpg Bob/Bob_0012.jpg 1\nCy/Cy_0002.jpg Bob/Bob_0001.jpg 0\n")
    write_files(tmp_path / "lfw", {"large.jpg": encoded(picture(7, 250, 250))})
    (tmp_path / "large.txt").write_text("large.jpg large.jpg 1\n")
    pack("pairs", tmp_path / "large.txt", tmp_path / "lfw", tmp_path / "some.bin")
    assert "lfw: 2 images were made to fit (--fit crop); the first: large.jpg is 250x250; " in capsys.readouterr().err
    pack("pairs", tmp_path / "list.txt", tmp_path / "lfw", tmp_path / "some.bin")
    assert capsys.readouterr().err == ""
    images, issame = load_bin(tmp_path / "some.bin")
    assert issame.tolist() == [True, False]
    names = ["Bob/Bob_0001", "Bob/Bob_0012", "Cy/Cy_0002", "Bob/Bob_0001"]
    assert images == [files[f"{name}.jpg"] for name in names]


def test_sets_of_mixed_and_low_quality_come_from_the_same_pairs(tmp_path: Path) -> None:
    _lfw(tmp_path / "lfw")
    (tmp_path / "pairs.txt").write_text("1\nBob\t1\t12\nCy\t2\tBob\t1\n")
    sets = {}
    for name, options in (
        ("none", []),
        ("second", []),
        ("both", []),
        ("again", []),
        ("seed", ["--seed", 1]),
        ("tiny", ["--pixels", 4, 4]),
    ):
        kind = name if name in ("none", "second") else "both"
        out = tmp_path / f"{name}.bin"
        pack("pairs", tmp_path / "pairs.txt", tmp_path / "lfw", out, "--degrade", kind, *options)
        sets[name], issame = load_bin(out)
        assert issame.tolist() == [True, False]
    assert [a == b for a, b in zip(sets["none"], sets["second"], strict=True)] == [True, False, True, False]
    assert [a == b for a, b in zip(sets["second"], sets["both"], strict=True)] == [False, True, False, True]
    assert sets["both"] == sets["again"] and not set(sets["both"]) & {*sets["none"], *sets["seed"], *sets["tiny"]}
    assert len(set(sets["both"])) == 4, "Bob's first image, of both pairs, is degraded for each"
    assert sum(map(len, sets["tiny"])) < sum(map(len, sets["both"])) < sum(map(len, sets["none"]))
    for options, message in (
        (["--degrade", "both", "--pixels", 9, 8], "--pixels 9 8: expected 1 <= LOW <= HIGH"),
        (["--degrade", "both", "--seed", -1], "--seed -1: must not be negative"),
        (["--seed", 1], "add --degrade second"),
    ):
        with pytest.raises(UserError, match=message):
            pack("pairs", tmp_path / "pairs.txt", tmp_path / "lfw", tmp_path / "x.bin", *options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("1\t1\nBob\t1\t12\n", "but 1 follow"),
        ("1 1\nBob 1 12\nBob 1\n", "line 3"),
        ("1 1\nBob 1 Cy 2\nBob 1 12\n", "line 2: expected a pair of one person"),
        ("1 1\n../x 1 2\nBob 1 Cy 2\n", r"line 2: '\.\./x'"),
        ("1 1\nBob 1 2\nBob 1 Cy 2\n", r"line 2: .*Bob_0002\.jpg .* is missing"),
        ("../Bob.jpg Cy.jpg 1\n", "inside the folder"),
        ("/etc/passwd Cy.jpg 0\n", "inside the folder"),
        ("Bob/Bob_0001.jpg Cy/no.jpg 0\n", r"no\.jpg is missing"),
        ("Bob/Bob_0001.jpg Cy/Cy_0002.jpg 2\n", "line 1"),
    ],
)
def test_bad_lists_of_pairs(tmp_path: Path, text: str, message: str) -> None:
    _lfw(tmp_path / "lfw")
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        pack("pairs", tmp_path / "pairs.txt", tmp_path / "lfw", tmp_path / "lfw.bin")
    assert not list(tmp_path.glob("*.bin*"))


def _records(folder: Path) -> tuple[list[list[float]], list[bytes], list[list[str]]]:
    reader = RecordReader(folder / "train.rec")
    assert reader.keys.tolist() == list(range(len(reader))) and (reader.offsets[1:] > reader.offsets[:-1]).all()
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    records = [reader.read(key) for key in reader.keys]
    return [record.label.tolist() for record in records], [record.payload for record in records], rows


@needs_faces
def test_tinyface_in_the_protocols_order(tmp_path: Path) -> None:
    source = FACES / "val/tinyface/aligned_pad_0.1_pad_high"
    pack("tinyface", source, tmp_path / "out")
    labels, payloads, rows = _records(tmp_path / "out")
    assert len(labels) == len(rows) == sum(1 for _ in source.rglob("*.jpg"))
    assert [row[2] for row in rows[:2]] == ["Probe/1_2.jpg", "Probe/2_2.jpg"]
    for (identity, role), payload, (number, label, path, written_role) in zip(labels, payloads, rows, strict=True):
        folder, name = path.split("/")
        assert payload == (source / path).read_bytes()
        assert folder == ("Probe", "Gallery_Match", "Gallery_Distractor")[int(role)]
        assert identity == (-1 if role == 2 else int(name.split("_")[0]))
        assert (int(label), int(written_role)) == (identity, role) and rows[int(number)][2] == path
    assert [role for _, role in labels] == sorted(role for _, role in labels)
    assert verify(tmp_path / "out", 2, any_labels=True).faults == 0
    _converts(tmp_path)


def _converts(folder: Path) -> None:
    """`convert` changes neither labels nor order nor the list, and `unpack` the names."""
    pack("convert", folder / "out", folder / "raw", "--encoding", "raw")
    (labels, payloads, rows), (raw_labels, raw_payloads, raw_rows) = _records(folder / "out"), _records(folder / "raw")
    assert raw_labels == labels and raw_rows == rows
    for payload, raw in zip(payloads, raw_payloads, strict=True):
        assert is_raw_face(raw) and np.array_equal(decode_image(raw, ""), decode_image(payload, ""))
    assert verify(folder / "raw", 2, any_labels=True).faults == 0
    assert {path.name for path in (folder / "raw").iterdir()} == {path.name for path in (folder / "out").iterdir()}


@needs_faces
def test_scface_in_the_protocols_order(tmp_path: Path) -> None:
    source = FACES / "val/scface/aligned"
    pack("scface", source, tmp_path / "out")
    labels, payloads, rows = _records(tmp_path / "out")
    assert labels == sorted(labels) and len(labels) == 584
    assert [row[2] for row in rows[:3]] == ["001_frontal.jpg", "001_cam1_1.jpg", "001_cam1_2.jpg"]
    for (subject, camera, distance), payload, row in zip(labels, payloads, rows, strict=True):
        place = f"_{distance:.0f}" if distance else ""
        assert row[2] == f"{subject:03.0f}_" + (f"cam{camera:.0f}{place}.jpg" if camera else "frontal.jpg")
        assert payload == (source / row[2]).read_bytes()
        assert [float(row[column]) for column in (1, 3, 4)] == [subject, camera, distance]
    assert verify(tmp_path / "out", 2, any_labels=True).faults == 0
    _converts(tmp_path)


def test_incomplete_tinyface_folders(tmp_path: Path) -> None:
    image = encoded(picture(1))
    write_files(tmp_path / "t", {"Probe/7_1.jpg": image, "Gallery_Match/8_1.jpg": image})
    with pytest.raises(UserError, match="no folder Gallery_Distractor"):
        pack("tinyface", tmp_path / "t", tmp_path / "out")
    write_files(tmp_path / "t", {"Gallery_Distractor/9_1.jpg": image})
    with pytest.raises(UserError, match=r"1 probes have no match.*Probe/7_1\.jpg"):
        pack("tinyface", tmp_path / "t", tmp_path / "out")
    write_files(tmp_path / "t", {"Gallery_Match/7_2.jpg": image, "Probe/face.jpg": image})
    with pytest.raises(UserError, match=r"face\.jpg: is not named"):
        pack("tinyface", tmp_path / "t", tmp_path / "out")
    with pytest.raises(UserError, match="not named like SCface"):
        pack("scface", tmp_path / "t/Probe", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_error_for_a_parent_folder_suggests_the_right_one(tmp_path: Path) -> None:
    write_files(tmp_path, {"scface/aligned/001_frontal.jpg": b"", **{f"tiny/a/{role}/1_1.jpg": b"" for role in ROLES}})
    with pytest.raises(UserError, match=r"contains no images; .*, such as .*scface/aligned$"):
        pack("scface", tmp_path / "scface", tmp_path / "out")
    with pytest.raises(UserError, match=r"has no folder Probe; .*, such as .*tiny/a$"):
        pack("tinyface", tmp_path / "tiny", tmp_path / "out")
