"""Export an encoder with its model card: .safetensors for PyTorch, .onnx for everything else.

A file is read back and compared before it gets its name, so a file that exists works.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

import backbones
from recognition.encoders.card import EncoderCard
from recognition.encoders.onnx import OnnxEmbedder
from utils.errors import UserError
from utils.files import new_file
from utils.images import FACE_SIZE

TOLERANCE = 1e-4  # largest difference between PyTorch's features and the file's, relative to the largest feature if above 1
OPSET = 17  # read by onnxruntime from 1.13 on
INPUT, OUTPUT = "input", "features"
_CHECKED_BATCHES = (1, 3)  # sizes other than the traced one


def export_encoder(module: nn.Module, card: EncoderCard, out: str | Path) -> float:
    """Write `out`, whole or not at all, in the format of its ending.

    Returns the largest difference from PyTorch's features that the check found (0.0 for safetensors, whose tensors are
    compared bit for bit).

    module: images [B, 3, 112, 112], normalised as in `card` -> raw features [B, D]; stays unchanged.
    Raises UserError if the ending is another one, or the file cannot be written or disagrees with PyTorch.
    """
    out = Path(out)
    formats = {".safetensors": (_write_safetensors, _check_safetensors), ".onnx": (_write_onnx, _check_onnx)}
    if out.suffix not in formats:
        raise UserError(f"--out {out}: the ending must be {' or '.join(formats)}")
    write, check = formats[out.suffix]
    plain = copy.deepcopy(module).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    label = f"--out {out}"
    if problem := backbones.not_finite(plain.state_dict()):
        raise UserError(f"{label}: {problem}; export an earlier checkpoint")
    with new_file(out, parents=True, label=label) as partial:
        write(plain, card, partial)
        return check(plain, card, partial, label)


def _write_safetensors(module: nn.Module, card: EncoderCard, path: Path) -> None:
    state = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
    path.write_bytes(save(state, metadata=card.to_metadata()))


def _check_safetensors(module: nn.Module, card: EncoderCard, path: Path, label: str) -> float:
    state, written = module.state_dict(), load_file(path)
    if written.keys() != state.keys() or not all(
        torch.equal(written[name], value) for name, value in state.items()
    ):  # all finite
        raise UserError(f"{label}: the file does not read back the same; check the disk")
    return 0.0


def _write_onnx(module: nn.Module, card: EncoderCard, path: Path) -> None:
    """Through PyTorch's tracing exporter, which needs no further package. Tracing misses branches on data; these encoders
    have none. Normalisation stays outside the graph, where insightface expects it."""
    import onnx

    example = torch.rand(2, 3, FACE_SIZE, FACE_SIZE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter itself
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # about sizes that are constant here
        torch.onnx.export(
            module,
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, card.to_metadata())
    for node in model.graph.node:  # a first name such as Mul_3 would make insightface skip the normalisation
        node.name = f"/{node.name.lstrip('/')}"
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _check_onnx(module: nn.Module, card: EncoderCard, path: Path, label: str) -> float:
    session = OnnxEmbedder(path, torch.device("cpu"))
    if session.card != card:
        raise UserError(f"{label}: the metadata reads back as {session.card}, not {card}")
    rng, worst = np.random.default_rng(0), 0.0
    for batch in _CHECKED_BATCHES:
        inputs = rng.uniform(-1, 1, (batch, 3, card.input_size, card.input_size)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(inputs)).numpy()
        found = session.run(inputs)
        for engine, features in (("PyTorch", expected), ("onnxruntime", found)):
            if not np.isfinite(features).all():
                raise UserError(f"{label}: {engine}'s features are not finite; check the encoder's weights")
        worst = max(worst, float(np.abs(expected - found).max()) / max(1.0, float(np.abs(expected).max())))
    if worst > TOLERANCE:
        raise UserError(f"{label}: onnxruntime's features differ from PyTorch's by {worst:.2e}, more than {TOLERANCE}")
    return worst
