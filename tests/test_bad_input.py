"""A user's mistakes: one line on stderr that names what is wrong, exit code 2, no traceback."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data import RecordReader, RecordWriter
from tests.commands import train

CONFIG = "tests/tiny_config"


def _complaint(*arguments: str, ranks: int = 0) -> str:
    done = train(CONFIG, *arguments, ranks=ranks, timeout=120, fresh=ranks > 0)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if not ranks:  # torchrun adds its own report
        assert done.returncode == 2, done.stderr
        assert done.stderr.strip() == "\n".join(errors), done.stderr
        assert "Traceback" not in done.stderr
    assert len(errors) == 1, done.stderr
    return errors[0]


def _copy(demo_set: Path, folder: Path) -> Path:
    shutil.copytree(demo_set, folder)
    return folder


def test_missing_rec(tmp_path):
    assert "nonesuch" in _complaint(f"rec={tmp_path / 'nonesuch'}")
    assert "rec is not set" in _complaint()


def test_empty_rec(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    (folder / "train.rec").write_bytes(b"")
    assert "train.rec" in _complaint(f"rec={folder}", f"output={tmp_path / 'run'}")


def test_truncated_rec(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    content = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(content[: len(content) // 2])
    text = _complaint(f"rec={folder}", f"output={tmp_path / 'run'}")
    assert "train.rec" in text and "key" in text


def test_index_past_the_end(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    lines = (folder / "train.idx").read_text().splitlines()
    lines[5] = f"{lines[5].split()[0]}\t999999999"
    (folder / "train.idx").write_text("\n".join(lines) + "\n")
    text = _complaint(f"rec={folder}", f"output={tmp_path / 'run'}")
    assert "999999999" in text


@pytest.mark.parametrize("ranks", [0, 2])
def test_label_outside_the_classes(demo_set, tmp_path, ranks):
    text = _complaint(f"rec={demo_set}", "num_classes=12", f"output={tmp_path / 'run'}", ranks=ranks)
    assert "label 12 is outside [0, 12)" in text and "key" in text and "offset" in text


def _rewrite(demo_set: Path, folder: Path, key: int, payload: bytes) -> Path:
    """A copy of the demo set in which one image is replaced."""
    folder.mkdir()
    with RecordReader(demo_set / "train.rec") as reader, RecordWriter(folder / "train.rec") as writer:
        for number in reader.keys.tolist():
            record = reader.read(number)
            label = record.label if record.flag else float(record.label[0])
            writer.write(number, label, payload if number == key else record.payload, id=record.id, id2=record.id2)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_image(demo_set, tmp_path, workers):
    folder = _rewrite(demo_set, tmp_path / "set", 7, b"\xff\xd8\xff no JPEG after all")
    text = _complaint(f"rec={folder}", f"output={tmp_path / 'run'}", f"num_workers={workers}", "num_epoch=30")
    assert "train.rec" in text and "key 7" in text and "offset" in text and "decoded" in text


def test_image_of_another_size(demo_set, tmp_path):
    _, encoded = cv2.imencode(".png", np.zeros((64, 48, 3), np.uint8))
    folder = _rewrite(demo_set, tmp_path / "set", 9, encoded.tobytes())
    text = _complaint(f"rec={folder}", f"output={tmp_path / 'run'}", "num_epoch=30")
    assert "48x64" in text and "112x112" in text and "key 9" in text


def test_unknown_key_under_torchrun_is_reported_once():
    assert "did you mean 'batch_size'" in _complaint("batchsize=3", ranks=2)


def test_too_few_images_for_a_batch(demo_set, tmp_path):
    assert "fewer than one batch" in _complaint(f"rec={demo_set}", "global_batch_size=200", f"output={tmp_path / 'run'}")


def test_batch_that_cannot_be_divided(demo_set, tmp_path):
    text = _complaint(f"rec={demo_set}", "global_batch_size=13", f"output={tmp_path / 'run'}", ranks=2)
    assert "cannot be divided by 2 ranks" in text


def test_unknown_network(demo_set, tmp_path):
    text = _complaint(f"rec={demo_set}", "network=r35", f"output={tmp_path / 'run'}")
    assert "r35" in text and "r34" in text


def test_option_that_the_network_does_not_have(demo_set, tmp_path):
    text = _complaint(f"rec={demo_set}", "network=mbf", "map_norm=True", f"output={tmp_path / 'run'}")
    assert "'mbf'" in text and "map_norm" in text


def test_missing_verification_set(demo_set, tmp_path):
    text = _complaint(f"rec={demo_set}", "val_targets=['lfw','demo_hq']", f"output={tmp_path / 'run'}")
    assert "'lfw' not found" in text and "those that are there: val_targets=demo_hq" in text


def test_bin_with_an_odd_number_of_images(demo_set, tmp_path):
    with open(tmp_path / "odd.bin", "wb") as file:
        pickle.dump(([b"a", b"b", b"c"], [True]), file)
    text = _complaint(f"rec={demo_set}", f"val_targets=['{tmp_path / 'odd.bin'}']", "max_steps=1", f"output={tmp_path / 'run'}")
    assert "odd.bin" in text and "3" in text


def test_output_that_cannot_be_written(demo_set, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in _complaint(f"rec={demo_set}", f"output={tmp_path / 'file' / 'run'}")


def test_fp16_on_a_cpu(demo_set, tmp_path):
    assert "precision=fp16 needs a GPU" in _complaint(f"rec={demo_set}", "precision=fp16", f"output={tmp_path / 'run'}")


def test_non_finite_training_stops_on_all_ranks_and_names_step_and_rank(demo_set, tmp_path):
    text = _complaint(f"rec={demo_set}", "lr=1e38", "max_grad_norm=0", "max_skipped=3", f"output={tmp_path / 'run'}", ranks=2)
    assert "not finite" in text and "3 steps in a row" in text and "step" in text and "rank" in text
