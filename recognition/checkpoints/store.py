"""Checkpoints on disk: their layout, how they are found and how they are read. writer.py writes them.

    OUTPUT/checkpoints/step-00000120/
        shard-*.safetensors   tensors; sharded ones in parts, readable by any number of ranks
        config.json           the run's resolved configuration
        state.json            counters, and the names of the sharded tensors
        manifest.json         size and checksum of each file above; written last
    OUTPUT/checkpoints/best   link to the best one, if `keep_best` names a metric

A checkpoint is written under a temporary name and renamed when it is complete, so a crash or a full disk leaves the one
before it in place. One that was damaged later is found by its checksums and skipped. Nothing is ever unpickled: tensors
are safetensors, written and read through torch.distributed.checkpoint (DCP); the rest is JSON.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recognition import __version__
from recognition.checkpoints import manifest
from utils import dist
from utils.config import Config, load_json
from utils.errors import UserError, is_limit, warn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

FORMAT = 2
STATE, CONFIG, BEST = "state.json", "config.json", "best"


@dataclass(frozen=True)
class ShardedRows:
    """This rank's contiguous rows of a tensor with `total` rows (divided as in `utils.dist.shard_range`)."""

    rows: torch.Tensor
    total: int


@dataclass(frozen=True)
class Checkpoint:
    """Replicated tensors in full, sharded ones as this rank's part, and plain JSON values."""

    tensors: Mapping[str, torch.Tensor | ShardedRows]
    values: Mapping[str, Any]


# ------------------------------------------------------------------------------------------------ finding


