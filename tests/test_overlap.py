"""Images that verification sets share with the training set."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval.commands.common import overlap
from recognition.data import FaceDataset
from recognition.data.bins import write_bin
from recognition.data.overlap import nearest_training_images, training_hashes
from tests.eval_commands import run_eval
from tests.pack_tools import make_people, pack, picture
from tests.world import run_world
from utils import dist
from utils.errors import UserError


def cells(images_nHWC: torch.Tensor) -> torch.Tensor:
    rows = torch.nn.functional.avg_pool2d(images_nHWC.float().mean(dim=3)[:, None], 7).flatten(1)
    return rows - rows.mean(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """A training set of 12 images; a.bin: 20 images, two of them training images (one as PNG), a third one compressed again."""
    root = tmp_path_factory.mktemp("overlap")
    files = make_people(root / "photos", {"a": 6, "b": 6})
    pack("folder", root / "photos", root / "packed")
    trained = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in files.values()]
    images = [cv2.imencode(".png", picture(100 + number))[1].tobytes() for number in range(40)]
    write_bin(root / "clean.bin", images, [True, False] * 10)
    images[3] = next(iter(files.values()))
    images[8] = cv2.imencode(".png", trained[4])[1].tobytes()
    images[15] = cv2.imencode(".jpg", trained[7], [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    write_bin(root / "a.bin", images, [True, False] * 10)
    return root


def check(root: Path, *arguments: object) -> None:
    run_eval(cells, "verify", "--checkpoint", "x", "--bins", root / "clean.bin", root / "a.bin", *arguments)


def printed(root: Path, *arguments: object) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as text:
        check(root, *arguments)
    return text.getvalue()


def test_shared_images_are_counted_and_named(sets):
    first, second = run_world(2, printed, sets, "--training-set", sets / "packed", "--overlap", "near")
    warnings = first.splitlines()
    assert second == ""
    assert len(warnings) == 2 and not any("clean" in line for line in warnings)
    assert "a: 2 of 40 images are training images, such as image 3 is " in warnings[0] and "key 1," in warnings[0]
    assert "a: 3 of 40 images are almost equal to a training image for this encoder (cosine 0.95 or more)" in warnings[1]


def test_only_small_sets_are_checked_unasked(sets, capsys, monkeypatch):
    dist.start()
    check(sets, "--training-set", sets / "packed")
    assert "training images" in capsys.readouterr().err
    for arguments in (("--overlap", "off"), ()):
        monkeypatch.setattr(overlap, "_QUICK", 5)
        check(sets, "--training-set", sets / "packed", *arguments)
        assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="x: has no training set; give --training-set REC"):
        check(sets, "--overlap", "exact")
    with pytest.raises(UserError, match="absent"):
        check(sets, "--training-set", sets / "absent")
    dist.stop()


def test_damaged_training_images_are_left_out(sets, tmp_path):
    faces = FaceDataset(sets / "packed", strict=False)
    whole = training_hashes(faces)
    assert len(set(whole.tolist())) == 12 and whole.all()
    rec = bytearray((sets / "packed/train.rec").read_bytes())
    (tmp_path / "train.rec").write_bytes(rec.replace(b"\xff\xd8\xff", b"\0\0\0", 1))
    (tmp_path / "train.idx").write_bytes((sets / "packed/train.idx").read_bytes())
    damaged = training_hashes(FaceDataset(tmp_path, strict=False))
    assert (damaged == 0).sum() == 1 and np.array_equal(damaged[damaged > 0], whole[damaged > 0])


def test_the_nearest_is_found_across_blocks(monkeypatch):
    monkeypatch.setattr("recognition.data.overlap._BLOCK", 7)
    rng = np.random.default_rng(0)
    known, wanted = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    cosine, nearest = nearest_training_images(lambda part: known[part.start : part.stop], 30, wanted)
    products = (wanted / np.linalg.norm(wanted, axis=1)[:, None]) @ (known / np.linalg.norm(known, axis=1)[:, None]).T
    assert np.array_equal(nearest, products.argmax(axis=1)) and np.allclose(cosine, products.max(axis=1), atol=1e-6)
