"""RecordIO: MXNet's golden files, comparison with a simple parser, all errors, processes, atomic writing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.data import RecordError, RecordReader, RecordWriter
from recognition.data.records.format import MAGIC_BYTES, frame
from recognition.data.records.index import load_index
from tests.shared_files import GOLDEN, ROOT, needs_golden
from utils.errors import UserError

MXNET_PYTHON = os.environ.get("QGFACE_MXNET_PYTHON")


def plain_records(data: bytes) -> list[tuple[int, bytes]]:
    """(offset, record) of each record in an undamaged file, parsed as the format is documented."""
    records, at = [], 0
    while at < len(data):
        begin, record, cflag = at, b"", 1
        while cflag in (1, 2):
            magic, word = struct.unpack_from("<II", data, at)
            assert magic == 0xCED7230A
            cflag, length = word >> 29, word & 0x1FFFFFFF
            record += (MAGIC_BYTES if at != begin else b"") + data[at + 8 : at + 8 + length]
            at += 8 + length + -length % 4
        records.append((begin, record))
    return records


def awkward_payloads(count: int, seed: int) -> list[bytes]:
    """Random bytes with magics at aligned and other places, at the ends and repeated; all lengths modulo 4; empty payloads."""
    draw = random.Random(seed)
    payloads = []
    for _ in range(count):
        pieces = [draw.randbytes(draw.choice([0, 1, 2, 3, 4, 8, 40])) for _ in range(draw.randrange(5))]
        payloads.append(MAGIC_BYTES.join(pieces) + MAGIC_BYTES * draw.randrange(3))
    return payloads


def write_faces(folder: Path, payloads: list[bytes], name: str = "train") -> Path:
    path = folder / f"{name}.rec"
    with RecordWriter(path) as writer:
        for key, payload in enumerate(payloads):
            writer.write(key, key % 7, payload)
    return path


# -- files written by MXNet


@needs_golden
@pytest.mark.parametrize("name", ["mxnet_insightface", "mxnet_im2rec"])
def test_reads_every_golden_record(name: str) -> None:
    expected = json.loads((GOLDEN / name / "expected.json").read_text())["records"]
    reader = RecordReader(GOLDEN / name / "train.rec")
    assert reader.keys.dtype == np.int64
    assert reader.keys.tolist() == sorted(record["key"] for record in expected)
    assert len(reader) == len(expected)
    for wanted in expected:
        record = reader.read(wanted["key"])
        assert record.label.dtype == np.float32
        assert record.label.tolist() == wanted["label"]
        assert hashlib.sha256(record.payload).hexdigest() == wanted["payload_sha256"]
        for field in {"flag", "id", "id2"} & set(wanted):
            assert getattr(record, field) == wanted[field]


@needs_golden
def test_reads_the_golden_file_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((GOLDEN / "sequential.json").read_text())
    reader = RecordReader(GOLDEN / "sequential.rec")
    assert "positions in the file" in capsys.readouterr().err
    hashes = [hashlib.sha256(record).hexdigest() for _, record in reader.sequential()]
    assert hashes == [record["sha256"] for record in expected]
    assert [hashlib.sha256(reader.read_raw(key)).hexdigest() for key in reader.keys.tolist()] == hashes


@needs_golden
@pytest.mark.parametrize("name", ["mxnet_insightface", "mxnet_im2rec"])
def test_writes_the_golden_files_again(name: str, tmp_path: Path) -> None:
    source = GOLDEN / name
    reader = RecordReader(source / "train.rec")
    with RecordWriter(tmp_path / "train.rec") as writer:
        for line in (source / "train.idx").read_text().splitlines():
            key = int(line.split("\t")[0])
            record = reader.read(key)
            label = record.label if record.flag else float(record.label[0])
            writer.write(key, label, record.payload, id=record.id, id2=record.id2)
    for file in ("train.rec", "train.idx"):
        assert (tmp_path / file).read_bytes() == (source / file).read_bytes()


@needs_golden
def test_writes_the_golden_sequence_again(tmp_path: Path) -> None:
    reader = RecordReader(GOLDEN / "sequential.rec")
    with RecordWriter(tmp_path / "again.rec") as writer:
        for key, (_, record) in enumerate(reader.sequential()):
            writer.write_raw(key, record)
    assert (tmp_path / "again.rec").read_bytes() == (GOLDEN / "sequential.rec").read_bytes()


@pytest.mark.skipif(not MXNET_PYTHON, reason="QGFACE_MXNET_PYTHON does not name a Python with mxnet")
def test_mxnet_reads_what_was_written(tmp_path: Path) -> None:
    for python, what in ((sys.executable, "write"), (MXNET_PYTHON, "read")):
        command = [str(python), "-m", "scripts.check_with_mxnet", what, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "all read back byte for byte" in done.stdout


# -- round trips, compared with the simple parser


def test_framing_equals_the_simple_parser(tmp_path: Path) -> None:
    records = awkward_payloads(800, seed=1)
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key, record in enumerate(records):
            writer.write_raw(key, record)
    data = (tmp_path / "a.rec").read_bytes()
    assert len(data) % 4 == 0
    assert [record for _, record in plain_records(data)] == records
    reader = RecordReader(tmp_path / "a.rec")
    assert list(reader.sequential()) == plain_records(data)
    assert [reader.read_raw(key) for key in range(len(records))] == records
    assert sum(record.count(MAGIC_BYTES) for record in records) > 800  # otherwise the test proves nothing


def test_labels_ids_and_payloads_are_read_back(tmp_path: Path) -> None:
    payloads = awkward_payloads(300, seed=2)
    draw = np.random.default_rng(3)
    labels: list[Any] = [7, 2.5, [3], [1.0, -2.0], np.arange(5, dtype=np.float32), np.int64(9), np.float32(0.1)]
    keys = draw.permutation(1000)[: len(payloads)].tolist()
    with RecordWriter(tmp_path / "a.rec") as writer:
        for at, (key, payload) in enumerate(zip(keys, payloads, strict=True)):
            writer.write(key, labels[at % len(labels)], payload, id=2**64 - 1 - at, id2=at)
        assert len(writer) == len(payloads)
    reader = RecordReader(tmp_path / "a.rec")
    assert reader.keys.tolist() == sorted(keys)
    for at, key in enumerate(keys):
        record, label = reader.read(key), labels[at % len(labels)]
        assert record.payload == payloads[at]
        assert np.array_equal(record.label, np.atleast_1d(np.asarray(label, np.float32)))
        assert record.flag == (np.size(label) if np.ndim(label) else 0)
        assert (record.id, record.id2) == (2**64 - 1 - at, at)
        assert reader.where(reader.position(key)).startswith(f"{tmp_path / 'a.rec'}: key {key}, byte offset ")


def test_headers_equal_the_records(tmp_path: Path) -> None:
    payloads = awkward_payloads(500, seed=4)
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key, payload in enumerate(payloads):
            writer.write(key, [key, 1] if key % 3 else key, payload)
    reader = RecordReader(tmp_path / "a.rec")
    (rows,) = reader.headers()
    for key, row in enumerate(rows):
        record = reader.read(key)
        if row["sound"]:
            assert (row["flag"], row["label"], row["id"]) == (record.flag, record.label[0], record.id)
            assert (row["bytes"] > 0) == bool(record.payload)
    assert rows["sound"].sum() > 300


def test_the_worked_example_of_the_documentation(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "worked.rec") as writer:
        writer.write(1, 7, b"\xff\xd8AB" + b"\x0a\x23\xd7\xce" + b"CDE")
        writer.write(0, [2, 3], b"")
    shown = re.findall(r"^    000000[0-9a-f]0: ([0-9a-f ]+)$", (ROOT / "docs" / "DATA.md").read_text(), re.MULTILINE)
    assert (tmp_path / "worked.rec").read_bytes() == bytes.fromhex("".join(shown))
    assert (tmp_path / "worked.idx").read_bytes() == b"1\t0\n0\t48\n"


# -- the index


def test_index_lines_in_any_order_and_ending(tmp_path: Path) -> None:
    path = write_faces(tmp_path, awkward_payloads(50, seed=5))
    lines = (tmp_path / "train.idx").read_text().splitlines()
    random.Random(0).shuffle(lines)
    reference = RecordReader(path)
    for text in ("\n".join(lines), "\r\n".join(lines) + "\r\n", "\n\n".join(lines)):
        (tmp_path / "other.idx").write_bytes(text.encode())
        reader = RecordReader(path, tmp_path / "other.idx")
        assert np.array_equal(reader.keys, reference.keys) and np.array_equal(reader.offsets, reference.offsets)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("x\t8", "line 2"), ("1 8", "line 2"), ("1\t", "line 2"), ("\t8", "line 2"), ("1\t8\t9", "line 2"),
        ("-1\t8", "line 2"), ("1\t8.5", "line 2"), ("1\t" + "9" * 19, "line 2"), ("1\x00\t8", "line 2"), ("1\té", "line 2"),
        ("0\t44", "key 0 occurs twice"), ("1\t0", "keys 0 and 1 share byte offset 0"),
    ],
)  # fmt: skip
def test_malformed_index_lines(line: str, named: str, tmp_path: Path) -> None:
    path = write_faces(tmp_path, [b"12345678"] * 3)
    (tmp_path / "train.idx").write_text(f"0\t0\n{line}\n2\t80\n", encoding="utf-8")
    with pytest.raises(UserError, match=named) as caught:
        RecordReader(path)
    assert str(tmp_path / "train.idx") in str(caught.value)


def test_one_endless_index_line_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = write_faces(tmp_path, [b"1"])
    with (tmp_path / "train.idx").open("wb") as file:
        file.truncate(1 << 33)  # 8 GiB of zeros, sparse
    with pytest.raises(UserError, match="line 1"):
        RecordReader(path)


def test_a_million_lines_need_no_python_objects(tmp_path: Path) -> None:
    count = 1_000_000
    keys = np.random.default_rng(0).permutation(count)
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{key * 4096}\n" for key in keys.tolist()))
    tracemalloc.start()
    index = load_index(tmp_path / "a.idx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(index.keys, np.arange(count)) and np.array_equal(index.offsets, index.keys * 4096)
    assert peak < 150e6  # two Python integers per line in a list would need 80 MB more than the arrays


@needs_golden
@pytest.mark.parametrize("name", ["mxnet_insightface", "mxnet_im2rec"])
def test_missing_index_is_rebuilt_and_never_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = RecordReader(GOLDEN / name / "train.rec")
    (tmp_path / "train.rec").symlink_to(GOLDEN / name / "train.rec")
    rebuilt = RecordReader(tmp_path / "train.rec")
    assert np.array_equal(rebuilt.keys, whole.keys) and np.array_equal(rebuilt.offsets, whole.offsets)
    warning = capsys.readouterr().err
    assert "train.idx: missing" in warning and "the records' ids" in warning
    assert [file.name for file in tmp_path.iterdir()] == ["train.rec"]


def test_rebuilding_equals_the_simple_parser_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recognition.data.records.index._SCAN_BLOCK", 64)  # so that parts and headers extend across blocks
    path = write_faces(tmp_path, awkward_payloads(400, seed=6))
    indexed = RecordReader(path)
    (tmp_path / "train.idx").unlink()
    rebuilt = RecordReader(path)
    assert rebuilt.offsets.tolist() == [offset for offset, _ in plain_records(path.read_bytes())]
    assert np.array_equal(rebuilt.keys, indexed.keys)


def test_rebuilding_after_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_faces(tmp_path, [bytes([key]) * 40 for key in range(10)])
    damaged = bytearray(path.read_bytes())
    damaged[4 * 72 + 4] ^= 8  # the length of record 4
    path.write_bytes(damaged[:-3])  # and truncate the last one
    (tmp_path / "train.idx").unlink()
    with pytest.raises(RecordError, match="byte offset 288") as caught:
        RecordReader(path)
    assert caught.value.offset == 288
    reader = RecordReader(path, strict=False)
    assert reader.keys.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert reader.read(5).payload == bytes([5]) * 40
    assert "2 damaged places" in capsys.readouterr().err


# -- errors


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.rec: the \.rec file cannot be opened \(No such file"):
        RecordReader(tmp_path / "none.rec")
    with pytest.raises(UserError, match="is a folder"):
        RecordReader(tmp_path)
    (tmp_path / "empty.rec").touch()
    with pytest.raises(UserError, match=r"empty\.rec: the \.rec file is empty"):
        RecordReader(tmp_path / "empty.rec")
    (tmp_path / "text.rec").write_text("no record in here\n" * 9)
    with pytest.raises(UserError, match="contains no RecordIO record"):
        RecordReader(tmp_path / "text.rec")
    path = write_faces(tmp_path, [b"1"])
    (tmp_path / "train.idx").write_text("")
    with pytest.raises(UserError, match=r"train\.idx: the index is empty"):
        RecordReader(path)


def test_every_truncation_is_an_error_that_names_the_record(tmp_path: Path) -> None:
    path = write_faces(tmp_path, [b"a" * 30, MAGIC_BYTES * 3 + b"b" * 21, b"c" * 10])
    whole = path.read_bytes()
    offsets = RecordReader(path).offsets.tolist()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError, match="truncated") as caught:
            RecordReader(path)
        assert caught.value.offset in offsets and caught.value.key == offsets.index(caught.value.offset)
        assert str(path) in str(caught.value) and f"byte offset {caught.value.offset}" in str(caught.value)
        tolerant = RecordReader(path, strict=False)
        for key, end in enumerate([*offsets[1:], len(whole)]):
            if end < size:
                assert tolerant.read_raw(key)
            elif end > size:
                with pytest.raises(RecordError):
                    tolerant.read(key)


def test_every_flipped_byte_of_a_part_head_is_noticed(tmp_path: Path) -> None:
    path = write_faces(tmp_path, [MAGIC_BYTES * (key == 3) + bytes([key]) * (50 + key) for key in range(6)])
    whole = path.read_bytes()
    original = RecordReader(path)
    records = [original.read_raw(key) for key in range(6)]
    heads = [at for at in range(0, len(whole), 4) if whole[at : at + 4] == MAGIC_BYTES]
    assert len(heads) == 7
    for head in heads:
        hit = int(np.searchsorted(original.offsets, head, side="right")) - 1
        for at in range(head, head + 8):
            for change in (1, 4, 0x20, 0x40, 0x80, 0xFF):
                damaged = bytearray(whole)
                damaged[at] ^= change
                path.write_bytes(damaged)
                reader = RecordReader(path, strict=False)
                for key in range(6):
                    if key == hit:
                        length_only = at >= head + 4 and len(records[key]) % 4  # one that only changes the padding
                        try:
                            assert reader.read_raw(key) != records[key] and length_only
                        except RecordError as error:
                            assert (error.key, error.offset) == (key, original.offsets[key])
                    else:  # even the previous one: by the index, the next magic is damaged, and not its length
                        assert reader.read_raw(key) == records[key]


def test_index_of_another_file_or_past_the_end(tmp_path: Path) -> None:
    path = write_faces(tmp_path, [b"x" * 40] * 5)
    other = write_faces(tmp_path, [b"y" * 44] * 5, name="other")
    with pytest.raises(RecordError, match=r"key 4, byte offset 304: no record starts here.*another file"):
        RecordReader(path, other.with_suffix(".idx"))
    tolerant = RecordReader(path, other.with_suffix(".idx"), strict=False)
    with pytest.raises(RecordError, match=r"key 2, byte offset 152: no record starts here.*another file"):
        tolerant.read(2)
    (tmp_path / "far.idx").write_text("0\t0\n9\t999999\n")
    with pytest.raises(RecordError, match=r"key 9, byte offset 999999: past the end.*360 bytes"):
        RecordReader(path, tmp_path / "far.idx")


def test_incomplete_index_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_faces(tmp_path, [b"x" * 40] * 5)
    (tmp_path / "part.idx").write_text("1\t72\n2\t144\n")
    assert len(RecordReader(path, tmp_path / "part.idx")) == 2
    assert "covers bytes 72 to 216 of the 360" in capsys.readouterr().err


def test_unknown_key(tmp_path: Path) -> None:
    reader = RecordReader(write_faces(tmp_path, [b"x"] * 3))
    for key in (-1, 3, 10**17):
        with pytest.raises(UserError, match=f"no record with key {key}"):
            reader.read(key)
    with RecordWriter(tmp_path / "gaps.rec") as writer:
        for key in (2, 9, 4):
            writer.write(key, 0, b"%d" % key)
    gaps = RecordReader(tmp_path / "gaps.rec")
    assert [gaps.read(key).payload for key in gaps.keys.tolist()] == [b"2", b"4", b"9"]
    for key in (0, 3, 10):
        with pytest.raises(UserError, match=f"no record with key {key}"):
            gaps.read(key)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b"", "holds 0 bytes, fewer than"),
        (b"x" * 23, "holds 23 bytes, fewer than"),
        (struct.pack("<IfQQ", 3, 0, 0, 0) + b"x" * 11, "announces 3 labels, but it holds 35 bytes"),
        (struct.pack("<IfQQ", 0xFFFFFFFF, 0, 0, 0) + b"x" * 99, "announces 4294967295 labels"),
    ],
)
def test_header_too_short(record: bytes, problem: str, tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, 1, b"sound")
        writer.write_raw(5, record)
    reader = RecordReader(tmp_path / "a.rec")
    assert reader.read_raw(5) == record
    with pytest.raises(RecordError, match=f"key 5, byte offset 40: .*{problem}"):
        reader.read(5)


def test_a_damaged_length_allocates_no_memory(tmp_path: Path) -> None:
    path = write_faces(tmp_path, [b"x" * 40] * 2)
    with path.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", (1 << 29) - 4))
        file.truncate(1 << 32)  # sparse: the length fits the file
    reader = RecordReader(path, strict=False)
    tracemalloc.start()
    with pytest.raises(RecordError, match="key 0, byte offset 0: no record follows"):
        reader.read(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_records_beyond_a_mebibyte(tmp_path: Path) -> None:
    payloads = [bytes(3 << 20), b"a" * (1 << 20) + MAGIC_BYTES + b"b" * (2 << 20), b"small"]
    reader = RecordReader(write_faces(tmp_path, payloads))
    assert [reader.read(key).payload for key in range(3)] == payloads


def test_changed_and_deleted_files(tmp_path: Path) -> None:
    path = write_faces(tmp_path, [b"x" * 40] * 3)
    open_reader = RecordReader(path)
    assert open_reader.read(0).payload == b"x" * 40
    waiting = pickle.loads(pickle.dumps(open_reader))
    with path.open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(UserError, match="has 224 bytes now, but had 216"):
        waiting.read(0)
    path.unlink()
    assert open_reader.read(1).payload == b"x" * 40  # an open file stays readable
    open_reader.close()
    with pytest.raises(UserError, match="cannot be opened"):
        open_reader.read(1)


def test_errors_can_be_sent_between_processes() -> None:
    error = RecordError("a.rec", 3, 40, "is damaged")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.key, again.offset, str(again)) == ("a.rec", 3, 40, str(error))
    assert str(error) == "a.rec: key 3, byte offset 40: is damaged"


# -- processes


def _read_at_random(reader: RecordReader, seed: int, answers: Any) -> None:
    draw = random.Random(seed)
    keys = reader.keys.tolist()
    wrong = sum(reader.read(key).payload != b"%d" % key * 9 for key in draw.choices(keys, k=3000))
    held = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    answers.put((wrong, held.count(str(reader.path))))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_one_reader_serves_several_processes(method: str, tmp_path: Path) -> None:
    reader = RecordReader(write_faces(tmp_path.resolve(), [b"%d" % key * 9 for key in range(500)]))
    assert reader.read(0).payload == b"0" * 9  # so it is already open in this process
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    workers = [context.Process(target=_read_at_random, args=(reader, seed, answers)) for seed in range(3)]
    for worker in workers:
        worker.start()
    _read_at_random(reader, 9, answers)
    results = [answers.get(timeout=60) for _ in range(4)]
    for worker in workers:
        worker.join()
    assert results == [(0, 1)] * 4


def test_workers_import_neither_torch_nor_opencv() -> None:
    code = "import sys, recognition.data; sys.exit(bool({'torch', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# -- the writer


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_writer_leaves_the_old_pair(failure: type[BaseException], tmp_path: Path) -> None:
    path = write_faces(tmp_path, [b"old"])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(failure), RecordWriter(path) as writer:
        writer.write(0, 0, b"new" * 999)
        assert path.read_bytes() == before["train.rec"]
        assert list(tmp_path.glob("*.rec")) == [path]  # the growing file is not taken for a shard
        raise failure
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_clean_close_replaces_the_old_pair(tmp_path: Path) -> None:
    write_faces(tmp_path, [b"old"] * 5)
    path = write_faces(tmp_path, [b"new"] * 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train.idx", "train.rec"]
    assert [RecordReader(path).read(key).payload for key in range(2)] == [b"new"] * 2
    writer = RecordWriter(tmp_path / "b.rec")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(0, 0, b"")


@pytest.mark.parametrize(
    ("key", "label", "problem"),
    [
        (3, float("nan"), "neither a finite number"),
        (3, [1.0, float("inf")], "neither a finite number"),
        (3, [], "neither a finite number"),
        (3, 2**24 + 1, "16777217 would be stored as 16777216"),
        (3, [2**24 + 1, 0], "16777217 would be stored as 16777216"),
        (-3, 0, "key -3"),
        (10**18, 0, "key 1000000000000000000"),
        (1, 0, "key 1 was written twice"),
    ],
)
def test_the_writer_refuses_bad_labels_and_keys(key: int, label: float | list[float], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem), RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(1, 1, b"sound")
        writer.write(key, label, b"image", id=0)
    assert not list(tmp_path.iterdir())


def test_large_counts_are_allowed_in_records_without_an_image(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, [42_474_558, 44_533_877], b"")
    assert RecordReader(tmp_path / "a.rec").read(0).label.tolist() == [42_474_560, 44_533_876]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        RecordWriter(tmp_path / "none" / "a.rec")
    with pytest.raises(UserError, match="cannot share one name"):
        RecordWriter(tmp_path / "a.idx")


def _write_too_much(path: Path, answers: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    try:
        with RecordWriter(path) as writer:
            for key in range(9):
                writer.write(key, 0, bytes(1 << 20))
    except UserError as error:
        answers.put(str(error))


def test_a_file_that_cannot_grow_is_removed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    worker = context.Process(target=_write_too_much, args=(tmp_path / "a.rec", answers))
    worker.start()
    message = answers.get(timeout=60)
    worker.join()
    assert "a.rec: cannot be written (File too large); nothing was kept" in message
    assert not list(tmp_path.iterdir())


def test_a_record_too_long_for_the_format() -> None:
    with pytest.raises(ValueError, match="limit is 536870911"):
        frame(bytes(1 << 29))
