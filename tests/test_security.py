"""No file can run code, lead out of its folder, or fill the memory. Each hostile file is real: a control shows that it does harm
when opened carelessly."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import backbones
from benchmarks.fuzz import damaged, verdict
from benchmarks.fuzz_targets import TARGETS
from eval.feature_cache import FeatureCache
from eval.protocols.ijb_files import read_feature_file
from eval.verification import load_bin
from recognition.checkpoints import manifest, store
from recognition.data.pack.listing import read_classes
from tests.shared_files import ROOT
from utils import config
from utils.errors import UserError
from utils.images import decode_face, decode_image, read_image_file

SEEDS = ROOT / "tests/fuzz_seeds"
FOLDERS = ("backbones", "benchmarks", "configs", "eval", "losses", "recognition", "scripts", "utils")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "train.py"]

# Calls that can run code from a file: those that are never allowed, and those that one keyword makes safe.
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "cPickle.load", "dill.load", "marshal.load",
    "marshal.loads", "shelve.open", "joblib.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "jsonpickle.decode",
    "torch.jit.load", "torch.hub.load", "eval", "exec", "os.system", "os.popen",
}  # fmt: skip
SAFE_WITH = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _dangerous_calls(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill", "joblib"):
            names = ("load", "Unpick", "_Unpick")
            found += [f"{node.lineno}: from {node.module}"] * any(name.name.startswith(names) for name in node.names)
        if isinstance(node, ast.ClassDef) and any(_dotted(base).endswith("Unpickler") for base in node.bases):
            found.append(f"{node.lineno}: class {node.name}")
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        name = _dotted(node.func)
        keyword, value = SAFE_WITH.get(name, ("", None))
        if name in FORBIDDEN or (keyword and keywords.get(keyword) is not value):
            found.append(f"{node.lineno}: {name}")
        if keywords.get("shell") is True or keywords.get("trust_remote_code") is True:
            found.append(f"{node.lineno}: {name} through a shell or with remote code")
    return found


def test_nothing_unpickles_or_runs_what_a_file_contains():
    assert len(SOURCES) > 80
    found = {str(path.relative_to(ROOT)): calls for path in SOURCES if (calls := _dangerous_calls(path.read_text()))}
    (unpickler,) = found.pop("eval/safe_pickle.py")  # restricted: tests/test_safe_pickle.py
    assert unpickler.endswith(": class _PlainUnpickler") and found == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p)",
        "np.load(p)",
        "pickle.load(f)",
        "from pickle import loads",
        "eval(x)",
        "torch.load(p, weights_only=False)",
        "subprocess.run(x, shell=True)",
        "class U(pickle._Unpickler): pass",
    ],
)
def test_the_search_would_find_it(line):
    assert _dangerous_calls(line)


# -------------------------------------------------------------------------------------------------- hostile files


class Payload:
    """Creates the folder `marker` when unpickled without restriction."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "it-ran"


def _harmless(marker: Path, careless: Callable[[], object], careful: Callable[[], object]) -> str:
    """The careful reader's message: it must refuse the file, and must not run what the careless one runs."""
    with pytest.raises((UserError, ValueError)) as refusal:
        careful()
    assert not marker.exists()
    careless()
    assert marker.exists(), "the file is not hostile: this test would prove nothing"
    return str(refusal.value)


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_bin(tmp_path, marker, protocol):
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(([b"a", b"b"], [Payload(marker)]), protocol))
    _harmless(marker, lambda: pickle.loads(path.read_bytes()), lambda: load_bin(path))


@pytest.mark.parametrize("new_format", [True, False])
def test_hostile_weights(tmp_path, marker, new_format):
    path = tmp_path / "backbone.pth"
    torch.save({"layer": Payload(marker)}, path, _use_new_zipfile_serialization=new_format)
    module = backbones.build("tiny", embedding_size=32)
    _harmless(marker, lambda: torch.load(path, weights_only=False), lambda: backbones.load_weights(module, path))