def folder_of(output: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return output / "checkpoints" / f"step-{step:08d}"


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to its end; `manifest.damage` tells whether it is still intact."""
    return (folder / manifest.FILE).is_file()


def complete_checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    folders = [folder for folder in (output / "checkpoints").glob("step-*") if is_complete(folder)]
    return sorted(folders, key=lambda folder: folder.name, reverse=True)


def newest(output: Path, warn: Callable[[str], None] = warn) -> Path | None:
    """The newest undamaged checkpoint of a run; None if the run has no checkpoint.

    warn: receives a line per damaged checkpoint that is skipped.
    Raises UserError if the run has checkpoints, but all are damaged.
    """
    return _newest(complete_checkpoints(output), manifest.damage, warn)


def newest_on_all_ranks(output: Path, warn: Callable[[str], None]) -> Path | None:
    """`newest`; the ranks share the work of checking. Collective."""

    def damage(folder: Path) -> str:
        rank, world = dist.rank_and_world()
        return next((found for found in dist.gather_objects(manifest.damage(folder, rank, world)) if found), "")

    return _newest(dist.broadcast_object(complete_checkpoints(output)), damage, warn)


def _newest(folders: list[Path], damage: Callable[[Path], str], warn: Callable[[str], None]) -> Path | None:
    for folder in folders:
        found = damage(folder)
        if not found:
            return folder
        warn(f"{folder} is damaged ({found}) and is skipped")
    if folders:
        raise UserError(
            f"{folders[0].parent.parent}: all {len(folders)} checkpoints are damaged, the newest because "
            f"{damage(folders[0])}; restore one from a copy, or set another output= to start again"
        )
    return None


def set_aside_after(output: Path, sound: Path) -> None:
    """Rename the damaged checkpoints after `sound`, so that they neither count towards `keep_last` nor are checked again."""
    for folder in complete_checkpoints(output):
        if folder.name <= sound.name:
            return
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def find(path: str | Path) -> Path:
    """The checkpoint that a path given by the user names: a checkpoint folder, or a run folder (its newest undamaged one).

    Raises UserError if there is none.
    """
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"{folder}: no such run or checkpoint folder")
    if is_complete(folder):
        if found := manifest.damage(folder):
            raise UserError(f"{folder}: the checkpoint is damaged ({found}); use another one of this run")
        return folder
    inside = newest(folder)
    if inside is None:
        raise UserError(f"{folder}: holds no complete checkpoint; give a run's output folder or one of its checkpoints")
    return inside


# ------------------------------------------------------------------------------------------------ reading


def load(folder: Path, is_sharded: Callable[[str], bool]) -> Checkpoint:
    """Read a checkpoint that any number of ranks wrote. Collective.

    is_sharded: whether this run shards the tensor of a name; then only this rank's rows are read.
    """
    values = read_state(folder)
    tensors = _read_tensors(folder, "", is_sharded)
    return Checkpoint(tensors, values)


def read_config(folder: Path) -> Config:
    """The resolved configuration of the run that wrote a checkpoint."""
    try:
        return load_json(folder / CONFIG)
    except UserError as fault:
        newer = _written_by_newer(read_state(folder))
        raise UserError(*(f"{problem}{newer}" for problem in fault.args)) from fault


def read_state(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint."""
    try:
        values = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        advice = "" if is_limit(fault) else "; remove this checkpoint to use the one before"
        raise UserError(f"{folder / STATE}: cannot be read ({fault}){advice}") from fault
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        newer = _written_by_newer(values) if isinstance(values, dict) else ""
        raise UserError(f"{folder}: checkpoint format {found}, this version reads {FORMAT}{newer}")
    return values


def _written_by_newer(state: Mapping[str, Any]) -> str:
    """The cause of an error and its remedy, if a newer version wrote the checkpoint; "" otherwise."""
    found, own = (
        [int(part) for part in re.findall(r"\d{1,9}", str(text))[:3]] for text in (state.get("version", ""), __version__)
    )
    return f" (written by version {state['version']}, this is {__version__}: update this software)" if found > own else ""


def read_tensors(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, in full and without the prefix. Any rank may call it alone."""
    tensors = _read_tensors(folder, prefix, None)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def read_rows(folder: Path, name: str) -> torch.Tensor:
    """This rank's rows of a sharded tensor. Collective."""
    return _read_tensors(folder, name, name.__eq__)[name].rows


def _read_tensors(folder: Path, prefix: str, is_sharded: Callable[[str], bool] | None) -> dict[str, Any]:
    """Collective, unless `is_sharded` is None. Scalars are never sharded."""
    import torch.distributed.checkpoint as dcp  # takes a second
    from torch.distributed.tensor import DTensor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = dcp.HuggingFaceStorageReader(str(folder))
            described: dict[str, Any] = reader.read_metadata().state_dict_metadata
            names = [name for name in described if name.startswith(prefix)]
            in_parts = {name for name in names if is_sharded and described[name].size and is_sharded(name)}
            state = {name: _allocate(described[name], name in in_parts) for name in names}
            dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=is_sharded is None)
    except (dcp.CheckpointException, Exception) as fault:
        advice = "" if is_limit(fault) else "; remove it to use the one before"
        raise UserError(f"{folder}: the checkpoint cannot be read ({cause(fault)}){advice}") from fault
    return {
        name: ShardedRows(value.to_local(), value.shape[0]) if isinstance(value, DTensor) else value
        for name, value in state.items()
    }


def _allocate(described: Any, sharded: bool) -> torch.Tensor:
    shape, dtype = described.size, described.properties.dtype
    if not sharded:
        return torch.empty(shape, dtype=dtype)
    return as_dtensor(torch.empty((dist.shard_range(shape[0]).size, *shape[1:]), dtype=dtype), shape[0])


# ------------------------------------------------------------------------------------------------ reading and writing


def as_dtensor(rows: torch.Tensor, total: int) -> DTensor:
    """This rank's rows as part of a tensor of `total` rows, which DCP can redistribute."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    _, world = dist.rank_and_world()
    shape = torch.Size([total, *rows.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    mesh = init_device_mesh("cpu", (world,))
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def cause(fault: BaseException) -> str:
    """What went wrong on the ranks, without DCP's wrapping."""
    failures = getattr(fault, "failures", None) or {}
    causes = [str(wrapped[0] if isinstance(wrapped, tuple) else wrapped) for wrapped in failures.values()]
    return "; ".join(dict.fromkeys(causes)) or str(fault)
