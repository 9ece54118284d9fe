"""Exported (.safetensors, .onnx) and loaded encoders (also others' .onnx, released weights): same features, clear errors."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

import backbones
from eval.__main__ import build_parser
from eval.commands.common import open_encoder
from eval.verification import load_bin
from recognition.checkpoints.store import Checkpoint
from recognition.checkpoints.writer import CheckpointWriter
from recognition.encoders.build import build_encoder, initialise
from recognition.encoders.card import EncoderCard, QualityScale
from recognition.encoders.embedder import autocast_type
from recognition.encoders.export import export_encoder
from recognition.encoders.load import load_encoder
from tests.shared_files import FACES, needs_faces
from tests.world import run_world
from utils import dist
from utils.config import from_base
from utils.errors import UserError

CPU = torch.device("cpu")
INSIGHTFACE = os.environ.get("QGFACE_INSIGHTFACE_PYTHON", "")
IMAGES = torch.from_numpy(np.random.default_rng(7).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8))


def encoder(name: str, size: int = 32, seed: int = 0, **options: bool) -> torch.nn.Module:
    """A backbone with random BatchNorm statistics, so that lost statistics would be noticed."""
    torch.manual_seed(seed)
    net = backbones.build(name, size, **options).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@torch.no_grad()
def expected(net: torch.nn.Module, order: str) -> np.ndarray:
    """Features of IMAGES (RGB) by definition."""
    pixels = IMAGES.numpy() if order == "RGB" else IMAGES.numpy()[..., ::-1]
    return net(torch.from_numpy(((pixels.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2).copy())).numpy()


def close(features: torch.Tensor, wanted: np.ndarray, within: float = 1e-4) -> None:
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features.numpy(), wanted, rtol=0, atol=within * max(1.0, np.abs(wanted).max()))


@pytest.fixture(autouse=True)
def plain_numbers(monkeypatch):
    """Precision "auto" means fp32 on any processor, so that features can be compared closely."""
    chosen = {"auto": "fp32"}
    monkeypatch.setattr(
        "recognition.encoders.load.autocast_type", lambda name, device: autocast_type(chosen.get(name, name), device)
    )


# -------------------------------------------------------------------------------------------------- out and in again


@pytest.mark.parametrize("ending", ["safetensors", "onnx"])
@pytest.mark.parametrize(("order", "map_norm"), [("RGB", False), ("BGR", False), ("RGB", True)])
def test_an_exported_encoder_returns_the_same_features_and_carries_its_card(tmp_path, ending, order, map_norm):
    net = encoder("tiny", map_norm=map_norm)
    card = EncoderCard("tiny", 32, order, quality=QualityScale(21.3, 1 / 3, 0.333, 0.2), map_norm=map_norm)
    path = tmp_path / "new" / f"e.{ending}"
    export_encoder(net, card, path)
    loaded = load_encoder(path, CPU)
    assert loaded.card == card
    close(loaded.embed(IMAGES), expected(net, order))
    assert np.abs(expected(net, "RGB") - expected(net, "BGR")).max() > 1e-2  # otherwise this test would not test the order
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match=f"made for {order}"):
        load_encoder(path, CPU, channel_order="BGR" if order == "RGB" else "RGB")
    with pytest.raises(UserError, match="holds 'tiny'; leave out --network r50"):
        load_encoder(path, CPU, network="r50")
    with pytest.raises(UserError, match=r"expects \(pixel - 127\.5\) / 127\.5; leave out --mean and --std"):
        load_encoder(path, CPU, mean=0.0)


@pytest.mark.parametrize(
    ("network", "text", "message"),
    [("tiny", "yes", "map_norm is 'yes', not '1'"), ("mbf", "1", "network='mbf' does not support map_norm")],
)
def test_a_map_norm_that_makes_no_sense_is_refused(tmp_path, network, text, message):
    metadata = EncoderCard(network, 32, "RGB").to_metadata() | {"map_norm": text}
    save_file(encoder(network).state_dict(), tmp_path / "e.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / "e.safetensors", CPU)


def test_precision_is_as_requested(tmp_path):
    net = encoder("tiny")
    for ending in ("safetensors", "onnx"):
        export_encoder(net, EncoderCard("tiny", 32, "RGB"), tmp_path / f"e.{ending}")
    exact, rough = (load_encoder(tmp_path / "e.safetensors", CPU, precision=name) for name in ("fp32", "bf16"))
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    onnx_features = load_encoder(tmp_path / "e.onnx", CPU).embed(IMAGES).numpy()
    close(exact.embed(IMAGES), onnx_features, 1e-5)
    difference = np.abs(rough.embed(IMAGES).numpy() - onnx_features).max() / np.abs(onnx_features).max()
    assert 1e-4 < difference < 0.05
    with pytest.raises(UserError, match="leave out --precision bf16"):
        load_encoder(tmp_path / "e.onnx", CPU, precision="bf16")
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        load_encoder(tmp_path / "e.safetensors", CPU, precision="fp16")


@pytest.mark.parametrize("name", ["tiny", "mbf", "vit_t"])
def test_onnx_equals_pytorch_at_any_batch_size(tmp_path, name):
    net = encoder(name)
    assert export_encoder(net, EncoderCard(name, 32, "RGB"), tmp_path / "e.onnx") <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "e.onnx"), providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert given.shape[1:] == [3, 112, 112] and not isinstance(given.shape[0], int) and made.shape[1] == 32
    metadata = session.get_modelmeta().custom_metadata_map
    assert {metadata[key] for key in ("mean", "std")} == {"127.5"} and metadata["channel_order"] == "RGB"
    assert metadata["network"] == name and metadata["input_size"] == "112" and metadata["embedding_size"] == "32"
    for batch in (1, 5):
        images = torch.rand(batch, 3, 112, 112) * 2 - 1
        with torch.no_grad():
            wanted = net(images)
        close(torch.from_numpy(session.run(None, {given.name: images.numpy()})[0]), wanted.numpy())
    names = [node.name for node in onnx.load(str(tmp_path / "e.onnx")).graph.node]
    assert not any(found.startswith(("Sub", "_minus", "Mul", "_mul")) for found in names)  # insightface would not normalise


def test_a_bad_export_leaves_no_file(tmp_path):
    class Forgetful(torch.nn.Module):
        """Adds its number of calls, which the exporter keeps as a constant."""

        calls = 0

        def forward(self, images):
            self.calls += 1
            return images.mean(dim=(2, 3)) + self.calls

    class Branching(torch.nn.Module):
        """Depends on the pixels' values, which a graph cannot."""

        def forward(self, images):
            return images.mean(dim=(2, 3)) if images.mean() > 0 else images.amax(dim=(2, 3))

    with pytest.raises(UserError, match=r"PyTorch cannot export this network \(.*\); export it as \.safetensors"):
        export_encoder(Branching(), EncoderCard("tiny", 3, "RGB"), tmp_path / "e.onnx")
    with pytest.raises(UserError, match="differ from PyTorch's by"):
        export_encoder(Forgetful(), EncoderCard("tiny", 3, "RGB"), tmp_path / "e.onnx")
    with pytest.raises(UserError, match=r"the ending must be \.safetensors or \.onnx"):
        export_encoder(Forgetful(), EncoderCard("tiny", 3, "RGB"), tmp_path / "e.tflite")
    assert not list(tmp_path.iterdir())


