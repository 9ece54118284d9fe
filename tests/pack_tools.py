"""Shared by the tests of images and packing tools: running a command, small image folders, a detector model, false headers."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np

from recognition.data.pack.__main__ import make_parser
from tests.shared_files import ROOT


def pack(*arguments: object) -> None:
    """`python -m recognition.data.pack …` in this process, with two workers."""
    texts = [str(argument) for argument in arguments]
    if texts[0] not in ("reindex", "grid"):
        texts += ["--workers", "2"]
    parsed = make_parser().parse_args(texts)
    parsed.run(parsed)


def start_pack(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """The same in a separate process."""
    command = [sys.executable, "-m", "recognition.data.pack", *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def picture(seed: int, height: int = 112, width: int = 112) -> np.ndarray:
    """BGR uint8 [height, width, 3]: smooth noise, which JPEG compression hardly changes."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def make_people(folder: Path, counts: dict[str, int]) -> dict[str, bytes]:
    """JPEGs of 112x112, the given number per person: path below the folder -> bytes."""
    files = {}
    for person, (name, count) in enumerate(sorted(counts.items())):
        for number in range(count):
            files[f"{name}/{number}.jpg"] = encoded(picture(1000 * person + number))
    write_files(folder, files)
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- a detector: a network with YuNet's outputs that detects white squares


def _field(number: int, value: int | bytes | str) -> bytes:
    """One protobuf field: a varint or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = 1 if values.dtype == np.float32 else 7
    return b"".join(_field(1, size) for size in values.shape) + _field(2, kind) + _field(8, name) + _field(9, values.tobytes())


def _node(kind: str, inputs: list[str], output: str, **integers: list[int]) -> bytes:
    attributes = b""
    for name, values in integers.items():
        attributes += _field(5, _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7))
    named = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(3, output)
    return named + _field(4, kind) + attributes


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


LANDMARKS_IN_CELL = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))  # of a white square's side


def write_detector(path: Path) -> None:
    """An ONNX file with YuNet's inputs and outputs. For the strides 8, 16 and 32, every white cell is a face of that cell's size,
    with landmarks at `LANDMARKS_IN_CELL`."""
    biases = {"cls": [0.0], "obj": [0.0], "bbox": [0.5, 0.5, 0.0, 0.0], "kps": list(np.ravel(LANDMARKS_IN_CELL))}
    graph, outputs = b"", b""
    for kind, bias in biases.items():
        for stride in (8, 16, 32):
            name, count = f"{kind}_{stride}", len(bias)
            level = 1 / (3 * stride * stride * 255) if kind in ("cls", "obj") else 0.0
            weights = np.full((count, 3, stride, stride), level, np.float32)
            graph += _field(5, _tensor(f"{name}.w", weights)) + _field(5, _tensor(f"{name}.b", np.array(bias, np.float32)))
            graph += _field(5, _tensor(f"{name}.s", np.array([1, -1, count], np.int64)))
            sides = {"kernel_shape": [stride] * 2, "strides": [stride] * 2, "pads": [0] * 4}
            graph += _field(1, _node("Conv", ["input", f"{name}.w", f"{name}.b"], f"{name}.c", **sides))
            graph += _field(1, _node("Transpose", [f"{name}.c"], f"{name}.t", perm=[0, 2, 3, 1]))
            graph += _field(1, _node("Reshape", [f"{name}.t", f"{name}.s"], name))
            outputs += _field(12, _value(name, (1, (640 // stride) ** 2, count)))
    graph += _field(2, "squares") + _field(11, _value("input", (1, 3, 640, 640))) + outputs
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 11)))


# -- false headers


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header announces another size, with a valid checksum."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    small = encoded(picture(0, 8, 8), ".png")
    return small[:8] + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + small[33:]


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG of 112x112 whose header announces another size."""
    data = bytearray(encoded(picture(0)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)
