"""LoRA, the average of the weights (EMA), and distillation from a teacher: in parts, and in whole runs that use all three."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import backbones
from eval.__main__ import build_parser
from eval.commands import export
from recognition.checkpoints import store
from recognition.encoders.build import build_encoder, initialise
from recognition.encoders.card import EncoderCard
from recognition.encoders.embedder import Embedder
from recognition.encoders.export import export_encoder
from recognition.encoders.load import load_encoder
from recognition.encoders.teacher import Teacher, teacher_bytes
from recognition.encoders.thresholds import thresholds_of_run
from recognition.lora import adapt, load_base, merged
from recognition.momentum_encoder import MomentumEncoder
from tests.plug import Run, assert_same_run, series
from utils.config import from_base
from utils.errors import UserError

CPU, DIM = torch.device("cpu"), 32
IMAGES = torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SHORT = ("val_targets=()", "num_workers=0", "diagnose_every=0")


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("network", ["tiny", "mbf", "vit_t"])
def test_updates_of_lora_train_alone_and_merge_into_the_weights(network):
    torch.manual_seed(0)
    plain = backbones.build(network, embedding_size=DIM).eval()
    encoder, x = copy.deepcopy(plain), torch.rand(2, 3, 112, 112)
    adapt(encoder, rank=4, alpha=8.0, seed=1)
    assert torch.equal(encoder.eval()(x), plain(x))  # the updates begin at zero
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained and all(name.endswith((".0.up", ".0.down")) for name in trained)
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) < 0.3 * sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in trained:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
    encoder.train()
    assert not any(layer.training for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    before, updated = copy.deepcopy(plain).state_dict(), merged(encoder.state_dict())
    assert updated.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], updated[name])}
    assert changed == {name.partition(".parametrizations")[0] + ".weight" for name in trained}
    features = copy.deepcopy(encoder).eval()(x)
    plain.load_state_dict(updated)
    torch.testing.assert_close(plain(x), features)
    load_base(encoder, before)
    assert all(torch.equal(value, updated[name]) for name, value in merged(encoder.state_dict()).items())


def test_layers_that_are_frozen_or_narrower_than_the_rank_get_no_update():
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 16), nn.Linear(16, 4))
    encoder[1].requires_grad_(False)
    adapt(encoder, rank=4, alpha=1.0, seed=0)
    assert {name.partition(".")[0] for name, p in encoder.named_parameters() if p.requires_grad} == {"0"}
    with pytest.raises(UserError, match=r"lora_rank=8: this network has no trained linear or convolution layer of a higher rank"):
        adapt(nn.Sequential(nn.BatchNorm1d(9)), rank=8, alpha=1.0, seed=0)


def test_the_average_contains_the_running_statistics():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    ema = MomentumEncoder(encoder, 0.75, with_statistics=True)
    expected = {name: value.clone() for name, value in encoder.state_dict().items()}
    for _ in range(3):
        encoder(torch.randn(8, 4))
        with torch.no_grad():
            encoder[0].weight.add_(1)
        ema.follow(encoder, torch.tensor(True))
        expected = {name: 0.75 * expected[name] + 0.25 * value for name, value in encoder.state_dict().items()}
    for name, value in ema.copy.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_teacher_of_any_kind_computes_the_features_of_its_own_encoder(tmp_path, order):
    torch.manual_seed(0)
    encoder = backbones.build("tiny", embedding_size=DIM).eval()
    expected = Embedder(encoder, CPU, "BGR", None)(IMAGES)
    of_run = IMAGES if order == "RGB" else IMAGES.flip(-1)  # the images of a run are in its own order
    for name in ("e.safetensors", "e.onnx"):
        export_encoder(encoder, EncoderCard("tiny", DIM, "BGR"), tmp_path / name)
        config = from_base(teacher=str(tmp_path / name), embedding_size=DIM, channel_order=order)
        features = Teacher(config, CPU)(of_run)
        torch.testing.assert_close(features, expected, rtol=1e-2, atol=0.02 * float(expected.abs().max()))  # maybe bf16
        assert not features.requires_grad and not features.is_inference() and teacher_bytes(config) > 1e6
    with pytest.raises(UserError, match=r"teacher='.*e.onnx': its features have size 32, those of this run embedding_size=64"):
        Teacher(from_base(teacher=str(tmp_path / "e.onnx"), embedding_size=64), CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema": 1.0}, "ema=1.0: must be >= 0 and < 1"),
        ({"lora_rank": 4}, "lora_rank=4: needs init_from, the encoder to adapt"),
        ({"lora_rank": -1}, "lora_rank=-1: must be >= 0"),
        ({"distillation_weight": 0.0}, "distillation_weight=0.0: must be > 0"),
    ],
)
def test_settings_out_of_range_are_one_line(settings, message):
    with pytest.raises(UserError) as caught:
        from_base(**settings)
    assert caught.value.args == (message,)


def test_a_teacher_that_is_not_there_is_one_line():
    for action in (lambda config: Teacher(config, CPU), teacher_bytes):
        with pytest.raises(UserError) as caught:
            action(from_base(teacher="nowhere"))
        assert caught.value.args == ("teacher='nowhere': nowhere: no such run or checkpoint folder",)


# ------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def runs(demo_set, tmp_path_factory) -> Path:
    """source: a run to start from. whole1, whole2, whole3: four steps with everything, on 1, 2 and 3 ranks. broken: 2 + 2."""
    folder = tmp_path_factory.mktemp("adaptation")
    Run(demo_set, folder / "source", *SHORT, "max_steps=2").succeed()
    settings = (
        *SHORT[1:], f"init_from={folder / 'source'}", "head_from=kept", "lora_rank=4", "ema=0.6", "val_targets=demo_lq",
        f"teacher={folder / 'source'}", "distillation_weight=5", "views=2", "lr=0.0005",
    )  # fmt: skip
    started = {
        f"whole{ranks}": Run(demo_set, folder / f"whole{ranks}", *settings, "max_steps=4", ranks=ranks) for ranks in (1, 2, 3)
    }
    text = started["whole1"].succeed()
    assert "LoRA of rank 4" in text and "EMA 0.6" in text and "weight 5" in text
    started["whole2"].succeed(), started["whole3"].succeed()
    for steps in (2, 4):
        Run(demo_set, folder / "broken", *settings, f"max_steps={steps}", ranks=2).succeed()
    return folder


def test_a_resumed_run_equals_one_without_a_break(runs):
    assert_same_run(runs / "broken", runs / "whole2", 4)
    results = [json.loads((runs / name / "results.json").read_text()) for name in ("broken", "whole2")]
    assert results[0] == results[1] and results[0].keys() == {"demo_lq", "demo_lq_ema"}


def test_a_run_does_not_depend_on_the_ranks(runs):
    """Without sync_bn, because LoRA freezes BatchNorm. In small steps: large ones magnify rounding a thousandfold."""
    alone = torch.tensor(series(runs / "whole1"))
    weights = store.read_tensors(store.find(runs / "whole1"))
    for ranks in (2, 3):
        torch.testing.assert_close(torch.tensor(series(runs / f"whole{ranks}")), alone, rtol=1e-3, atol=1e-5)
        others = store.read_tensors(store.find(runs / f"whole{ranks}"))
        for prefix in ("encoder.", "ema."):
            for name in (name for name in weights if name.startswith(prefix) and weights[name].is_floating_point()):
                assert (others[name] - weights[name]).norm() <= 0.01 * weights[name].norm(), name


def test_both_sets_of_weights_are_evaluated_and_exported(runs, tmp_path):
    """Merged, under the names of the plain encoder; both differ from the source and from each other."""
    run, features = runs / "whole1", {}
    prefixes = {"trained": "encoder.", "ema": "ema."}
    states = {weights: merged(store.read_tensors(store.find(run), prefix)) for weights, prefix in prefixes.items()}
    for weights, state in states.items():
        loaded = load_encoder(run, CPU, weights=weights)
        assert loaded.module is not None and loaded.label.startswith("whole1 EMA" if weights == "ema" else "whole1 (")
        assert all(torch.equal(state[name], value) for name, value in loaded.module.state_dict().items())
        out = tmp_path / f"{weights}.safetensors"
        given = ["export", "--checkpoint", str(run), "--weights", weights, "--out", str(out)]
        export._export(build_parser().parse_args(given))
        features[weights] = load_encoder(run, CPU, precision="fp32", weights=weights).embed(IMAGES)
        assert torch.equal(load_encoder(out, CPU, precision="fp32").embed(IMAGES), features[weights])
        assert {each.sets for each in thresholds_of_run(run, weights=weights)} == {"demo_lq" + "_ema" * (weights == "ema")}
    config = store.read_config(store.find(run))
    encoder = build_encoder(config)
    initialise(encoder, replace(config, lora_rank=0, init_from=str(run)))
    assert all(torch.equal(value, states["trained"][name]) for name, value in encoder.state_dict().items())
    source = load_encoder(runs / "source", CPU, precision="fp32").embed(IMAGES)
    assert not any(torch.equal(*pair) for pair in ((source, features["ema"]), (features["ema"], features["trained"])))
    for path in (runs / "source", tmp_path / "ema.safetensors"):
        with pytest.raises(UserError, match="leave out --weights ema"):
            load_encoder(path, CPU, weights="ema")
