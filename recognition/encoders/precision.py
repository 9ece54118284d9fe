"""Smaller versions of an exported ONNX graph: fp16, and int8 calibrated on faces (onnxruntime.quantization)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from recognition.data.sets.opening import open_faces
from utils.images import decode_face

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INPUT = "input"  # name of the graph's input

_CALIBRATION_IMAGES, _BATCH = 256, 32


def calibration_images(path: str | Path) -> np.ndarray:
    """Up to 256 images, evenly spaced in a set that `rec` could name: uint8 RGB [n, 112, 112, 3].

    Raises UserError if the set cannot be opened, or an image is damaged or of another size.
    """
    faces = open_faces(path)
    chosen = np.unique(np.linspace(0, len(faces) - 1, _CALIBRATION_IMAGES).astype(int))
    return np.stack([decode_face(faces.read(index)[0], faces.where(index)) for index in map(int, chosen)])


def to_fp16(path: Path) -> None:
    """Convert weights and arithmetic of a graph to fp16, in place; input and output remain fp32."""
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = OnnxModel(onnx.load(str(path)))
    graph.convert_float_to_float16(use_symbolic_shape_infer=False, keep_io_types=True)
    graph.topological_sort()
    onnx.save(graph.model, str(path))


def to_int8(path: Path, faces_nCHW: np.ndarray) -> None:
    """Quantise a graph to int8 in place: weights per channel, activations by their range on normalised faces, float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Faces(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = self._batches()

        def _batches(self) -> Iterator[dict[str, np.ndarray]]:
            for first in range(0, len(faces_nCHW), _BATCH):
                yield {INPUT: faces_nCHW[first : first + _BATCH]}

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    quantize_static(
        str(path),
        str(path),
        Faces(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
