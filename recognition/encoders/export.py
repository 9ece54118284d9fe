"""An encoder into a file that says all that a consumer has to know: .safetensors for PyTorch, .onnx for everything else.

What is written is read back and compared before it gets its name, so a file that exists is a file that works.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recognition.encoders.card import INPUT_SIZE, EncoderCard
from recognition.encoders.onnx_encoder import OnnxEmbedder
from utils.errors import UserError
from utils.files import new_file

TOLERANCE = 1e-4  # between PyTorch's features and the file's, relative to the largest of them where that is above 1
OPSET = 17  # known to onnxruntime from 1.13 on
INPUT, OUTPUT = "input", "features"
_CHECKED_BATCHES = (1, 3)  # sizes other than the one it was traced with


def export_encoder(module: nn.Module, card: EncoderCard, out: str | Path) -> float:
    """Writes `out`, atomically, by its ending; returns the largest difference from PyTorch's features that the check found
    (0.0 for safetensors, whose tensors are compared to the bit).

    module: images [B, 3, 112, 112], normalised as `card` says -> raw features [B, D]; left as it is.
    Raises UserError: another ending, a place that cannot be written, or a file that disagrees with PyTorch.
    """
    out = Path(out)
    writers: dict[str, Callable[[nn.Module, EncoderCard, Path], float]] = {
        ".safetensors": _write_safetensors,
        ".onnx": _write_onnx,
    }
    if out.suffix not in writers:
        raise UserError(f"--out {out}: the ending must be {' or '.join(writers)}")
    plain = copy.deepcopy(module).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    with new_file(out, parents=True, label=f"--out {out}") as partial:
        return writers[out.suffix](plain, card, partial)


def _write_safetensors(module: nn.Module, card: EncoderCard, path: Path) -> float:
    state = {name: value.detach().contiguous().clone() for name, value in module.state_dict().items()}
    save_file(state, path, metadata=card.to_metadata())
    written = load_file(path)
    if written.keys() != state.keys() or not all(torch.equal(written[name], value) for name, value in state.items()):
        raise UserError(f"{path}: what was written does not read back the same; check the disk")
    return 0.0


def _write_onnx(module: nn.Module, card: EncoderCard, path: Path) -> float:
    """Through PyTorch's tracing exporter: it needs no further package, and our encoders hold no branches on data, which is
    what tracing would miss. Normalisation stays outside the graph, where insightface expects it."""
    import onnx

    example = torch.rand(2, 3, INPUT_SIZE, INPUT_SIZE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter itself
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # sizes that are constant in our encoders
        torch.onnx.export(
            module, (example,), str(path), dynamo=False, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )  # fmt: skip
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, card.to_metadata())
    for node in model.graph.node:  # a name such as Mul_3 at the start would make insightface skip the normalisation
        node.name = f"/{node.name.lstrip('/')}"
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return _compare(module, card, path)


def _compare(module: nn.Module, card: EncoderCard, path: Path) -> float:
    session = OnnxEmbedder(path, torch.device("cpu"))
    if session.card != card:
        raise UserError(f"{path}: its metadata reads back as {session.card}, not {card}")
    rng, worst = np.random.default_rng(0), 0.0
    for batch in _CHECKED_BATCHES:
        inputs = rng.uniform(-1, 1, (batch, 3, card.input_size, card.input_size)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(inputs)).numpy()
        largest = float(np.abs(expected - session.run(inputs)).max()) / max(1.0, float(np.abs(expected).max()))
        worst = max(worst, largest)
    if not worst <= TOLERANCE:
        raise UserError(f"{path}: onnxruntime's features differ from PyTorch's by {worst:.2e}, more than {TOLERANCE}")
    return worst