def test_hostile_features(tmp_path, marker):
    path = tmp_path / "features.npz"
    np.savez(path, features=np.array([Payload(marker)], dtype=object), scores=np.array([Payload(marker)], dtype=object))
    careless = lambda: np.load(path, allow_pickle=True)["features"]  # noqa: E731
    _harmless(marker, careless, lambda: read_feature_file(path))
    marker.rmdir()
    _harmless(marker, careless, lambda: FeatureCache._load(path))


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "state.json", "config.json", ".metadata"])
def test_hostile_checkpoint(tmp_path, marker, name):
    """A pickle under any of the names, with a matching manifest."""
    folder = tmp_path / "run/checkpoints/step-00000001"
    folder.mkdir(parents=True)
    config.from_base(rec="x").save(folder / "config.json")
    (folder / "state.json").write_text(json.dumps({"format": store.FORMAT, "step": 1, "sharded": []}))
    (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    manifest.write(folder, manifest.entries_of(folder.iterdir()))
    assert store.find(tmp_path / "run") == folder

    def open_everything() -> None:
        store.read_config(folder)
        store.read_state(folder)
        if not store.read_tensors(folder):
            raise UserError("there are no tensors")

    _harmless(marker, lambda: pickle.loads((folder / name).read_bytes()), open_everything)


# -------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["../out", "/etc", "a/../../b", "a/b", "..", "a\\..\\b", "a\0b"])
def test_class_maps_stay_in_their_folder(tmp_path, name):
    (tmp_path / "classes.csv").write_text(f"label,name,images\n0,{name},3\n")
    with pytest.raises(UserError):
        read_classes(tmp_path / "classes.csv", 1)


# -------------------------------------------------------------------------------------------------- memory


def _png(width: int, height: int) -> bytes:
    """A complete grey PNG, a few kilobytes long whatever its size in pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, packed = zlib.compressobj(9), io.BytesIO()
    row = b"\0" * (1 + width // 8)
    for _ in range(height):
        packed.write(packer.compress(row))
    packed.write(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed.getvalue()) + chunk(b"IEND", b"")


def test_image_bombs_are_not_decoded(tmp_path):
    """256 million pixels in 32 KB, 768 MB when decoded: refused with less than 100 MB."""
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(_png(16000, 16000))
    assert bomb.stat().st_size < 100_000
    for reader in (lambda: decode_face(bomb.read_bytes(), "image 0"), lambda: decode_image(read_image_file(bomb), bomb)):
        with pytest.raises(UserError, match="16000"):
            reader()
    decoding = _peak(f"cv2.imread({str(bomb)!r}, cv2.IMREAD_COLOR)")
    checking = _peak(f"decode_face(open({str(bomb)!r}, 'rb').read(), '')")
    assert decoding > 700_000, "the file is not a bomb: this test would prove nothing"
    assert checking < 100_000


def _peak(statement: str) -> int:
    """Peak memory of a statement in kilobytes, measured in a separate process."""
    peaks = []
    for run in ("pass", statement):
        script = f"import cv2, re\nfrom utils.images import decode_face\ntry:\n    {run}\nexcept ValueError:\n    pass\n"
        # Not ru_maxrss, which a process inherits from its parent.
        script += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    return peaks[1] - peaks[0]


# -------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("path", sorted(SEEDS.iterdir()), ids=lambda path: path.name)
def test_what_fuzzing_found_stays_fixed(path, tmp_path):
    """tests/fuzz_seeds/TARGET-WHAT: each once made a reader fail with something other than a UserError."""
    assert verdict(TARGETS[path.name.partition("-")[0]](tmp_path), path.read_bytes()) == ""


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "weights"])  # they have their own tests and are slow
def test_a_little_fuzzing(name, tmp_path):
    """benchmarks/fuzz.py is the long run."""
    target, generator = TARGETS[name](tmp_path), random.Random(1)
    for number in range(60):
        content = damaged(generator.choice(target.seeds), target.seeds, generator)
        assert verdict(target, content) == "", number
