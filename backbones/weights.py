"""Released weights into an encoder: strictly, and without ever executing code from the file.

The entries may have any prefix (`module.`, `backbone.`, `features.module.` …) and may lie in any nested dict (`state_dict`,
`model` …), next to a classification head, an optimiser's state and other bookkeeping: the encoder's own names are searched for.
BatchNorm's counters (`num_batches_tracked`), which nothing uses, may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.weight_files import WeightsError, read_weights

_SHOWN = 3
_DEEPEST = 4  # dicts within dicts
_LONGEST_NAME = 1000  # letters; honest names have fewer than 100
_COUNTER = "num_batches_tracked"
_ENTRIES_OF_R2060 = 18_600
_HEADS = {"head", "heads", "classifier", "softmax", "softmax_fc", "fc", "kernel", "margin", "arcface", "logits", "loss"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Found:
    """An encoder within a file: `entries` is one of the file's dicts, `where` its keys, `prefix` what precedes the names."""

    where: str
    entries: Mapping[str, Any]
    prefix: str

    def state(self, names: Shapes) -> dict[str, Tensor]:
        """The entries with these names, without the prefix."""
        return {
            name: self.entries[self.prefix + name] for name in names if isinstance(self.entries.get(self.prefix + name), Tensor)
        }

    def others(self, names: Shapes) -> list[str]:
        """The tensors that are not among these names."""
        own = {self.prefix + name for name in names}
        return [name for name, value in self.entries.items() if isinstance(value, Tensor) and name not in own]

    @property
    def place(self) -> str:
        return f"{self.where}[{self.prefix}*]" if self.where else f"{self.prefix}*"


def load_weights(module: nn.Module, path: str | PathLike[str]) -> list[str]:
    """Load the weights of `path` (.pt, .pth, .ckpt, .safetensors) into `module`, in place; every entry must match.

    Returns the names left out on purpose: a classification head that was saved with the encoder.
    Raises WeightsError (a ValueError) as `read_weights` does, and if entries are missing, unexpected, of another shape or not
    finite. `module` is then unchanged.
    """
    path = Path(path)
    raw = _entries_of(path)
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = _fitting(raw, own, path)
    state = found.state(own)
    if problem := not_finite(state):
        raise WeightsError(f"{path}: {problem}; use weights saved earlier")
    counters = {name: value for name, value in module.state_dict().items() if name not in state}  # they stay
    module.load_state_dict({**counters, **state}, strict=True)
    return found.others(own)


def not_finite(state: Mapping[str, Tensor]) -> str:
    """Which tensors contain NaN or infinity; "" if none do."""
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    return f"{len(broken)} of {len(state)} tensors contain NaN or infinity ({_few(broken)})" if broken else ""


def identify_weights(path: str | PathLike[str], network: str = "") -> tuple[str, int]:
    """(name, embedding size) of the registered backbone that a file's entries belong to, by their names and shapes; of
    `network` alone, if that is given. Raises WeightsError as `load_weights` does, or where no backbone fits.
    """
    path = Path(path)
    raw = _entries_of(path)
    found = _identify(raw, [network] if network else None)
    if found is None:
        raise WeightsError(f"{path}: does not fit {network}; {_advice(raw)}" if network else f"{path}: {_advice(raw)}")
    return found


def _entries_of(path: Path) -> Mapping[Any, Any]:
    raw = read_weights(path)
    if not isinstance(raw, Mapping) or not any(True for _ in _dicts(raw)):
        raise WeightsError(f"{path}: holds {type(raw).__name__}, not a state dict (names -> tensors)")
    return raw


# ------------------------------------------------------------------------------------------------ search


