"""Writes checkpoints (store.py describes them), all ranks together, at once or while training goes on.

In the background, the state is first copied on the host; a thread of each rank then writes its part and sums it through a
process group of its own, so that it never comes between the collectives of training. All ranks publish the checkpoint
together, once every one of them has written.
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
from utils.errors import UserError
from utils.files import sync

_PARTIAL = ".partial-"


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    final: Path
    partial: Path
    document: dict[str, Any]
    keep: frozenset[int]
    work: _Part


class CheckpointWriter:
    """`save` begins a checkpoint and, unless in the background, ends it; `finish` ends one that was begun.

    background: write while training goes on. One checkpoint is written at a time.
    """

    def __init__(self, output: Path, config: Config, background: bool):
        self.output, self.config, self.background = output, config, background
        self._group = dist.host_group()
        self._pending: _Pending | None = None

    @property
    def is_writing(self) -> bool:
        """Whether this rank's part of a checkpoint is still on its way."""
        return self._pending is not None and self._pending.work.is_alive()

    @property
    def has_begun(self) -> bool:
        """Whether there is something to `finish`; the same on all ranks."""
        return self._pending is not None

    def save(self, step: int, checkpoint: Checkpoint, keep: Iterable[int] = ()) -> Path:
        """Writes a checkpoint and then removes all but the last `keep_last` and those of the steps `keep`. Returns its
        folder. Collective. UserError on all ranks where it cannot be written on any; the ones before it are intact then."""
        self.finish()
        final = folder_of(self.output, step)
        partial = final.with_name(f"{_PARTIAL}{final.name}")
        dist.on_first_rank(lambda: _make_room(partial))
        state = {name: _for_storage(value, self.background) for name, value in checkpoint.tensors.items()}
        sharded = sorted(name for name, value in checkpoint.tensors.items() if isinstance(value, ShardedRows))
        document = {"format": FORMAT, "step": step, "sharded": sharded, **checkpoint.values}
        work = _Part(state, partial, self._group)
        self._pending = _Pending(final, partial, document, frozenset(keep), work)
        if self.background:
            work.start()
        else:
            work.run()
            self.finish()
        return final

    def finish(self) -> None:
        """Waits for the checkpoint that was begun, if there is one, and makes it the newest. Collective."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        if self.background:
            pending.work.join()
        if pending.work.bug is not None:
            raise pending.work.bug
        parts = dist.gather_objects((pending.work.fault, pending.work.entries))
        if faults := [fault for fault, _ in parts if fault]:
            dist.on_first_rank(lambda: shutil.rmtree(pending.partial, ignore_errors=True))
            raise UserError(
                f"{pending.final}: cannot be written ({faults[0]}); the checkpoint before it is intact: free some space or set "
                "output= to another disk, and start again"
            )
        entries = {name: entry for _, part in parts for name, entry in part.items()}
        dist.on_first_rank(lambda: _publish(pending, entries, self.config))

    def mark_best(self, step: int) -> None:
        """Lets `checkpoints/best` lead to the checkpoint of a step, if that is there. Collective."""
        dist.on_first_rank(lambda: _link_best(folder_of(self.output, step)))


class _Part(threading.Thread):
    """This rank's part of the writing. `fault`: what the user can mend; `bug`: anything else."""

    def __init__(self, state: dict[str, Any], partial: Path, group: Any):
        super().__init__(name="checkpoint", daemon=True)  # daemon: a fault elsewhere ends the process without waiting
        self._state, self._partial, self._group = state, partial, group
        self.entries: dict[str, manifest.Entry] = {}
        self.fault = ""
        self.bug: BaseException | None = None

    def run(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the storage announces itself as new at every call
                storage = HuggingFaceStorageWriter(str(self._partial), save_distributed=True)
                dcp.save(self._state, storage_writer=storage, process_group=self._group)
            mine = f"shard-{dist.rank_and_world()[0] + 1:05d}-*"
            self.entries = manifest.entries_of(self._partial.glob(mine))
        except (dcp.CheckpointException, OSError) as fault:  # the first is raised on all ranks if it happened on one
            self.fault = cause(fault)
        except Exception as bug:  # noqa: BLE001 - carried to the thread that finishes, and raised there
            self.bug = bug
        self._state = {}


def _for_storage(value: torch.Tensor | ShardedRows, copy: bool) -> torch.Tensor:
    """On the host; with `copy`, also apart from what training will change."""
    tensor = value if isinstance(value, torch.Tensor) else value.rows
    stored = tensor.detach().cpu().contiguous()
    if copy and stored.data_ptr() == tensor.data_ptr():
        stored = stored.clone()
    return stored if isinstance(value, torch.Tensor) else as_dtensor(stored, value.total)


def _make_room(partial: Path) -> None:
    try:
        for leftover in partial.parent.glob(f"{_PARTIAL}*"):  # of a save or a removal that was cut short
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as fault:
        raise UserError(
            f"{partial}: cannot be written ({fault.strerror}); the checkpoint before it is intact: make the folder writable, "
            "or set another output="
        ) from fault


def _publish(pending: _Pending, entries: dict[str, manifest.Entry], config: Config) -> None:
    """Makes a written checkpoint the newest one, and forgets those beyond `keep_last`."""
    partial, final = pending.partial, pending.final
    try:
        config.save(partial / CONFIG)
        (partial / STATE).write_text(json.dumps(pending.document, indent=1) + "\n")
        own = manifest.entries_of([partial / CONFIG, partial / STATE])
        manifest.write(partial, {**entries, **own})
        if final.exists():  # a damaged one, or one without manifest: aside until the new one is in its place
            final.rename(final.with_name(f"{_PARTIAL}replaced-{final.name}"))
        partial.rename(final)
        sync(final.parent)
    except OSError as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({fault.strerror}); the checkpoint before it is intact") from fault
    _forget(final.parent.parent, config.keep_last, pending.keep)


def _forget(output: Path, keep_last: int, keep: frozenset[int]) -> None:
    """Removes old checkpoints. Each is renamed first, so that a removal cut short leaves nothing that looks like one."""
    kept = {folder_of(output, step) for step in keep}
    for old in complete_checkpoints(output)[keep_last:]:
        if old not in kept:
            waste = old.with_name(f"{_PARTIAL}removed-{old.name}")
            old.rename(waste)
            shutil.rmtree(waste, ignore_errors=True)


def _link_best(folder: Path) -> None:
    if not is_complete(folder):
        return
    fresh = folder.with_name(f".{BEST}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name)
    fresh.replace(folder.with_name(BEST))
