"""Checkpoints: the complete state of a run in a folder, through torch.distributed.checkpoint with safetensors as storage.

    OUTPUT/checkpoints/step-00000120/
        shard-*.safetensors   tensors; sharded ones in parts, readable by any number of ranks
        config.json           the run's resolved configuration
        state.json            counters, names of the sharded tensors; written last

A checkpoint is written under a temporary name and renamed when it is whole, so a crash or a full disk leaves the one
before it in place. Nothing in it is ever unpickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from utils import dist
from utils.config import Config, load_json
from utils.errors import UserError

FORMAT = 1
STATE, CONFIG = "state.json", "config.json"


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
    return (folder / STATE).is_file()


def newest(output: Path) -> Path | None:
    """The complete checkpoint of the largest step in a run folder, or None."""
    complete = [folder for folder in (output / "checkpoints").glob("step-*") if is_complete(folder)]
    return max(complete, default=None, key=lambda folder: folder.name)


# ------------------------------------------------------------------------------------------------ writing


def save(output: Path, step: int, checkpoint: Checkpoint, config: Config, keep_last: int) -> Path:
    """Writes a checkpoint, all ranks together, and removes all but the last `keep_last`. Returns its folder."""
    final = folder_of(output, step)
    partial = final.with_name(f".partial-{final.name}")
    dist.on_first_rank(lambda: _make_room(partial))
    state = {name: _for_storage(value) for name, value in checkpoint.tensors.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the storage announces itself as new at every call
            dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    except (dcp.CheckpointException, OSError) as fault:  # raised on all ranks if it happened on one
        if dist.rank_and_world()[0] == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({_cause(fault)}); the checkpoint before it is intact") from fault
    dist.on_first_rank(lambda: _publish(partial, final, step, checkpoint, config, keep_last))
    return final


def _make_room(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as fault:
        raise UserError(f"{partial}: cannot be created ({fault.strerror}); set output= to a writable folder") from fault


def _publish(partial: Path, final: Path, step: int, checkpoint: Checkpoint, config: Config, keep_last: int) -> None:
    """Makes a written checkpoint the newest one, and forgets those beyond `keep_last`."""
    sharded = sorted(name for name, value in checkpoint.tensors.items() if isinstance(value, ShardedRows))
    config.save(partial / CONFIG)
    document = {"format": FORMAT, "step": step, "sharded": sharded, **checkpoint.values}
    _write_durably(partial / STATE, json.dumps(document, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync_folder(final.parent)
    for old in sorted(folder for folder in final.parent.glob("step-*") if is_complete(folder))[:-keep_last]:
        shutil.rmtree(old)


def _for_storage(value: torch.Tensor | ShardedRows) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    return _as_dtensor(value.rows.detach().cpu().contiguous(), value.total)


def _as_dtensor(rows: torch.Tensor, total: int) -> DTensor:
    _, world = dist.rank_and_world()
    shape = torch.Size([total, *rows.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    mesh = init_device_mesh("cpu", (world,))
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _cause(fault: BaseException) -> str:
    failures = getattr(fault, "failures", None) or {}
    causes = [str(wrapped[0] if isinstance(wrapped, tuple) else wrapped) for wrapped in failures.values()]
    return "; ".join(dict.fromkeys(causes)) or str(fault)


def _write_durably(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ reading


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint written by any number of ranks, all ranks together; sharded tensors as this rank's part."""
    values = read_state(folder)
    tensors = read_tensors(folder, sharded=values["sharded"])
    return Checkpoint(tensors, values)


def read_state(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint."""
    try:
        values = json.loads((folder / STATE).read_text())
    except (OSError, json.JSONDecodeError) as fault:
        raise UserError(f"{folder / STATE}: cannot be read ({fault}); remove this checkpoint to use the one before") from fault
    if values.get("format") != FORMAT:
        raise UserError(f"{folder}: checkpoint format {values.get('format')}, this version reads {FORMAT}")
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
    except (dcp.CheckpointException, OSError, RuntimeError, ValueError) as fault:
        raise UserError(
            f"{folder}: the checkpoint cannot be read ({_cause(fault)}); remove it to go on from the one before"
        ) from fault
    return {
        name: ShardedRows(value.to_local(), value.shape[0]) if isinstance(value, DTensor) else value
        for name, value in state.items()
    }


def _room_for(described: Any, sharded: bool) -> torch.Tensor:
    shape, dtype = described.size, described.properties.dtype
    if not sharded:
        return torch.empty(shape, dtype=dtype)
    return _as_dtensor(torch.empty((dist.shard_range(shape[0]).size, *shape[1:]), dtype=dtype), shape[0])


def read_config(folder: Path) -> Config:
    """The resolved configuration of the run that wrote a checkpoint."""
    return load_json(folder / CONFIG)
