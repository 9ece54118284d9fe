"""Weight files: what a file is, by its content rather than its name, its tensors and its metadata. No code in it is executed."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


class WeightsError(ValueError):
    """Weights that cannot be loaded: one line with the file, what is wrong with it, and what to do."""


_HEAD_BYTES = 1024  # read to find out what a file is
_MAX_HEADER = 100_000_000  # bytes of a safetensors header, by its specification
_DOWNLOAD = "download the weights themselves again"

# How a file begins -> what it is, and what to do.
_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not weights; run `git lfs pull` in its repository, or download the file"),
    (b"<", f"is a web page (HTML or XML), not weights; {_DOWNLOAD}, from the page's download link"),
    (b"{", f"is JSON text, not weights; {_DOWNLOAD}"),
    (b"%PDF", f"is a PDF document, not weights; {_DOWNLOAD}"),
    (b"\x1f\x8b", "is a gzip archive; unpack it, and give the file inside"),
    (b"BZh", "is a bzip2 archive; unpack it, and give the file inside"),
    (b"\xfd7zXZ", "is an xz archive; unpack it, and give the file inside"),
    (b"\x28\xb5\x2f\xfd", "is a Zstandard archive; unpack it, and give the file inside"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it, and give the file inside"),
    (b"Rar!", "is a RAR archive; unpack it, and give the file inside"),
    (b"\x89HDF", "is an HDF5 file (Keras), not PyTorch weights; convert it to .safetensors"),
    (b"\x12\x01\0\0\0\0\0\0", "is an MXNet parameter file; convert it to .onnx or .safetensors"),
    (b"\x93NUMPY", "is a NumPy array, not a state dict; save the state dict as .safetensors"),
    (b"\x89PNG", f"is a PNG image, not weights; {_DOWNLOAD}"),
    (b"\xff\xd8\xff", f"is a JPEG image, not weights; {_DOWNLOAD}"),
)  # fmt: skip
_ONNX = (
    "is an ONNX model, not a state dict; to evaluate it, name it .onnx; to train from it, give the .pt, .pth, .ckpt or "
    ".safetensors that it was exported from"
)
_TORCHSCRIPT = (
    "is a TorchScript program, which contains code; where you trust it, save its weights with "
    "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
)

# Bookkeeping that Lightning stores with the weights. Its classes are not imported: every such name stands for an
# empty shell, which takes whatever the file gives it and does nothing.
_BOOKKEEPING = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "omegaconf.",
    "easydict.",
    "argparse.Namespace",
    "pathlib.",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.",
)
_DICTIONARIES = ("AttributeDict", "EasyDict", "DictConfig")

# What torch.load raises on a truncated or foreign file; which one depends on where the damage lies.
_DAMAGE = (
    RuntimeError,
    OSError,
    MemoryError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


class _Shell:
    """Stands for an object of a checkpoint's bookkeeping."""

    def __new__(cls, *args: object, **kwargs: object) -> _Shell:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_weights(path: Path) -> Any:
    """The content of a weight file: tensors by name, possibly nested and among other values.

    Raises WeightsError if the file is missing, is damaged, would execute code, or is no weight file (the error names what it is).
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise WeightsError(f"{path}: {what}; give a .pt, .pth, .ckpt or .safetensors")
    if problem := _not_weights(path):
        raise WeightsError(f"{path}: {problem}")
    return _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The text entries of a safetensors file; other files have none. Raises WeightsError if damaged."""
    if not path.is_file() or _not_weights(path) or not _is_safetensors(path):
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({_first_line(error)}); copy it again") from error


# ------------------------------------------------------------------------------------------------ what a file is


def _not_weights(path: Path) -> str:
    """What a file is and what to do, if it certainly contains no state dict; else ""."""
    head = _head(path)
    if not head:
        return "the file is empty; copy it again"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, problem in _MAGICS:
        if start.startswith(magic) or head.startswith(magic):
            return problem
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it, and give the file inside"
    if head[0] == 0x08 and head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A):  # ir_version, then another field
        return _ONNX
    return _about_zip(path) if head.startswith(b"PK") else ""


def _about_zip(path: Path) -> str:
    """What a zip archive is, if it is no weight file: "" for PyTorch's archives, and for one whose directory is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, zlib.error):
        return ""
    inside = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in inside or any("/code/" in name for name in names):
        return _TORCHSCRIPT
    if "data.pkl" in inside:
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "is a NumPy archive (.npz), not a state dict; save the state dict as .safetensors"
    shown = ascii(", ".join(names[:3]) + (", …" if len(names) > 3 else ""))[1:-1][:100]
    return f"is a zip archive of {len(names)} files ({shown}), not a checkpoint; unpack it, and give the weights inside"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error


def _is_safetensors(path: Path) -> bool:
    """Whether to read a file as safetensors: by its first bytes, or by its name if these do not tell."""
    head = _head(path)
    (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\xff"))
    begins_so = head[8:9] == b"{" and length <= _MAX_HEADER
    return begins_so or (path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")))


def _text_in(path: Path) -> str:
    """The beginning of a text file, for an error; "" for binary files."""
    head = _head(path)
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return ""
    plain = text.isprintable() or all(letter.isprintable() or letter.isspace() for letter in text)
    return " ".join(text.split())[:60] if plain else ""


# ------------------------------------------------------------------------------------------------ reading


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({_first_line(error)}); copy it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_shells(path)), path.open("rb") as file:  # by name, torch would trust the ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if text := _text_in(path):
            raise WeightsError(f"{path}: is text ({text!r}), not weights; {_DOWNLOAD}") from error
        if not _head(path).startswith((b"PK", b"\x80")):
            raise WeightsError(f"{path}: damaged or not a torch checkpoint ({_first_line(error)}); copy it again") from error
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors and loading it could run code "
            f"({_first_line(error)}); save it again as torch.save(encoder.state_dict(), ...) or as .safetensors"
        ) from error
    except _DAMAGE as error:
        raise WeightsError(f"{path}: damaged or not a torch checkpoint ({_first_line(error)}); copy it again") from error


def _shells(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Harmless stand-ins for the bookkeeping classes that the file names. Anything else stays forbidden."""
    try:
        with path.open("rb") as file:
            wanted = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (*_DAMAGE, pickle.UnpicklingError):
        return []  # not a zip checkpoint: torch.load says what is wrong with it, or reads the older format
    known = [name for name in wanted if name.startswith(_BOOKKEEPING)]
    return [(OrderedDict if name.endswith(_DICTIONARIES) else _Shell, name) for name in known]


def _first_line(error: BaseException) -> str:
    """What torch found wrong, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or line.startswith("WeightsUnpickler error")]
    harmless = [line for line in lines if "weights_only" not in line]
    line = (telling or harmless or [""])[0].removeprefix("WeightsUnpickler error: ")
    line = line.partition(" Please use ")[0].partition(" was not an allowed")[0].rstrip(".")[:160]
    return line if line and not isinstance(error, KeyError) else type(error).__name__
