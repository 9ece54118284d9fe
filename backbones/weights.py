"""Released weights into an encoder: strictly, and without ever executing code from the file.

Read: a plain state dict (arcface_torch's `backbone.pth`, `model.pt`; also with `module.` before every name), a dict
that holds one under `state_dict` (AdaFace's Lightning `.ckpt`, names under `model.`) or `state_dict_backbone`
(arcface_torch's resumable checkpoints), and `.safetensors`.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("state_dict", "state_dict_backbone")
PREFIXES = ("module.", "model.", "_orig_mod.")
CLASSIFIERS = ("head.", "model.head.")  # AdaFace's own, beside the encoder in a Lightning checkpoint
SHOWN = 3

# Bookkeeping that Lightning stores beside the weights. Its classes are not imported: every such name stands for an
# empty shell, which takes whatever the file gives it and does nothing.
BOOKKEEPING = (
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
DICTIONARIES = ("AttributeDict", "EasyDict", "DictConfig")

# What torch.load raises on a truncated or foreign file; which one depends on where the damage lies.
DAMAGE = (
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


class WeightsError(ValueError):
    """Weights that cannot be loaded: one line with the file, what is wrong with it, and what to do."""


class _Shell:
    """Stands for an object of a checkpoint's bookkeeping."""

    def __new__(cls, *args: object, **kwargs: object) -> _Shell:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def load_weights(module: nn.Module, path: str | PathLike[str]) -> list[str]:
    """Load the weights of `path` (.pt, .pth, .ckpt, .safetensors) into `module`, in place; every entry must match.

    Returns the names left out on purpose: a classification head that was saved beside the encoder.
    Raises WeightsError (a ValueError): no such file; damaged; asks for code; entries missing, unexpected or of another
    shape. `module` is then unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; give a .pt, .pth, .ckpt or .safetensors")
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state, ignored = _encoder_entries(raw, path)
    _check_fit(module, state, path)
    module.load_state_dict(state, strict=True)
    return ignored


def identify_weights(path: str | PathLike[str], network: str = "") -> tuple[str, int]:
    """(name, embedding size) of the registered backbone that a file's entries belong to, by their names and shapes; of
    `network` alone, if that is given. Raises WeightsError as `load_weights` does, or where no backbone fits.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; give a .pt, .pth, .ckpt or .safetensors")
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state, _ = _encoder_entries(raw, path)
    found = _identify(state, [network] if network else None)
    if found is None:
        raise WeightsError(f"{path}: does not fit {network}; {_advice(state)}" if network else f"{path}: {_advice(state)}")
    return found


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(f"{path}: reading it needs the package safetensors; pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({_first_line(error)}); copy it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_shells(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors and loading it could run code "
            f"({_first_line(error)}); save it again as torch.save(encoder.state_dict(), ...) or as .safetensors"
        ) from error
    except DAMAGE as error:
        raise WeightsError(f"{path}: damaged or not a torch checkpoint ({_first_line(error)}); copy it again") from error


def _shells(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Harmless stand-ins for the bookkeeping classes that the file names. Anything else stays forbidden."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*DAMAGE, pickle.UnpicklingError):
        return []  # not a zip checkpoint: torch.load says what is wrong with it, or reads the older format
    known = [name for name in wanted if name.startswith(BOOKKEEPING)]
    return [(OrderedDict if name.endswith(DICTIONARIES) else _Shell, name) for name in known]


def _encoder_entries(raw: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's own entries with their prefixes removed, and the names of a classifier that lay beside them."""
    for key in WRAPPERS:
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
            break
    if not isinstance(raw, Mapping) or not raw:
        raise WeightsError(f"{path}: holds {type(raw).__name__}, not a state dict (names -> tensors)")
    for name, value in raw.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: entry {name!r} is {type(value).__name__}, not a tensor; not a state dict")
    state: dict[str, Tensor] = dict(raw)
    ignored: list[str] = []
    if any(name.startswith("model.") for name in state):
        ignored = [name for name in state if name.startswith(CLASSIFIERS)]
        state = {name: value for name, value in state.items() if name not in ignored}
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state, ignored


def _check_fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} is {list(state[name].shape)}, expected {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if not (missing or unexpected or reshaped):
        return
    faults = [
        f"{len(found)} {what} ({_few(found)})"
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if found
    ]
    raise WeightsError(f"{path}: does not fit this encoder: {'; '.join(faults)}; {_advice(state)}")


def _few(found: list[str]) -> str:
    return ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")


def _advice(state: Mapping[str, Tensor]) -> str:
    """Which registered backbone has these entries, and what to type."""
    from backbones.registry import names  # here, so that the registry can be imported without this file

    if found := _identify(state):
        return f"it looks like {found[0]!r}: build({found[0]!r}, embedding_size={found[1]})"
    return f"it looks like no backbone of this project; known are {', '.join(names())}"


def _identify(state: Mapping[str, Tensor], candidates: list[str] | None = None) -> tuple[str, int] | None:
    """Name and embedding size of the first of the `candidates` (default: all backbones) that has exactly these entries."""
    from backbones.registry import names

    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name in candidates or names():
        if _entries(name, 512).keys() == shapes.keys():
            sizes = {shape[0] for shape in shapes.values() if len(shape) == 1}  # the embedding size is one of these
            for size in sorted(sizes):
                if _entries(name, size) == shapes:
                    return name, size
    return None


@lru_cache(maxsize=64)
def _entries(name: str, embedding_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a registered backbone's state dict."""
    from backbones.registry import build

    with torch.device("meta"):  # shapes only: no memory
        return {key: tuple(value.shape) for key, value in build(name, embedding_size).state_dict().items()}


def _first_line(error: BaseException) -> str:
    """What torch found wrong, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or line.startswith("WeightsUnpickler error")]
    harmless = [line for line in lines if "weights_only" not in line]
    line = (telling or harmless or [""])[0].removeprefix("WeightsUnpickler error: ")
    line = line.partition(" Please use ")[0].partition(" was not an allowed")[0].rstrip(".")[:160]
    return line if line and not isinstance(error, KeyError) else type(error).__name__
