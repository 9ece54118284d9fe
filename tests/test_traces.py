"""The training step that a configuration builds follows traces of arcface_torch's own training (golden/arcface_torch_train)."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from losses.joint import JointTerms
from recognition import build
from recognition.data import RecordReader
from recognition.data.prefetch import DeviceBatch
from recognition.encoders.embedder import Embedder
from recognition.train_state import TrainState
from tests.arcface_torch import arcface_torch_file
from tests.shared_files import FACES, GOLDEN, needs_faces, needs_golden
from tests.world import run_world
from utils import dist
from utils.config import Config, load
from utils.images import decode_face

TRACES = sorted((GOLDEN / "arcface_torch_train").glob("*.json"))
CLASSES, DIM = 430, 512
# A trace of one rank is also followed by two: SyncBatchNorm makes their batches one. The reverse is not possible.
CASES = [(path, ranks) for path in TRACES for ranks in ((2,) if "2ranks" in path.stem else (1, 2))]
TOLERANCE = 1e-3  # relative
# Of the embedding. AdamW turns the rounding errors of gradients that are zero by symmetry (a bias before BatchNorm) into steps of
# full size. They do not change the training, but the running statistics lag behind them: with other convolution kernels the
# same run differs from itself by 1.3e-3.
EMBEDDING_TOLERANCE = {"sgd": 1e-3, "adamw": 5e-3}


def _config(spec: dict, ranks: int) -> Config:
    """The recipe of a trace, as a configuration file of arcface_torch. The learning rate is set step by step."""
    recipe = {key: value for key, value in spec.items() if key not in ("ranks", "steps", "warmup_steps")}
    arguments = [f"batch_size={spec['batch_size'] * spec['ranks'] // ranks}", f"sync_bn={ranks != spec['ranks']}"]
    with tempfile.TemporaryDirectory() as folder:
        file = arcface_torch_file(Path(folder) / "trace.py", {**recipe, "num_classes": CLASSES, "num_epoch": 1})
        return load(file, arguments)


def _initial(name: str, like: torch.Tensor) -> torch.Tensor:
    """The traces' initial value of an entry of the encoder's state dict."""
    shape, values = tuple(like.shape), np.zeros(tuple(like.shape))
    if name.endswith("running_var"):
        values = np.ones(shape)
    elif name.endswith("weight") and len(shape) >= 2:
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif name.endswith("weight"):
        values = np.full(shape, 0.25 if "prelu" in name or shape == (1,) else 1.0)
    return torch.from_numpy(np.asarray(values)).to(like.dtype)


def _start(config: Config, world: dist.World) -> TrainState:
    state = build.build_train_state(config, world)
    state.encoder.load_state_dict({name: _initial(name, value) for name, value in state.encoder.state_dict().items()})
    head, rows = state.joint.classifier, np.random.default_rng(zlib.crc32(b"head")).normal(0, 0.01, (CLASSES, DIM))
    head.weight.data.copy_(torch.from_numpy(rows.astype(np.float32))[head.shard.start : head.shard.stop])
    return state


def _batch(records: RecordReader, keys: list[int]) -> DeviceBatch:
    found = [records.read(key) for key in keys]
    images = np.stack([decode_face(record.payload, key) for key, record in zip(keys, found, strict=True)])
    labels = torch.tensor([int(record.label[0]) for record in found])
    return DeviceBatch(torch.from_numpy(images)[None], labels, np.array(keys), ())


def _follow(path: Path) -> dict[str, list]:
    """Train as the trace did. Loss of each batch, gradient norm of each update, and the embedding at the end."""
    rank, size = dist.rank_and_world()
    trace = json.loads(path.read_text())
    config, world = _config(trace["spec"], size), dist.World(rank, size, rank, size, torch.device("cpu"))
    state, records = _start(config, world), RecordReader(FACES / "lfw_train" / "train.rec")
    step = build.build_train_step(config, world, state, lambda reason: None)
    terms: list[JointTerms] = []
    state.joint.register_forward_hook(lambda module, inputs, result: terms.append(result))
    norms, count = [], config.batch_size
    for first in range(0, len(trace["steps"]), config.gradient_acc):
        steps = trace["steps"][first : first + config.gradient_acc]
        for group in state.optimiser.param_groups:
            group["lr"] = steps[-1]["lr"]
        result = step([_batch(records, s["keys"][rank * count : (rank + 1) * count]) for s in steps])
        norms.append(float(result.gradient_norm))
    assert step.finish_step() == ""
    dist.broadcast_buffers(state.encoder)
    face = decode_face(records.read(1).payload, 1)
    embedding = Embedder(state.encoder, world.device, "RGB", None)(torch.from_numpy(face)[None])[0]
    return {"loss": [term.loss.item() for term in terms], "norm": norms, "embedding": embedding.tolist()}


def _deviation(found: list[float], expected: list[float]) -> float:
    assert len(found) == len(expected)
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))


@needs_golden
@needs_faces
@pytest.mark.parametrize(("path", "ranks"), CASES, ids=[f"{path.stem}-{ranks}" for path, ranks in CASES])
def test_training_follows_arcface_torch(path, ranks, capsys):
    trace = json.loads(path.read_text())
    expected, tolerance = trace["steps"], EMBEDDING_TOLERANCE[trace["spec"]["optimizer"]]
    for rank, found in enumerate(run_world(ranks, _follow, path, timeout=280)):
        loss = _deviation(found["loss"], [step["loss"] for step in expected])
        norms = [step["gradient_norm_before_clipping"] for step in expected]
        norm = _deviation(found["norm"], [norm for norm in norms if norm is not None])
        theirs, ours = torch.tensor([trace["embedding_of_record_1_after_training"], found["embedding"]], dtype=torch.float64)
        embedding = float((ours - theirs).norm() / theirs.norm())
        with capsys.disabled():
            print(f"\n{path.stem}, rank {rank} of {ranks}, largest relative deviation: ", end="")
            print(f"loss {loss:.1e}, gradient norm {norm:.1e}, embedding {embedding:.1e}", end=" ")
        assert max(loss, norm) < TOLERANCE and embedding < tolerance
