"""`python -m eval export`: folders for the Hugging Face Hub, fp16 and int8, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from eval.__main__ import build_parser
from eval.present.tables import write_results
from recognition import load_encoder
from recognition.encoders import hub
from recognition.encoders.card import EncoderCard
from recognition.encoders.thresholds import deploy
from tests.test_export import IMAGES, encoder, save_run
from utils import dist
from utils.errors import UserError

SET = {"lfw": {"accuracy": 0.9312, "accuracy low": 0.91, "accuracy high": 0.95, "std": 0.01, "auc": 0.97, "pairs": 600.0}}
INT8 = ("--precision", "int8", "--calibrate")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with results, a deployed threshold and data in a private folder."""
    folder = tmp_path_factory.mktemp("publish") / "run"
    save_run(folder, encoder("tiny"), channel_order="BGR", rec="/home/me/faces/people", val_dir="/home/me/val", scale=32.0)
    write_results(folder / "results.json", SET | {"tinyface": {"rank1": 0.51}})
    deploy(folder, 0.3, 0.001, 0.125, "ours")
    return folder


def export(run: object, out: Path, *options: object) -> None:
    given = ["export", "--checkpoint", run, "--out", out, *options]
    parsed = build_parser().parse_args([str(each) for each in given])
    dist.start()
    try:
        parsed.run(parsed, dist.World(0, 1, 0, 1, torch.device("cpu")))
    finally:
        dist.stop()


def test_a_published_folder_opens_bit_equal_and_describes_the_run(run, tmp_path, capsys):
    out = tmp_path / "new" / "my-encoder"
    export(run, out, "--format", "hub")
    assert "thresholds: deployed; fill in the licence" in capsys.readouterr().out
    before, after = (load_encoder(path, precision="fp32") for path in (run, out))
    assert torch.equal(before.embed(IMAGES), after.embed(IMAGES)) and after.label == "my-encoder (tiny)"
    assert after.card.thresholds[0].cosine == 0.3 and after.card.quality == before.card.quality

    assert {file.name for file in out.iterdir()} == {"README.md", "config.json", hub.MODEL, "preprocessor_config.json"}
    config, images = (json.loads((out / name).read_text()) for name in ("config.json", "preprocessor_config.json"))
    assert (config["network"], config["embedding_size"], config["thresholds"][0]["fnmr"]) == ("tiny", 32, 0.125)
    assert images["image_mean"] == images["image_std"] == [0.5] * 3 and images["channel_order"] == "BGR"

    card = (out / "README.md").read_text()
    front = card.split("---\n")[1]
    assert front.startswith("license: other")
    (index,) = json.loads(front.partition("model-index: ")[2])
    assert index["results"][0]["metrics"][0]["value"] == SET["lfw"]["accuracy"]
    for text in ("93.12 [91.00, 95.00] ± 1.00", "51.00", "| deployed | 0.3000 | FMR 0.1 %, FNMR 12.50 % |", "GDPR", "[Fill in: "):
        assert text in card
    assert "    rec = 'people'\n" in card and "    scale = 32.0\n" in card and "/home/me" not in card and "val_dir" not in card

    with pytest.raises(UserError, match="my-encoder: exists already; remove it or choose another name"):
        export(run, out, "--format", "hub")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("timm:convnext_atto", "pip install -r requirements/timm.txt"),
        ("my.parts:Net", "its code, the module `my.parts`, is not in"),
    ],
)
def test_the_model_card_states_what_other_networks_need(network, said):
    assert said in hub._requirement(EncoderCard(network, 32, "RGB"))
    assert hub._requirement(EncoderCard("tiny", 32, "RGB")) == ""


def test_smaller_precisions_stay_close_and_are_compared_with_fp32(run, tmp_path, demo_set, capsys):
    fp32 = load_encoder(run, precision="fp32")
    wanted, size = fp32.embed(IMAGES).numpy(), sum(value.nbytes for value in fp32.module.state_dict().values())
    for precision, options, share, least in (("fp16", (), 0.52, 0.9999), ("int8", ("--calibrate", demo_set), 0.33, 0.9)):
        out = tmp_path / f"{precision}.onnx"
        export(run, out, "--precision", precision, *options, "--bins", demo_set / "demo_hq.bin")
        assert out.stat().st_size < share * size
        loaded = load_encoder(out)
        assert loaded.card.quality == fp32.card.quality and loaded.card.channel_order == "BGR"
        found = loaded.embed(IMAGES).numpy()
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        assert ((found * wanted).sum(axis=1) / norms).min() > least
        printed = capsys.readouterr().out
        assert f"MB in {precision}, " in printed and f"accuracy, {precision}" in printed and "| demo_hq" in printed
        names = [node.name for node in onnx.load(str(out)).graph.node]
        assert not any(name.startswith(("Sub", "_minus", "Mul", "_mul")) for name in names)  # insightface would not normalise


def test_what_cannot_be_exported_is_one_line(run, tmp_path, monkeypatch):
    save_run(tmp_path / "fresh", encoder("tiny"))
    (tmp_path / "small" / "person").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "small/person/a.png"), np.zeros((96, 96, 3), np.uint8))
    out, model = tmp_path / "out", tmp_path / "e.onnx"
    for arguments, problem in (
        ((tmp_path / "fresh", out, "--format", "hub"), "no results.json with results, which a model card needs; evaluate first"),
        ((run, tmp_path / "e.safetensors", "--precision", "fp16"), r"--precision fp16: only an \.onnx can have it"),
        ((run, model, "--precision", "int8"), "--precision int8 and --calibrate SET belong together"),
        ((run, model, *INT8, tmp_path / "small"), "the image has 96x96 pixels, expected 112x112; align the faces"),
        ((run, model, *INT8, tmp_path / "absent"), "absent"),
        ((run, model, "--bins", tmp_path / "absent.bin"), r"absent\.bin"),
    ):
        with pytest.raises(UserError, match=problem):
            export(*arguments)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs the package onnxscript, .*: pip install -r requirements\.txt"):
        export(run, model)
    assert not out.exists() and not model.exists()
