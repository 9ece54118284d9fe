"""Export an encoder with its card: .safetensors for PyTorch, .onnx (fp32, fp16 or int8) for everything else.

A file is read back and compared before it gets its name, so a file that exists works.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

import backbones
from recognition.encoders.card import EncoderCard
from recognition.encoders.onnx import OnnxEmbedder, normalised
from recognition.encoders.precision import INPUT, Precision, to_fp16, to_int8
from utils.errors import UserError
from utils.files import new_file
from utils.images import FACE_SIZE
from utils.plugins import require

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": np.inf}
"""Largest difference between PyTorch's features and the file's, relative to the largest feature if above 1. For int8 only a
comparison on pairs of faces can judge (`eval export --bins`)."""
OPSET = 18  # read by onnxruntime from 1.14 on
OUTPUT = "features"


def export_encoder(
    module: nn.Module, card: EncoderCard, out: str | Path, precision: Precision = "fp32", faces: np.ndarray | None = None
) -> float:
    """Write `out`, whole or not at all, in the format of its ending.

    Returns the largest difference from PyTorch's features that the check found (0.0 for safetensors, whose tensors are
    compared bit for bit).

    module: images [B, 3, 112, 112], normalised as in `card` -> raw features [B, D]; stays unchanged. precision: of an .onnx.
    faces: uint8 RGB [n, 112, 112, 3], which calibrate int8.
    Raises UserError if the ending is another one, or the file cannot be written or disagrees with PyTorch.
    """
    out = Path(out)
    if out.suffix not in (".safetensors", ".onnx"):
        raise UserError(f"--out {out}: the ending must be .safetensors or .onnx")
    plain = copy.deepcopy(module).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    label = f"--out {out}"
    if problem := backbones.not_finite(plain.state_dict()):
        raise UserError(f"{label}: {problem}; export an earlier checkpoint")
    with new_file(out, parents=True, label=label) as partial:
        if out.suffix == ".safetensors":
            _write_safetensors(plain, card, partial, label)
            return 0.0
        inputs = None if faces is None else normalised(faces, card)
        _write_onnx(plain, card, partial, precision, inputs, label)
        return _check_onnx(plain, card, partial, precision, inputs, label)


def _write_safetensors(module: nn.Module, card: EncoderCard, path: Path, label: str) -> None:
    """Write a file and read it back. Raises UserError, beginning with `label`, if it differs."""
    state = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
    path.write_bytes(save(state, metadata=card.to_metadata()))
    written = load_file(path)
    if written.keys() != state.keys() or not all(torch.equal(written[name], state[name]) for name in state):  # all finite
        raise UserError(f"{label}: the file does not read back the same; check the disk")


def _write_onnx(
    module: nn.Module, card: EncoderCard, path: Path, precision: Precision, inputs: np.ndarray | None, label: str
) -> None:
    """Through torch.export. Normalisation stays outside the graph, where insightface expects it."""
    import onnx

    require("onnxscript", "requirements.txt", label)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (torch.rand(2, 3, FACE_SIZE, FACE_SIZE),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except torch.onnx.OnnxExporterError as fault:
        reason = str(fault.__cause__ or fault).splitlines()[0][:160]
        raise UserError(f"{label}: PyTorch cannot export this network ({reason}); export it as .safetensors") from fault
    assert program is not None
    program.save(str(path))
    with _quiet():
        if precision == "fp16":
            to_fp16(path)
        elif precision == "int8":
            assert inputs is not None
            to_int8(path, inputs)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, card.to_metadata())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporter and quantisation print about other packages, their own calls, and graphs that fail."""
    before, ignored = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(ignored), contextlib.redirect_stderr(ignored):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check_onnx(
    module: nn.Module, card: EncoderCard, path: Path, precision: Precision, inputs: np.ndarray | None, label: str
) -> float:
    """The largest difference from PyTorch, on `inputs` or else on noise. Raises UserError if it is too large."""
    session = OnnxEmbedder(path, torch.device("cpu"))
    if session.card != card:
        raise UserError(f"{label}: the metadata reads back as {session.card}, not {card}")
    if inputs is None:
        inputs = np.random.default_rng(0).uniform(-1, 1, (4, 3, card.input_size, card.input_size)).astype(np.float32)
    worst = 0.0
    for part in (inputs[:1], inputs[1:4]):  # sizes other than the traced one
        with torch.no_grad():
            expected = module(torch.from_numpy(part)).numpy()
        found = session.run(part)
        for engine, features in (("PyTorch", expected), ("onnxruntime", found)):
            if not np.isfinite(features).all():
                raise UserError(f"{label}: {engine}'s features are not finite; check the encoder's weights")
        worst = max(worst, float(np.abs(expected - found).max()) / max(1.0, float(np.abs(expected).max())))
    if worst > TOLERANCE[precision]:
        raise UserError(f"{label}: onnxruntime's features differ from PyTorch's by {worst:.2e}, more than {TOLERANCE[precision]}")
    return worst
