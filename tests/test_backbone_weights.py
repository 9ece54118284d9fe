"""Weight files: every released layout loads strictly, misfits are explained, and no file runs code."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
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


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), features=nn.Linear(8, 6)))


STATE = small(1).state_dict()
COUNTER = "norm.num_batches_tracked"
HEADS = [
    {"head.kernel": torch.zeros(6, 10), "head.t": torch.zeros(1)},
    {"fc.weight": torch.zeros(10, 6), "fc.bias": torch.zeros(10)},
    {"some_unusual_name.weight": torch.zeros(10, 6)},
    {"kernel": torch.zeros(6, 10)},
]


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


NEARLY_RIGHT: dict[str, tuple[Any, list[str]]] = {
    **{
        f"prefix {prefix}": (prefixed(prefix, STATE), [])
        for prefix in ("net.", "features.module.", "backbone.", "encoder.", "module.", "model.", "features.", "a.b.c.d.e.")
    },
    **{
        f"under {key}": ({key: prefixed("module.", STATE), "epoch": 3, "optimizer": {"state": {0: {"x": torch.ones(2)}}}}, [])
        for key in ("model", "backbone", "net", "state_dict", "model_state_dict", "encoder", "network", "anything")
    },
    "nested dicts": ({"checkpoint": {"model": {"state_dict": STATE}}}, []),
    "another encoder": ({"backbone": STATE, "other": prefixed("layer.", {k: v[:1] for k, v in STATE.items() if v.dim()})}, []),
    **{f"head {number}": ({**STATE, **head}, list(head)) for number, head in enumerate(HEADS)},
    **{
        f"prefixes and head {number}": (
            {"model": {**prefixed("module.backbone.", STATE), **prefixed("module.", head)}},
            list(prefixed("module.", head)),
        )
        for number, head in enumerate(HEADS)
    },
    "no counters": ({name: value for name, value in STATE.items() if name != COUNTER}, []),
    "half precision": ({name: value.half() if value.is_floating_point() else value for name, value in STATE.items()}, []),
    "the same twice": ({"model": STATE, "ema": STATE}, []),
    "parameters": ({name: nn.Parameter(value, value.is_floating_point()) for name, value in STATE.items()}, []),
    "numbers beside the tensors": ({**STATE, "epoch": 3, "best": 0.9}, []),
}


@pytest.mark.parametrize("layout", NEARLY_RIGHT)
def test_weights_that_are_nearly_right_load(tmp_path: Path, layout: str) -> None:
    content, ignored = NEARLY_RIGHT[layout]
    torch.save(content, tmp_path / "w.pth")
    module = small()
    assert backbones.load_weights(module, tmp_path / "w.pth") == ignored
    for name, value in module.state_dict().items():
        assert torch.allclose(value, STATE[name], rtol=1e-3) and value.dtype == STATE[name].dtype


MISFITS: dict[str, tuple[Any, str]] = {
    "one name differs": (
        {**{k: v for k, v in STATE.items() if k != "stem.bias"}, "stem.b": STATE["stem.bias"]},
        "1 missing (stem.bias); 1 unexpected (stem.b)",
    ),
    "a larger network": ({**STATE, "norm.scale": torch.ones(4)}, "1 unexpected (norm.scale)"),
    "a module after the encoder": ({**prefixed("net.", STATE), "neck.weight": torch.ones(6, 6)}, "1 unexpected (neck.weight)"),
    "with a prefix, another shape": (
        prefixed("net.", {**STATE, "features.weight": torch.ones(5, 8)}),
        "1 of another shape (features.weight is [5, 8], expected [6, 8])",
    ),
    "two encoders": (
        {**prefixed("encoder_q.", STATE), **prefixed("encoder_k.", small(2).state_dict())},
        "contains 2 encoders that fit (encoder_q.*, encoder_k.*)",
    ),
    "two dicts": ({"model": STATE, "ema": small(2).state_dict()}, "contains 2 encoders that fit (model[*], ema[*])"),
    "many names differ": (
        {f"x{i}": torch.ones(3) for i in range(9)},
        "8 missing (stem.weight, stem.bias, norm.weight, ...); 9 unexpected (x0, x1, x2, ...)",
    ),
    "NaN": ({**STATE, "stem.bias": torch.full((4,), torch.nan)}, "1 of 9 tensors contain NaN or infinity (stem.bias)"),
    "infinity": (
        {**STATE, "norm.running_var": torch.full((4,), torch.inf)},
        "1 of 9 tensors contain NaN or infinity (norm.running_var)",
    ),
    "no tensors": ({"epoch": 3, "model": {}}, "holds dict, not a state dict"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_keys_that_differ_are_named(tmp_path: Path, kind: str) -> None:
    content, problem = MISFITS[kind]
    torch.save(content, tmp_path / "w.pth")
    assert problem in explained(small(), tmp_path / "w.pth")


def test_identification_looks_through_prefixes_and_names_what_differs(tmp_path: Path) -> None:
    path, state = tmp_path / "w.pth", backbones.build("tiny", 48).state_dict()
    left = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"net": {**prefixed("features.module.", left), "fc.weight": torch.zeros(10, 48)}}, path)
    assert backbones.identify_weights(path) == ("tiny", 48)
    first = next(iter(left))
    torch.save({**{name: value for name, value in left.items() if name != first}, "stem": torch.zeros(3)}, path)
    with pytest.raises(backbones.WeightsError, match=rf"most similar is 'tiny': 1 missing \({first}\); 1 unexpected \(stem\)"):
        backbones.identify_weights(path)


def zipped(**files: bytes) -> bytes:
    with zipfile.ZipFile(memory := io.BytesIO(), "w") as archive:
        for name, content in files.items():
            archive.writestr(f"a/{name}", content)
    return memory.getvalue()


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    write(memory := io.BytesIO())
    return memory.getvalue()


def save_script(file: io.BytesIO) -> None:
    with warnings.catch_warnings(action="ignore"):  # deprecated, and still what many files are
        torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1)), file)


def save_tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w"))


OTHER_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "web page": (lambda: b"\n<!DOCTYPE html><html><title>Google Drive", "is a web page"),
    "web page with a mark": (lambda: b"\xef\xbb\xbf<html>", "is a web page"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "run `git lfs pull`"),
    "JSON": (lambda: b'{"error": "Repository not found"}', "is JSON text"),
    "text": (lambda: b"Entry not found", "is text ('Entry not found')"),
    "empty": (lambda: b"", "the file is empty"),
    "ONNX": (lambda: onnx_model().SerializeToString(), "is an ONNX model"),
    "TorchScript": (lambda: saved(save_script), "is a TorchScript program"),
    "zip": (lambda: zipped(readme=b"", weights=b""), "is a zip archive of 2 files (a/readme, a/weights)"),
    "npz": (lambda: saved(lambda file: np.savez(file, a=np.zeros(2))), "is a NumPy archive"),
    "npy": (lambda: saved(lambda file: np.save(file, np.zeros(2))), "is a NumPy array"),
    "gzip": (lambda: gzip.compress(b"x"), "is a gzip archive; unpack it"),
    "tar": (lambda: saved(save_tar), "is a tar archive"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "MXNet": (lambda: b"\x12\x01" + bytes(100), "is an MXNet parameter file"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n", "is a PNG image"),
    "zeros": (lambda: bytes(5000), "damaged or not a torch checkpoint"),
    "noise": (lambda: np.random.default_rng(0).bytes(5000), "copy it again"),
    "whole module": (lambda: saved(lambda file: torch.save(nn.Linear(1, 1), file)), "refused"),
    "half a checkpoint": (lambda: saved(lambda file: torch.save(STATE, file))[:2000], "damaged"),
}  # fmt: skip


def onnx_model() -> Any:
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [info], [out]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, kind: str, ending: str) -> None:
    make, problem = OTHER_FILES[kind]
    path = tmp_path / f"w.{ending}"
    path.write_bytes(make())
    text = explained(small(), path)
    assert problem in text or (ending == "safetensors" and kind in ("text", "zeros", "noise") and "not a safetensors" in text)
    with pytest.raises(backbones.WeightsError):
        backbones.identify_weights(path)


def test_the_content_counts_not_the_ending(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.pth", metadata={"format": "pt"})
    torch.save(STATE, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        module = small()
        backbones.load_weights(module, tmp_path / name)
        assert equal(module, STATE)
    assert backbones.read_metadata(tmp_path / "w.pth") == {"format": "pt"}


def test_safetensors_and_arcface_checkpoints(tmp_path: Path, net: nn.Module, released: dict[str, Tensor]) -> None:
    save_file(released, tmp_path / "a.safetensors")
    backbones.load_weights(net, tmp_path / "a.safetensors")
    assert equal(net, released)
    other = backbones.build("ir_18", embedding_size=32)
    torch.save({"epoch": 3, "state_dict_backbone": released}, tmp_path / "checkpoint_gpu_0.pt")
    backbones.load_weights(other, str(tmp_path / "checkpoint_gpu_0.pt"))
    assert equal(other, released)


def lightning_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning 1.4 writes for AdaFace: weights under `model.`, the head next to them, and much bookkeeping."""
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
    assert "1 missing (body.0.res_layer.1.weight); it matches no backbone" in explained(net, path)
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
    assert f"it looks like {name!r} (network={name!r}, embedding_size={size})" in explained(net, path)


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