def _dicts(raw: Mapping[Any, Any], where: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All dicts in a file that contain tensors by name, each with the keys that lead to it."""
    if any(isinstance(value, Tensor) and isinstance(name, str) for name, value in raw.items()):
        yield where, {name: value for name, value in raw.items() if isinstance(name, str)}
    for key, value in raw.items():
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _dicts(value, f"{where}.{key}".lstrip("."), depth + 1)


def _candidates(raw: Mapping[Any, Any], own: Shapes) -> list[_Found]:
    """Where some of the names `own` occur, with the most first."""
    counted = []
    for where, entries in _dicts(raw):
        prefixes: Counter[str] = Counter()
        for name in filter(lambda name: len(name) <= _LONGEST_NAME, entries):
            starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
            prefixes.update(name[:start] for start in starts if name[start:] in own)
        prefixes[""] += 0
        counted += [(count, _Found(where, entries, prefix)) for prefix, count in prefixes.items()]
    return [found for _, found in sorted(counted, key=lambda each: -each[0])]


def _fitting(raw: Mapping[Any, Any], own: Shapes, path: Path) -> _Found:
    """The only place that fits. Raises WeightsError, beginning with `path`: there is none, or there are several."""
    fits, *more = [found for found in _candidates(raw, own) if not _differences(found, own)] or _candidates(raw, own)[:1]
    others = [found.place for found in more if not _equal(found.state(own), fits.state(own))]
    if others:
        places = ", ".join([fits.place, *others])
        raise WeightsError(
            f"{path}: contains {1 + len(others)} encoders that fit ({places}); save one of them in a file of its own"
        )
    for name in own:
        value = fits.entries.get(fits.prefix + name)
        if value is not None and not isinstance(value, Tensor):
            entry = f"entry {fits.prefix + name!r} is {type(value).__name__}"
            raise WeightsError(f"{path}: {entry}, not a tensor; not a state dict")
    if faults := _faults(fits, own):
        raise WeightsError(f"{path}: does not fit this encoder: {faults}; {_advice(raw)}")
    return fits


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _differences(found: _Found, own: Shapes) -> dict[str, list[str]]:
    """What is missing and what has another shape: kind -> names."""
    state = found.state(own)
    missing = [name for name in own if name not in state and not name.endswith(_COUNTER)]
    reshaped = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in own.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    return {kind: names for kind, names in (("missing", missing), ("of another shape", reshaped)) if names}


def _faults(found: _Found, own: Shapes) -> str:
    """What keeps the entries from fitting: differences, and entries that belong to no classification head; "" if they fit."""
    faults = _differences(found, own)
    if unexpected := _not_of_heads(found, own):
        faults["unexpected"] = unexpected
    order = ("missing", "unexpected", "of another shape")
    return "; ".join(f"{len(faults[kind])} {kind} ({_few(faults[kind])})" for kind in order if kind in faults)


def _not_of_heads(found: _Found, own: Shapes) -> list[str]:
    """The other entries of the same dict, without those of classification heads.

    A head is a module outside the encoder's own ones with a usual name, or with one matrix, of classes x embedding size or
    transposed, and otherwise vectors and numbers.
    """
    parts = {name.partition(".")[0] for name in own}
    size = next((shape[0] for shape in reversed(list(own.values())) if shape), 0)
    groups: dict[str, list[str]] = {}
    for name in found.others(own):
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    unexpected: list[str] = []
    for group, names in groups.items():
        inside = group.startswith(found.prefix) and names[0].removeprefix(found.prefix).partition(".")[0] in parts
        usual = bool(_HEADS & set((group or names[0]).split(".")))
        matrices = [found.entries[name].shape for name in names if found.entries[name].dim() > 1]
        classifies = len(matrices) == 1 and len(matrices[0]) == 2 and list(matrices[0]).count(size) == 1
        if inside or not (usual or classifies):
            unexpected += names
    return unexpected


# ------------------------------------------------------------------------------------------------ registered backbones


def _few(found: list[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")


def _advice(raw: Mapping[Any, Any]) -> str:
    """Which registered backbone has these entries, and what to type; or which is the most similar, and how they differ."""
    if found := _identify(raw):
        return f"it looks like {found[0]!r} (network={found[0]!r}, embedding_size={found[1]})"
    known = _names(raw)
    advice = f"it matches no backbone of this project; known names: {', '.join(known)}"
    similar, name = max((_similarity(raw, name), name) for name in known)
    return f"{advice}; the most similar is {name!r}: {_nearest_faults(raw, name)}" if similar > 0.5 else advice


def _names(raw: Mapping[Any, Any]) -> list[str]:
    """The backbones that a file may hold: all but r2060, which takes seconds to build, unless it is as large."""
    from backbones.registry import names  # here, so that the registry can be imported without this file

    entries = max((len(entries) for _, entries in _dicts(raw)), default=0)
    return [name for name in names() if name != "r2060" or entries > _ENTRIES_OF_R2060 // 2]


def _similarity(raw: Mapping[Any, Any], network: str) -> float:
    """The share of names that the file and a backbone have in common."""
    own = _entries(network, 512)
    found = _candidates(raw, own)[0]
    return len(found.state(own)) / (len(own) + len(_not_of_heads(found, own)))


def _nearest_faults(raw: Mapping[Any, Any], network: str) -> str:
    """How the file differs from a backbone, at the embedding size at which it differs least."""
    every = [_entries(network, size) for size in _sizes(raw) or [512]]
    return min((_faults(_candidates(raw, own)[0], own) for own in every), key=len)


def _sizes(raw: Mapping[Any, Any]) -> list[int]:
    """The lengths of all vectors in a file; its embedding size is one of them."""
    values = (value for _, entries in _dicts(raw) for value in entries.values())
    return sorted({len(value) for value in values if isinstance(value, Tensor) and value.dim() == 1})


def _identify(raw: Mapping[Any, Any], networks: list[str] | None = None) -> tuple[str, int] | None:
    """Name and embedding size of the first of the `networks` (default: all backbones) that has exactly these entries."""
    for name in networks or _names(raw):
        own = _entries(name, 512)
        if "missing" in _differences(_candidates(raw, own)[0], own):
            continue
        for size in _sizes(raw):
            own = _entries(name, size)
            if any(not _differences(found, own) and not _not_of_heads(found, own) for found in _candidates(raw, own)):
                return name, size
    return None


@lru_cache(maxsize=64)
def _entries(name: str, embedding_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a registered backbone's state dict."""
    from backbones.registry import build

    with torch.device("meta"):  # shapes only: no memory
        return {key: tuple(value.shape) for key, value in build(name, embedding_size).state_dict().items()}
