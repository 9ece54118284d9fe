"""Encoders in .onnx files, exported here or elsewhere, run by onnxruntime (imported only when a file is opened)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recognition.encoders.card import MEAN, STD, EncoderCard
from utils.errors import UserError
from utils.images import FACE_SIZE, ChannelOrder

_LEADING_NODES = 8  # insightface looks among these for a normalisation inside the graph


class OnnxEmbedder:
    """uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU, as `Embedder` does.

    A file without this project's metadata follows insightface's conventions: images in `channel_order`, normalised as
    (pixel - 127.5) / 127.5 unless the graph itself begins by subtracting and multiplying, or `mean` and `std` are given.
    assumed: whether the file has no such metadata.
    Raises UserError if the file is damaged, does not map one image to one feature, or takes another image size.
    """

    precision = "own"  # the graph decides

    def __init__(
        self,
        path: str | Path,
        device: torch.device,
        channel_order: ChannelOrder = "RGB",
        mean: float | None = None,
        std: float | None = None,
    ):
        self.path = Path(path)
        self.session = _open(self.path, device)
        self.input, self.batch = self._check_input()
        card = EncoderCard.from_metadata(self.session.get_modelmeta().custom_metadata_map, str(path))
        self.assumed = card is None
        if card is None:
            size = self.run(np.zeros((1, 3, FACE_SIZE, FACE_SIZE), np.float32)).shape[1]
            usual = (0.0, 1.0) if _normalises_itself(self.path) else (MEAN, STD)
            mean, std = usual[0] if mean is None else mean, usual[1] if std is None else std
            if not (np.isfinite([mean, std]).all() and std > 0):
                raise UserError(f"--mean {mean:g} --std {std:g}: must be finite, and the second positive")
            card = EncoderCard("", size, channel_order, FACE_SIZE, mean, std)
        self.card = card

    def __call__(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run(normalised(images_nHWC.numpy(), self.card)))

    def features(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        """The same from images on any device, as `Embedder.features`."""
        return self(images_nHWC.cpu())

    def run(self, inputs_nCHW: np.ndarray) -> np.ndarray:
        """Normalised float32 [n, 3, 112, 112] -> float32 [n, D]."""
        if self.batch is None:
            return self._run(inputs_nCHW)
        rows = []  # the graph takes batches of one size only: pad the last one
        for first in range(0, len(inputs_nCHW), self.batch):
            part = inputs_nCHW[first : first + self.batch]
            padded = np.concatenate([part, np.repeat(part[:1], self.batch - len(part), axis=0)])
            rows.append(self._run(padded)[: len(part)])
        return np.concatenate(rows)

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        try:
            (features,) = self.session.run(None, {self.input: inputs})
        except Exception as fault:
            raise UserError(f"{self.path}: fails on {list(inputs.shape)} images ({_first_line(fault)})") from fault
        if features.ndim != 2 or len(features) != len(inputs):
            found = f"{list(features.shape)} for {len(inputs)} images"
            raise UserError(f"{self.path}: returns {found}; an encoder returns one feature per image")
        return features.astype(np.float32, copy=False)

    def _check_input(self) -> tuple[str, int | None]:
        """Name of the input, and the only batch size that the graph takes (None: any)."""
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(f"{self.path}: {len(inputs)} inputs, {len(outputs)} outputs; an encoder has one of each")
        shape = inputs[0].shape
        if len(shape) != 4 or inputs[0].type != "tensor(float)" or shape[1] != 3:
            expected = f"float [batch, 3, {FACE_SIZE}, {FACE_SIZE}]"
            raise UserError(f"{self.path}: its input is {inputs[0].type} {shape}; {expected} is needed")
        for side in shape[2:]:
            if isinstance(side, int) and side != FACE_SIZE:
                raise UserError(
                    f"{self.path}: takes images of {shape[3]}x{shape[2]}; faces here are {FACE_SIZE}x{FACE_SIZE}, "
                    "use an encoder for that size"
                )
        return inputs[0].name, shape[0] if isinstance(shape[0], int) else None


def normalised(images_nHWC: np.ndarray, card: EncoderCard) -> np.ndarray:
    """uint8 RGB [n, 112, 112, 3] -> the encoder's input, float32 [n, 3, 112, 112]."""
    images = images_nHWC[..., ::-1] if card.channel_order == "BGR" else images_nHWC
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    inputs -= card.mean
    inputs /= card.std
    return inputs


def _open(path: Path, device: torch.device) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would contact its vendor, and warn if the home folder is read-only
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as fault:
        raise UserError(f"{path}: damaged or not an ONNX file ({_first_line(fault)}); copy it again") from fault


def _normalises_itself(path: Path) -> bool:
    """Whether the graph begins by subtracting and multiplying: insightface's rule, by the names of the first nodes."""
    import onnx

    names = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node[:_LEADING_NODES]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in names)
    return subtracts and any(name.startswith(("Mul", "_mul")) for name in names)


def _first_line(fault: Exception) -> str:
    return str(fault).splitlines()[0][:160]