def save_run(folder: Path, net: torch.nn.Module, **settings: object) -> None:
    """A run of one checkpoint, of step 3."""
    config = from_base(network="tiny", embedding_size=32, async_save=False, **settings)
    dist.start()
    try:
        tensors = {f"encoder.{name}": value for name, value in net.state_dict().items()}
        tensors |= {"quality.mean": torch.tensor(21.5), "quality.std": torch.tensor(4.25)}
        CheckpointWriter(folder, config).save(3, Checkpoint(tensors, {}))
    finally:
        dist.stop()


def test_a_run_is_exported_with_its_quality_statistics(tmp_path):
    net = encoder("tiny")
    save_run(tmp_path / "run", net, channel_order="BGR", quality_threshold=0.3)
    for path in (tmp_path / "run", tmp_path / "run/checkpoints/step-00000003"):
        loaded = load_encoder(path, CPU)
        assert loaded.card == EncoderCard("tiny", 32, "BGR", quality=QualityScale(21.5, 4.25, 0.333, 0.3))
        close(loaded.embed(IMAGES), expected(net, "BGR"))
    export_encoder(loaded.module, loaded.card, tmp_path / "e.safetensors")
    again = load_encoder(tmp_path / "e.safetensors", CPU)
    assert again.card == loaded.card
    assert torch.equal(again.embed(IMAGES), loaded.embed(IMAGES))
    with pytest.raises(UserError, match="made for BGR; leave out --channel-order RGB"):
        load_encoder(tmp_path / "run", CPU, channel_order="RGB")
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        load_encoder(tmp_path, CPU)


