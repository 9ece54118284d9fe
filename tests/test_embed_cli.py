"""`python -m eval embed`, `compare` and `export`: results and user errors."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import torch

import backbones
from eval.commands.compare import DEFAULT_THRESHOLD
from eval.verification import ten_fold
from recognition.data.pack.landmarks import align_image
from recognition.encoders.card import EncoderCard, QualityScale
from recognition.encoders.export import export_encoder
from recognition.encoders.thresholds import thresholds_of_run
from tests.commands import run as run_command
from tests.eval_commands import run_eval
from tests.pack_tools import LANDMARKS_IN_CELL, write_detector
from utils import dist
from utils.errors import UserError

SCALE = QualityScale(mean=20.0, std=5.0, concentration=0.333, threshold=0.2)


@pytest.fixture
def alone():
    dist.start()
    yield
    dist.stop()


@pytest.fixture
def photos(tmp_path):
    """a and b look alike, c does not."""
    rng = np.random.default_rng(1)
    a, c = rng.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name, image in (("a.png", a), ("b.png", np.clip(a.astype(int) + 3, 0, 255)), ("deeper/c.png", c)):
        cv2.imwrite(str(folder / name), image.astype(np.uint8))
    (folder / "notes.txt").write_text("not an image")
    return folder


def cells(images_nHWC: torch.Tensor) -> torch.Tensor:
    """An encoder without training: the image in 8x8x3, without its mean. Not symmetric under mirroring."""
    pooled = torch.nn.functional.avg_pool2d(images_nHWC.float().permute(0, 3, 1, 2), 14).flatten(1)
    return pooled - pooled.mean(dim=1, keepdim=True)


def evaluate(*arguments: str, quality: bool = False) -> None:
    run_eval(cells, *arguments, quality=SCALE if quality else None)


def faces(*paths) -> torch.Tensor:
    return torch.from_numpy(np.stack([cv2.imread(str(path))[..., ::-1] for path in paths]))


def test_embed_writes_features_norms_and_names_in_order(alone, photos, tmp_path):
    out = tmp_path / "new" / "f.npz"
    evaluate("embed", photos / "deeper/c.png", photos, "--checkpoint", "r", "--out", out, "--batch-size", "3", quality=True)
    order = [photos / "deeper/c.png", photos / "a.png", photos / "b.png", photos / "deeper/c.png"]
    found = np.load(out, allow_pickle=False)
    wanted = cells(faces(*order)).numpy()
    assert found["names"].tolist() == [str(path) for path in order]
    np.testing.assert_allclose(found["features"], wanted, atol=1e-4)
    norms = np.linalg.norm(wanted.astype(np.float64), axis=1)
    np.testing.assert_allclose(found["norms"], norms, rtol=1e-5)
    normalised = np.clip((np.clip(norms, 1e-3, 100) - 20) / ((5 + 1e-3) / 0.333), -1, 1)
    np.testing.assert_allclose(found["quality"], (normalised + 1) / 2, atol=1e-5)
    evaluate("embed", photos / "a.png", "--checkpoint", "r", "--out", out, "--flip")
    found = np.load(out, allow_pickle=False)
    image = faces(photos / "a.png")
    np.testing.assert_allclose(found["features"], (cells(image) + cells(image.flip(2))).numpy(), atol=1e-4)
    assert "quality" not in found  # norms of sums are not what the statistics are about


def test_compare_separates_same_from_different(alone, photos, tmp_path, capsys):
    out = tmp_path / "out.json"
    evaluate("compare", photos / "a.png", photos / "b.png", "--checkpoint", tmp_path, "--json", out, quality=True)
    figures = json.loads(out.read_text())["compare"]
    both = cells(faces(photos / "a.png", photos / "b.png")) + cells(faces(photos / "a.png", photos / "b.png").flip(2))
    assert figures["similarity"] == pytest.approx(float(torch.cosine_similarity(both[0], both[1], dim=0)), abs=1e-5)
    assert figures["same"] == 1.0 and figures["threshold"] == DEFAULT_THRESHOLD
    assert figures["norm_a"] == pytest.approx(float(cells(faces(photos / "a.png")).norm()), rel=1e-5)
    assert figures["quality_a"] == pytest.approx(float(SCALE.u(np.array([figures["norm_a"]]))[0]))
    shown = capsys.readouterr().out
    assert "same person" in shown and "the default" in shown and "quality" in shown
    evaluate("compare", photos / "a.png", photos / "deeper/c.png", "--checkpoint", tmp_path, "--json", out)
    assert json.loads(out.read_text())["compare"]["same"] == 0.0 and "quality_a" not in json.loads(out.read_text())["compare"]
    evaluate("compare", photos / "a.png", photos / "b.png", "--checkpoint", tmp_path, "--json", out, "--threshold", "0.9999999")
    assert json.loads(out.read_text())["compare"]["same"] == 0.0


def test_the_threshold_comes_from_the_runs_verification(tmp_path):
    rng = np.random.default_rng(0)
    issame = np.arange(100) % 2 == 0
    first = rng.normal(size=(100, 64))
    embeddings = np.stack([first, np.where(issame[:, None], first + rng.normal(size=(100, 64)), rng.normal(size=(100, 64)))], 1)
    result = ten_fold(embeddings.reshape(200, 64), issame)
    cosine = result.metrics()["similarity_threshold"]
    similarity = 1 - result.distances / 2
    assert ((similarity > cosine) == issame).mean() > 0.98  # it separates what the folds separate
    run = tmp_path / "run"
    (run / "checkpoints/step-1").mkdir(parents=True)
    assert thresholds_of_run(run) == ()
    (run / "results.json").write_text(json.dumps({"x": result.metrics(), "y": {"similarity_threshold": 0.1}, "z": {"auc": 1}}))
    for path in (run, run / "checkpoints/step-1"):
        first, *_ = thresholds_of_run(path)
        assert first.cosine == pytest.approx((cosine + 0.1) / 2) and (first.name, first.sets, first.fmr) == (
            "balanced",
            "x, y",
            None,
        )
    (run / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: cannot be read"):
        thresholds_of_run(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "{photos}/gone.png", "--out", "f.npz"], r"gone\.png: cannot be read \(No such file"),
        (["embed", "{photos}/notes.txt", "--out", "f.npz"], "notes.txt: the image .* cannot be decoded"),
        (["embed", "{empty}", "--out", "f.npz"], "no images in this folder; looked for"),
        (["embed", "{photos}", "--out", "f.csv"], r"the ending must be \.npz"),
        (["compare", "{photos}/a.png", "{photos}/small.png"], "small.png: the image is 50x40, .* --detector .*pack align"),
        (["embed", "{photos}", "--out", "f.npz"], "small.png: the image is 50x40, .* --detector .*pack align"),
        (["embed", "{photos}", "--out", "f.npz", "--detector", "{photos}/none.onnx"], r"none\.onnx: no such file"),
    ],
)
def test_user_errors_name_the_cause(alone, photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    cv2.imwrite(str(photos / "small.png"), np.zeros((40, 50, 3), np.uint8))
    if arguments[-1] == "f.csv":
        (photos / "small.png").unlink()
    filled = [argument.format(photos=photos, empty=tmp_path / "empty") for argument in arguments]
    with pytest.raises(UserError, match=message):
        evaluate(*filled, "--checkpoint", "r")


def test_photographs_are_aligned_with_a_detector(alone, tmp_path, capsys):
    folder, model, out = tmp_path / "photos", tmp_path / "squares.onnx", tmp_path / "f.npz"
    folder.mkdir()
    write_detector(model)
    face = np.full((32, 32, 3), 255, np.uint8)
    for name, (left, top) in (("a.png", (96, 64)), ("b.png", (256, 160))):
        photo = np.zeros((320, 400, 3), np.uint8)
        photo[top : top + 32, left : left + 32] = face
        photo[:, :50] = (0, 0, 200)  # red, in OpenCV's order
        cv2.imwrite(str(folder / name), photo)
    options = ("--checkpoint", tmp_path, "--detector", model)
    evaluate("compare", folder / "a.png", folder / "b.png", *options)
    shown = capsys.readouterr().out
    assert "verdict" in shown and "same person" in shown
    for score in (0.6, 0.5):
        evaluate("embed", folder, *options, "--out", out, "--cache", tmp_path / "kept", "--min-score", score)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    points = np.array(LANDMARKS_IN_CELL) * 32 + [96, 64]
    aligned = align_image(cv2.imread(str(folder / "a.png"))[..., ::-1], points, 112, "a")
    np.testing.assert_allclose(np.load(out)["features"][0], cells(torch.from_numpy(aligned[None])).numpy()[0], atol=1.0)


def test_commands_on_an_exported_file(photos, tmp_path):
    torch.manual_seed(0)
    net = backbones.build("tiny", 32).eval()
    export_encoder(net, EncoderCard("tiny", 32, "RGB", quality=SCALE), tmp_path / "e.safetensors")
    command = [sys.executable, "-m", "eval"]
    done = run_command(*command, "export", "--checkpoint", str(tmp_path / "e.safetensors"), "--out", str(tmp_path / "e.onnx"))
    assert done.returncode == 0, done.stderr
    assert "onnxruntime agrees with PyTorch" in done.stdout
    done = run_command(*command, "embed", str(photos), "--checkpoint", str(tmp_path / "e.onnx"), "--out", str(tmp_path / "f.npz"))
    assert done.returncode == 0, done.stderr
    pixels = faces(photos / "a.png", photos / "b.png", photos / "deeper/c.png").permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = net((pixels.float() - 127.5) / 127.5).numpy()
    found = np.load(tmp_path / "f.npz")
    np.testing.assert_allclose(found["features"], wanted, atol=1e-4 * np.abs(wanted).max())
    assert "quality" in found
    done = run_command(*command, "export", "--checkpoint", str(tmp_path / "e.onnx"), "--out", str(tmp_path / "g.onnx"))
    assert done.returncode == 2 and "is an .onnx already" in done.stderr and done.stderr.count("\n") == 1
