"""Weight files: every released layout loads strictly, misfits are explained, and no file runs code."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import backbones


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A state dict with AdaFace's names, unlike any fresh initialisation."""
    torch.manual_seed(7)
    return backbones.build("ir_18", embedding_size=32).state_dict()


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(8)
    return backbones.build("ir_18", embedding_size=32)


def equal(net: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "_orig_mod.module."])
@pytest.mark.parametrize("new_format", [True, False])
def test_plain_state_dicts(tmp_path: Path, net: nn.Module, released: dict[str, Tensor], prefix: str, new_format: bool) -> None:
    path = tmp_path / "backbone.pth"
    torch.save({prefix + k: v for k, v in released.items()}, path, _use_new_zipfile_serialization=new_format)
    assert not equal(net, released)
    assert backbones.load_weights(net, path) == []
    assert equal(net, released)


def test_safetensors_and_arcface_checkpoints(tmp_path: Path, net: nn.Module, released: dict[str, Tensor]) -> None:
    save_file(released, tmp_path / "a.safetensors")
    backbones.load_weights(net, tmp_path / "a.safetensors")
    assert equal(net, released)
    other = backbones.build("ir_18", embedding_size=32)
    torch.save({"epoch": 3, "state_dict_backbone": released}, tmp_path / "checkpoint_gpu_0.pt")
    backbones.load_weights(other, str(tmp_path / "checkpoint_gpu_0.pt"))
    assert equal(other, released)


def lightning_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning 1.4 writes for AdaFace: weights under `model.`, the head beside them, and much bookkeeping."""
    from pytorch_lightning import AttributeDict, ModelCheckpoint  # type: ignore[attr-defined]

    parameters = AttributeDict(arch="ir_18", lr=0.1)
    parameters.root = Path("runs")
    return {
        "epoch": 25,
        "pytorch-lightning_version": "1.4.4",
        "state_dict": {
            **{f"model.{k}": v for k, v in state.items()},
            "head.kernel": torch.zeros(32, 10),
            "head.t": torch.zeros(1),
        },
        "callbacks": {ModelCheckpoint: {"best": np.float64(0.9), "monitor": ModelCheckpoint()}},
        "hyper_parameters": parameters,
        "arguments": argparse.Namespace(lr=0.1),
    }


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch, released: dict[str, Tensor], tmp_path: Path) -> Path:
    """A checkpoint that names classes of a package that is not installed where it is read."""
    package = types.ModuleType("pytorch_lightning")
    for name, base in (("ModelCheckpoint", object), ("AttributeDict", dict)):
        kind = type(name, (base,), {"__module__": "pytorch_lightning", "__qualname__": name})
        setattr(package, name, kind)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    path = tmp_path / "adaface.ckpt"
    torch.save(lightning_checkpoint(released), path)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # as it is, torch refuses this file
    return path


def test_lightning_checkpoints(net: nn.Module, released: dict[str, Tensor], lightning: Path) -> None:
    allowed = set(torch.serialization.get_safe_globals())
    assert backbones.load_weights(net, lightning) == ["head.kernel", "head.t"]
    assert equal(net, released)
    assert set(torch.serialization.get_safe_globals()) == allowed  # nothing stays allowed afterwards


class Hostile:
    """Pickles as a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("call", ["system", "exec", "Popen", "open"])
def test_a_hostile_file_is_refused_and_nothing_runs(
    tmp_path: Path, net: nn.Module, released: dict[str, Tensor], layout: str, call: str
) -> None:
    mark, path = tmp_path / "executed", tmp_path / "backbone.pth"
    content = {
        "system": Hostile(os.system, f"touch {mark}"),
        "exec": Hostile(exec, f"open({str(mark)!r}, 'w')"),
        "Popen": Hostile(subprocess.Popen, ["touch", str(mark)]),
        "open": Hostile(open, str(mark), "w"),
    }[call]
    if layout == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({**released, "extra": content}, path, _use_new_zipfile_serialization=layout == "zip")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(backbones.WeightsError, match="refused") as caught:
        backbones.load_weights(net, path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's own advice would run it
    assert not mark.exists() and equal(net, before)
    if layout == "pickle":  # the file is as dangerous as it claims: plain pickle runs it
        pickle.loads(path.read_bytes())
        for _ in range(100):
            if mark.exists():
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert mark.exists()


def explained(net: nn.Module, path: Path) -> str:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(backbones.WeightsError) as caught:
        backbones.load_weights(net, path)
    assert equal(net, before) and "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_misfits_are_explained(tmp_path: Path, net: nn.Module, released: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pt"
    torch.save({k: v for k, v in released.items() if k != "body.0.res_layer.1.weight"}, path)
    assert "1 missing (body.0.res_layer.1.weight); it looks like no backbone" in explained(net, path)
    torch.save({**released, "extra": torch.zeros(1)}, path)
    assert "1 unexpected (extra)" in explained(net, path)
    torch.save({**released, "output_layer.3.weight": torch.zeros(64, 25088)}, path)
    assert "1 of another shape (output_layer.3.weight is [64, 25088], expected [32, 25088])" in explained(net, path)
    torch.save({**released, "output_layer.3.weight": "text"}, path)
    assert "entry 'output_layer.3.weight' is str, not a tensor" in explained(net, path)
    torch.save([1, 2], path)
    assert "holds list, not a state dict" in explained(net, path)
    assert "there is no such file" in explained(net, tmp_path / "absent.pt")


@pytest.mark.parametrize(("name", "size"), [("tiny", 48), ("mbf", 512), ("vit_t", 128)])
def test_the_right_backbone_is_named(tmp_path: Path, net: nn.Module, name: str, size: int) -> None:
    path = tmp_path / "w.pt"
    torch.save(backbones.build(name, embedding_size=size).state_dict(), path)
    assert f"it looks like {name!r}: build({name!r}, embedding_size={size})" in explained(net, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", ["pth", "legacy.pth", "safetensors"])
def test_damaged_files_never_escape_as_another_error(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(small.state_dict(), path)
    else:
        torch.save(small.state_dict(), path, _use_new_zipfile_serialization=suffix == "pth")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in rng.integers(0, len(whole) - 8, 40):
        path.write_bytes(whole[:length])
        assert "copy it again" in explained(small, path) or "refused" in explained(small, path)
    for _ in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            backbones.load_weights(small, path)  # damage to the numbers alone cannot be seen
        except backbones.WeightsError as error:
            assert "\n" not in str(error)