def _card_on_first_rank(path: Path) -> EncoderCard:
    return dist.on_first_rank(lambda: load_encoder(path, CPU).card)


def test_one_of_several_ranks_can_load_a_run_alone(tmp_path):
    save_run(tmp_path / "run", encoder("tiny"))
    assert [card.network for card in run_world(2, _card_on_first_rank, tmp_path / "run")] == ["tiny", "tiny"]


@needs_faces
@pytest.mark.skipif(not INSIGHTFACE, reason="QGFACE_INSIGHTFACE_PYTHON does not name a Python with the insightface package")
def test_insightface_reads_exported_models_and_computes_the_same_embeddings(tmp_path):
    encoded, _ = load_bin(FACES / "val/lfw_mixed.bin")
    for index, image in enumerate(encoded[:4]):
        (tmp_path / f"{index}.jpg").write_bytes(image)
    faces = np.stack([cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB) for image in encoded[:4]])
    for precision, calibrating in (("fp32", None), ("fp16", None), ("int8", faces)):
        export_encoder(encoder("tiny"), EncoderCard("tiny", 32, "RGB"), tmp_path / f"{precision}.onnx", precision, calibrating)
    script = (
        "import sys, glob, numpy, cv2\n"
        "from insightface.model_zoo import get_model\n"
        "images = [cv2.imread(path) for path in sorted(glob.glob(sys.argv[1] + '/*.jpg'))]\n"
        "for path in glob.glob(sys.argv[1] + '/*.onnx'):\n"
        "    model = get_model(path, providers=['CPUExecutionProvider'])\n"
        "    numpy.save(path + '.npy', model.get_feat(images))\n"
    )
    subprocess.run([INSIGHTFACE, "-c", script, str(tmp_path)], check=True, timeout=120)
    for path in tmp_path.glob("*.onnx"):
        close(load_encoder(path, CPU).embed(torch.from_numpy(faces)), np.load(f"{path}.npy"))


# -------------------------------------------------------------------------------------------------- released weights


def test_arcface_weights_expect_rgb_and_adaface_checkpoints_bgr(tmp_path):
    arcface, adaface = encoder("mbf", 128), encoder("ir_18", 512)
    torch.save(arcface.state_dict(), tmp_path / "backbone.pth")
    state = {f"model.{name}": value for name, value in adaface.state_dict().items()} | {"head.kernel": torch.zeros(512, 7)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "adaface.ckpt")
    loaded = load_encoder(tmp_path / "backbone.pth", CPU)
    assert (loaded.card.network, loaded.card.embedding_size, loaded.card.channel_order) == ("mbf", 128, "RGB")
    close(loaded.embed(IMAGES), expected(arcface, "RGB"))
    close(load_encoder(tmp_path / "backbone.pth", CPU, "BGR", "mbf").embed(IMAGES), expected(arcface, "BGR"))
    loaded = load_encoder(tmp_path / "adaface.ckpt", CPU)
    assert (loaded.card.network, loaded.card.embedding_size, loaded.card.channel_order) == ("ir_18", 512, "BGR")
    close(loaded.embed(IMAGES), expected(adaface, "BGR"))
    with pytest.raises(UserError, match=r"does not fit r18; it looks like 'mbf'.*embedding_size=128"):
        load_encoder(tmp_path / "backbone.pth", CPU, network="r18")
    with pytest.raises(UserError, match=r"unknown backbone 'r19'.*known names"):
        load_encoder(tmp_path / "backbone.pth", CPU, network="r19")


def initialised(path: Path, **settings: object) -> str:
    config = from_base(**{"network": "tiny", "embedding_size": 32, "init_from": str(path), **settings})
    return initialise(build_encoder(config), config)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("map_norm", [False, True])
