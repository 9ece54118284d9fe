"""Write checkpoints (their layout is in store.py), all ranks together, at once or while training continues.

In the background, the state is first copied to the host. A thread per rank then writes the rank's part and computes its
checksums. It communicates through a process group of its own, so that its collectives never mix with those of training.
When every rank has written its part, all ranks publish the checkpoint together.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from recognition import __version__
from recognition.checkpoints import manifest
from recognition.checkpoints.store import (
    BEST,
    CONFIG,
    FORMAT,
    STATE,
    Checkpoint,
    ShardedRows,
    as_dtensor,
    cause,
    complete_checkpoints,
    folder_of,
    is_complete,
)
from utils import dist
from utils.config import Config
from utils.files import cannot_write, sync

_PARTIAL = ".partial-"
_ADVICE = "the checkpoint before it is intact; free some space, make the folder writable or set another output="


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written. keep: steps whose checkpoints are kept in any case."""

    final: Path
    partial: Path
    document: dict[str, Any]
    keep: frozenset[int]
    part: _Part


class CheckpointWriter:
    """`save` starts a checkpoint and, without `async_save`, finishes it; `finish` finishes the one that was started.

    With `async_save`, training continues in between. One checkpoint is written at a time.
    """

    def __init__(self, output: Path, config: Config):
        self.output, self.config = output, config
        self._group = dist.host_group()
        self._pending: _Pending | None = None

    @property
    def is_writing(self) -> bool:
        """Whether this rank is still writing its part of a checkpoint."""
        return self._pending is not None and self._pending.part.is_alive()

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint to `finish`; the same on all ranks."""
        return self._pending is not None

    def save(self, step: int, checkpoint: Checkpoint, keep: Iterable[int] = ()) -> None:
        """Write a checkpoint; then remove all but the last `keep_last` and those of the steps `keep`. Collective.

        UserError on all ranks if any rank cannot write; the earlier checkpoints are then intact.
        """
        self.finish()
        final = folder_of(self.output, step)
        partial = final.with_name(f"{_PARTIAL}{final.name}")
        dist.on_first_rank(lambda: _prepare(partial))
        tensors = {name: _for_storage(value, copy=self.config.async_save) for name, value in checkpoint.tensors.items()}
        sharded = sorted(name for name, value in checkpoint.tensors.items() if isinstance(value, ShardedRows))
        document = {"format": FORMAT, "version": __version__, "step": step, "sharded": sharded, **checkpoint.values}
        part = _Part(tensors, partial, self._group)
        self._pending = _Pending(final, partial, document, frozenset(keep), part)
        if self.config.async_save:
            part.start()
        else:
            part.run()
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that was started, if there is one, and make it the newest. Collective."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        if self.config.async_save:
            pending.part.join()
        if pending.part.bug is not None:
            raise pending.part.bug
        parts = dist.gather_objects((pending.part.fault, pending.part.entries))
        if faults := [fault for fault, _ in parts if fault]:
            dist.on_first_rank(lambda: shutil.rmtree(pending.partial, ignore_errors=True))
            raise cannot_write(pending.final, faults[0], _ADVICE)
        entries = {name: entry for _, part in parts for name, entry in part.items()}
        dist.on_first_rank(lambda: _publish(pending, entries, self.config))

    def mark_best(self, step: int) -> None:
        """Point `checkpoints/best` to the checkpoint of a step, if it exists. Collective."""
        dist.on_first_rank(lambda: _link_best(folder_of(self.output, step)))


class _Part(threading.Thread):
    """Writes this rank's part. fault: an error that the user can fix; bug: any other exception."""

    def __init__(self, tensors: dict[str, torch.Tensor], partial: Path, group: Any):
        super().__init__(name="checkpoint", daemon=True)  # daemon: after an error elsewhere the process ends without waiting
        self._tensors, self._partial, self._group = tensors, partial, group
        self.entries: dict[str, manifest.Entry] = {}
        self.fault = ""
        self.bug: BaseException | None = None
        self._gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run(self) -> None:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)  # a new thread starts at GPU 0, where the storage would open a context
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the storage warns at every call that it is new
                storage = HuggingFaceStorageWriter(str(self._partial), save_distributed=True)
                dcp.save(self._tensors, storage_writer=storage, process_group=self._group)
            mine = f"shard-{dist.rank_and_world()[0] + 1:05d}-*"
            self.entries = manifest.entries_of(self._partial.glob(mine))
        except (dcp.CheckpointException, OSError) as fault:  # DCP raises its exception on all ranks if one fails
            self.fault = cause(fault)
        except Exception as bug:  # noqa: BLE001 - raised again by `finish`
            self.bug = bug
        self._tensors = {}


def _for_storage(value: torch.Tensor | ShardedRows, copy: bool) -> torch.Tensor:
    """The tensor on the host. copy: never the memory that training will change."""
    tensor = value if isinstance(value, torch.Tensor) else value.rows
    stored = tensor.detach().cpu().contiguous()
    if copy and stored.data_ptr() == tensor.data_ptr():
        stored = stored.clone()
    return stored if isinstance(value, torch.Tensor) else as_dtensor(stored, value.total)


def _prepare(partial: Path) -> None:
    """Create the temporary folder; remove those that an interrupted save or removal left."""
    try:
        for leftover in partial.parent.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as fault:
        raise cannot_write(partial, fault, _ADVICE) from fault


def _publish(pending: _Pending, entries: dict[str, manifest.Entry], config: Config) -> None:
    """Complete a checkpoint, give it its name and remove those beyond `keep_last`."""
    partial, final = pending.partial, pending.final
    try:
        (partial / CONFIG).write_text(config.as_json())
        (partial / STATE).write_text(json.dumps(pending.document, indent=1) + "\n")
        own = manifest.entries_of([partial / CONFIG, partial / STATE])
        manifest.write(partial, {**entries, **own})
        if final.exists():  # it is damaged or has no manifest
            final.rename(final.with_name(f"{_PARTIAL}replaced-{final.name}"))
        partial.rename(final)
        sync(final.parent)
    except OSError as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise cannot_write(final, fault, _ADVICE) from fault
    _remove_old(final.parent.parent, config.keep_last, pending.keep)


def _remove_old(output: Path, keep_last: int, keep: frozenset[int]) -> None:
    """Remove old checkpoints, each renamed first, so that an interrupted removal leaves nothing that looks like one."""
    kept = {folder_of(output, step) for step in keep}
    for old in complete_checkpoints(output)[keep_last:]:
        if old not in kept:
            waste = old.with_name(f"{_PARTIAL}removed-{old.name}")
            old.rename(waste)
            shutil.rmtree(waste, ignore_errors=True)


def _link_best(folder: Path) -> None:
    if not is_complete(folder):
        return
    link = folder.with_name(f".{BEST}-{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(folder.with_name(BEST))
