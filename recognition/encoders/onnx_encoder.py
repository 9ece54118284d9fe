"""Encoders in .onnx files, our own and others', run by onnxruntime (which is imported only here, when one is opened)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recognition.encoders.card import FORMAT, INPUT_SIZE, ChannelOrder, EncoderCard
from utils.errors import UserError

_LEADING_NODES = 8  # where insightface looks for a normalisation inside the graph


class OnnxEmbedder:
    """uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU, as `Embedder` does.

    Without our metadata insightface's conventions hold: RGB; (pixel - 127.5) / 127.5, unless the graph itself begins by
    subtracting and multiplying.
    Raises UserError: damaged; not one image in and one feature out; images of another size.
    """

    def __init__(self, path: str | Path, device: torch.device, channel_order: ChannelOrder | None = None):
        self.path = Path(path)
        self.session = _open(self.path, device)
        self.input, self.batch = self._check_input()
        metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        if metadata.get("format") == FORMAT:
            self.card = EncoderCard.from_metadata(metadata, str(self.path))
            if channel_order not in (None, self.card.channel_order):
                raise UserError(f"{path}: its metadata says {self.card.channel_order}; leave out --channel-order {channel_order}")
        else:
            mean, std = (0.0, 1.0) if _normalises_itself(self.path) else (127.5, 127.5)
            self.card = EncoderCard("", self._embedding_size(), channel_order or "RGB", INPUT_SIZE, mean, std)

    def __call__(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        images = images_nHWC.numpy()
        if self.card.channel_order == "BGR":
            images = images[..., ::-1]
        inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
        inputs -= self.card.mean
        inputs /= self.card.std
        return torch.from_numpy(self.run(inputs))

    def run(self, inputs_nCHW: np.ndarray) -> np.ndarray:
        """Normalised float32 [n, 3, 112, 112] -> float32 [n, D]."""
        if self.batch is None:
            return self._run(inputs_nCHW)
        rows = []  # a graph for batches of one size: the last one is filled up
        for first in range(0, len(inputs_nCHW), self.batch):
            part = inputs_nCHW[first : first + self.batch]
            filled = np.concatenate([part, np.repeat(part[:1], self.batch - len(part), axis=0)])
            rows.append(self._run(filled)[: len(part)])
        return np.concatenate(rows)

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        try:
            (features,) = self.session.run(None, {self.input: inputs})
        except Exception as fault:
            raise UserError(f"{self.path}: fails on {list(inputs.shape)} images ({str(fault).splitlines()[0][:160]})") from fault
        if features.ndim != 2 or len(features) != len(inputs):
            raise UserError(f"{self.path}: gives {list(features.shape)} for {len(inputs)} images; one feature an image is needed")
        return features.astype(np.float32, copy=False)

    def _check_input(self) -> tuple[str, int | None]:
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(f"{self.path}: {len(inputs)} inputs, {len(outputs)} outputs; an encoder has one of each")
        shape = inputs[0].shape
        if len(shape) != 4 or inputs[0].type != "tensor(float)" or shape[1] != 3:
            wanted = f"float [batch, 3, {INPUT_SIZE}, {INPUT_SIZE}] is needed"
            raise UserError(f"{self.path}: its input is {inputs[0].type} {shape}; {wanted}")
        for side in shape[2:]:
            if isinstance(side, int) and side != INPUT_SIZE:
                raise UserError(
                    f"{self.path}: takes images of {shape[3]}x{shape[2]}; faces here are {INPUT_SIZE}x{INPUT_SIZE}, "
                    "use an encoder for that size"
                )
        return inputs[0].name, shape[0] if isinstance(shape[0], int) else None

    def _embedding_size(self) -> int:
        return self.run(np.zeros((1, 3, INPUT_SIZE, INPUT_SIZE), np.float32)).shape[1]


def _open(path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as fault:
        raise UserError(f"{path}: reading it needs the package onnxruntime; pip install -r requirements.txt") from fault
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as fault:
        raise UserError(f"{path}: damaged or not an ONNX file ({str(fault).splitlines()[0][:160]}); copy it again") from fault


def _normalises_itself(path: Path) -> bool:
    """Whether the graph begins by subtracting and multiplying: insightface's rule, by the names of the first nodes."""
    import onnx

    names = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node[:_LEADING_NODES]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in names)
    return subtracts and any(name.startswith(("Mul", "_mul")) for name in names)