@pytest.mark.parametrize("name", ["e.safetensors", "e.pth"])  # the content counts, not the ending
def test_channel_order_and_norm_travel_with_the_weights(tmp_path, order, map_norm, name):
    card = EncoderCard("tiny", 32, order, map_norm=map_norm)
    export_encoder(encoder("tiny", map_norm=map_norm), card, tmp_path / "e.safetensors")
    path = (tmp_path / "e.safetensors").rename(tmp_path / name)
    same: dict[str, object] = {"channel_order": order, "map_norm": map_norm}
    assert f"({order})" in initialised(path, **same)
    assert load_encoder(path, CPU).card == card
    other = "BGR" if order == "RGB" else "RGB"
    for changed, problem in (
        (
            {"channel_order": other},
            f"that encoder has channel_order='{order}', this run has channel_order='{other}'; use the same",
        ),
        ({"map_norm": not map_norm}, f"that encoder has map_norm={map_norm}, this run has map_norm={not map_norm}"),
        ({"network": "mbf", "map_norm": False, "embedding_size": 512}, "has network='tiny', this run has network='mbf'"),
    ):
        with pytest.raises(UserError, match=re.escape(problem)):
            initialised(path, **(same | changed))


@pytest.mark.parametrize(("network", "order"), [("ir_18", "BGR"), ("tiny", "RGB")])
def test_weights_without_metadata_follow_the_rule_of_their_family(tmp_path, network, order):
    path, other = tmp_path / "w.pth", "BGR" if order == "RGB" else "RGB"
    torch.save({**encoder(network).state_dict(), "head.kernel": torch.zeros(32, 9)}, path)
    note = initialised(path, network=network, channel_order=order)
    assert f"({order}, by the rule of its family); left out: head.kernel;" in note
    assert "map_norm" in initialised(path, network=network, channel_order=order, map_norm=True)
    with pytest.raises(UserError, match=f"weights expect {order}, this run has channel_order='{other}'") as caught:
        initialised(path, network=network, channel_order=other)
    command = str(caught.value).partition("python -m eval export ")[2].split()
    loaded = load_encoder(command[1], CPU, command[3])
    export_encoder(loaded.module, loaded.card, command[5])  # what the error advises
    assert f"({other})" in initialised(command[5], network=network, channel_order=other)


def test_another_normalisation_is_refused(tmp_path):
    card = EncoderCard("tiny", 32, "RGB", mean=0.0, std=255.0)
    save_file(encoder("tiny").state_dict(), tmp_path / "e.safetensors", metadata=card.to_metadata())
    for opening in (lambda: initialised(tmp_path / "e.safetensors"), lambda: load_encoder(tmp_path / "e.safetensors", CPU)):
        with pytest.raises(UserError, match=r"expects \(pixel - 0\) / 255; encoders here take \(pixel - 127.5\) / 127.5"):
            opening()


@pytest.mark.parametrize("ending", ["onnx", "safetensors"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_never_agreement(tmp_path, ending, value):
    net = encoder("tiny")
    next(net.parameters()).data.view(-1)[0] = value
    with pytest.raises(UserError, match=r"1 of \d+ tensors contain NaN or infinity"):
        export_encoder(net, EncoderCard("tiny", 32, "RGB"), tmp_path / f"e.{ending}")
    assert not list(tmp_path.iterdir())


def test_features_that_overflow_are_no_agreement(tmp_path):
    net = encoder("tiny")
    for parameter in net.parameters():
        parameter.data *= 1e30
    with pytest.raises(UserError, match="PyTorch's features are not finite"):
        export_encoder(net, EncoderCard("tiny", 32, "RGB"), tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", ["mean", "quality_mean", "quality_std", "quality_concentration", "quality_threshold"])
def test_metadata_without_numbers_is_refused(entry):
    metadata = EncoderCard("tiny", 32, "RGB", quality=QualityScale(20.0, 5.0, 0.3, 0.2)).to_metadata()
    with pytest.raises(UserError, match="its metadata"):
        EncoderCard.from_metadata(metadata | {entry: "nan"}, "file")


def test_weights_of_no_known_network_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no backbone of this project"):
        load_encoder(tmp_path / "other.pt", CPU)
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        load_encoder(tmp_path / "cut.safetensors", CPU)
    with pytest.raises(UserError, match="no such"):
        load_encoder(tmp_path / "missing.pt", CPU)


# -------------------------------------------------------------------------------------------------- others' ONNX


def mean_colours(path, shape: list, metadata: dict[str, str] | None = None, normalising: bool = False) -> None:
    """An .onnx whose feature is the mean of each channel. normalising: it begins with (x - 1) * 2, with MXNet's node names."""
    nodes, name = [], "data"
    if normalising:
        nodes.append(helper.make_node("Sub", ["data", "one"], ["a"], name="_minusscalar0"))
        nodes.append(helper.make_node("Mul", ["a", "two"], ["b"], name="_mulscalar0"))
        name = "b"
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["out"], name="flat"))
    constants = [helper.make_tensor(key, TensorProto.FLOAT, [1], [value]) for key, value in (("one", 1.0), ("two", 2.0))]
    given = [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)]
    made = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [shape[0], 3])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", given, made, constants), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_foreign_onnx_files_follow_insightfaces_conventions(tmp_path, batch):
    mean_colours(tmp_path / "other.onnx", [batch, 3, 112, 112])
    loaded = load_encoder(tmp_path / "other.onnx", CPU)
    colours = (IMAGES.numpy().astype(np.float64).mean(axis=(1, 2)) - 127.5) / 127.5
    close(loaded.embed(IMAGES), colours, 1e-6)
    assert loaded.card.embedding_size == 3 and loaded.card.network == "" and loaded.module is None
    close(load_encoder(tmp_path / "other.onnx", CPU, "BGR").embed(IMAGES), colours[:, ::-1], 1e-6)
    given = load_encoder(tmp_path / "other.onnx", CPU, mean=0.0, std=255.0)
    close(given.embed(IMAGES), (colours * 127.5 + 127.5) / 255, 1e-6)
    assert given.embed.assumed and given.card.input == "RGB 112x112, (pixel - 0) / 255"
    for wrong in ({"std": 0.0}, {"mean": float("nan")}):
        with pytest.raises(UserError, match="must be finite, and the second positive"):
            load_encoder(tmp_path / "other.onnx", CPU, **wrong)


