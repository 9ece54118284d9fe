"""Checkpoints: the complete state of a run in a folder, through torch.distributed.checkpoint with safetensors as storage.

    OUTPUT/checkpoints/step-00000120/
        shard-*.safetensors   tensors; sharded ones in parts, readable by any number of ranks
        config.json           the run's resolved configuration
        state.json            counters, names of the sharded tensors
        manifest.json         size and checksum of each file above; written last
    OUTPUT/checkpoints/best   link to the best one, where `keep_best` names a metric

A checkpoint is written under a temporary name and renamed when it is whole, so a crash or a full disk leaves the one
before it in place; one that was damaged later is found by its checksums and passed over. Nothing in it is ever unpickled:
tensors are safetensors, the rest is JSON. Writing is in writer.py.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from recognition.checkpoints import manifest
from utils import dist
from utils.config import Config, load_json
from utils.errors import UserError

FORMAT = 2
STATE, CONFIG, BEST = "state.json", "config.json", "best"


# What DCP and safetensors raise on a file that is none; which one depends on where the damage lies.
_UNREADABLE = (
    dcp.CheckpointException, SafetensorError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, OverflowError, EOFError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class ShardedRows:
    """This rank's contiguous rows of a tensor with `total` rows (cut as `utils.dist.shard_range` does)."""

    rows: torch.Tensor
    total: int


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: replicated tensors whole, sharded ones as this rank's part, and plain JSON values."""

    tensors: Mapping[str, torch.Tensor | ShardedRows]
    values: Mapping[str, Any]


def folder_of(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}"


def is_complete(folder: Path) -> bool:
    """Whether a folder was written to its end. Whether it still is what was written, `manifest.damage` says."""
    return manifest.exists(folder)


def complete_checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run folder, the newest first."""
    folders = [folder for folder in (output / "checkpoints").glob("step-*") if is_complete(folder)]
    return sorted(folders, key=lambda folder: folder.name, reverse=True)


def newest(output: Path, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest undamaged checkpoint of a run folder, or None where there is none at all. Each damaged one that was passed
    over is told to `say` (default: standard error).

    Raises UserError where there are checkpoints, but none is sound.
    """
    return _newest(output, say or _warn, manifest.damage)


def newest_on_all_ranks(output: Path, say: Callable[[str], None]) -> Path | None:
    """`newest` for all ranks together, which divide the checking. Collective."""

    def damage(folder: Path) -> str:
        rank, world = dist.rank_and_world()
        return next((found for found in dist.gather_objects(manifest.damage(folder, rank, world)) if found), "")

    return _newest(output, say, damage, dist.broadcast_object(complete_checkpoints(output)))


def _newest(
    output: Path, say: Callable[[str], None], damage: Callable[[Path], str], folders: list[Path] | None = None
) -> Path | None:
    folders = complete_checkpoints(output) if folders is None else folders
    for folder in folders:
        found = damage(folder)
        if not found:
            return folder
        say(f"warning: {folder} is damaged ({found}) and is not used; the checkpoint before it is")
    if folders:
        raise UserError(
            f"{output}: all {len(folders)} checkpoints are damaged, the newest because {damage(folders[0])}; restore one from a "
            "copy, or choose another output= to begin anew"
        )
    return None


def set_aside_after(output: Path, sound: Path) -> None:
    """Renames the checkpoints after `sound`, which are damaged, so that they neither count among those that are kept nor
    are taken for the newest again."""
    for folder in complete_checkpoints(output):
        if folder.name <= sound.name:
            return
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def find(path: str | Path) -> Path:
    """The checkpoint that a user means by a run folder (its newest sound one) or a checkpoint folder. UserError: none."""
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


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ reading


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint written by any number of ranks, all ranks together; sharded tensors as this rank's part."""
    values = read_state(folder)
    tensors = read_tensors(folder, sharded=values["sharded"])
    return Checkpoint(tensors, values)


def read_state(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint."""
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(f"{folder / STATE}: cannot be read ({fault}); remove this checkpoint to use the one before") from fault
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(f"{folder}: checkpoint format {found}, this version reads {FORMAT}")
    return values


def read_tensors(folder: Path, prefix: str = "", sharded: list[str] | None = None) -> dict[str, Any]:
    """The tensors whose names begin with `prefix`: whole, or `ShardedRows` for those named in `sharded`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = HuggingFaceStorageReader(str(folder))
            described = reader.read_metadata().state_dict_metadata
            names = [name for name in described if name.startswith(prefix)]
            state = {name: _room_for(described[name], name in (sharded or ())) for name in names}
            dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)))
    except _UNREADABLE as fault:
        raise UserError(
            f"{folder}: the checkpoint cannot be read ({cause(fault)}); remove it to go on from the one before"
        ) from fault
    return {
        name: ShardedRows(value.to_local(), value.shape[0]) if isinstance(value, DTensor) else value
        for name, value in state.items()
    }


def _room_for(described: Any, sharded: bool) -> torch.Tensor:
    shape, dtype = described.size, described.properties.dtype
    if not sharded:
        return torch.empty(shape, dtype=dtype)
    return as_dtensor(torch.empty((dist.shard_range(shape[0]).size, *shape[1:]), dtype=dtype), shape[0])


def read_config(folder: Path) -> Config:
    """The resolved configuration of the run that wrote a checkpoint."""
    return load_json(folder / CONFIG)


# ------------------------------------------------------------------------------------------------ both


def as_dtensor(rows: torch.Tensor, total: int) -> DTensor:
    """This rank's rows as part of a tensor of `total` rows that DCP knows how to divide."""
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