def test_what_is_assumed_about_a_foreign_onnx_is_printed_and_can_be_given(tmp_path, capsys):
    mean_colours(tmp_path / "other.onnx", ["n", 3, 112, 112])
    given = ["embed", "x.jpg", "--out", "x.npz", "--checkpoint", str(tmp_path / "other.onnx")]
    world = dist.World(0, 1, 0, 1, CPU)
    open_encoder(build_parser().parse_args(given), world)
    assert "assumed: RGB 112x112, (pixel - 127.5) / 127.5" in capsys.readouterr().err
    open_encoder(build_parser().parse_args([*given, "--channel-order", "BGR", "--mean", "0", "--std", "255"]), world)
    assert "assumed: BGR 112x112, (pixel - 0) / 255" in capsys.readouterr().err


def test_an_onnx_that_normalises_by_itself_receives_pixels(tmp_path):
    mean_colours(tmp_path / "other.onnx", ["n", 3, 112, 112], normalising=True)
    pixels = IMAGES.numpy().astype(np.float64).mean(axis=(1, 2))
    close(load_encoder(tmp_path / "other.onnx", CPU).embed(IMAGES), (pixels - 1) * 2, 1e-5)


@pytest.mark.parametrize(
    ("shape", "metadata", "message"),
    [
        (["n", 3, 160, 160], {}, "takes images of 160x160; faces here are 112x112"),
        (["n", 1, 112, 112], {}, r"float \[batch, 3, 112, 112\] is needed"),
        (["n", 3, 112, 112], {"format": "qgface-encoder-1", "network": "r50"}, "its metadata has no 'embedding_size'"),
        (["n", 3, 112, 112], {"std": "0.0"}, "makes no sense"),
        (["n", 3, 112, 112], {"mean": "dark"}, "cannot be read"),
        (["n", 3, 112, 112], {"channel_order": "GBR"}, "channel_order is 'GBR', not RGB or BGR"),
        (["n", 3, 112, 112], {"input_size": "160"}, "takes images of 160x160"),
    ],
)
def test_onnx_files_that_do_not_fit_are_refused(tmp_path, shape, metadata, message):
    if metadata and "format" not in metadata:
        metadata = EncoderCard("tiny", 3, "RGB").to_metadata() | metadata
    mean_colours(tmp_path / "e.onnx", shape, metadata)
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / "e.onnx", CPU)


def test_a_damaged_onnx_is_refused(tmp_path):
    (tmp_path / "e.onnx").write_bytes(b"not a protocol buffer")
    with pytest.raises(UserError, match="damaged or not an ONNX file"):
        load_encoder(tmp_path / "e.onnx", CPU)
