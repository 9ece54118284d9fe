"""The life of a rank: joining the process group, reporting errors, leaving it, and the process's exit code.

Commands that run on several ranks call `start` in their main function and run it with `run_command`.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before any group exists: its functions keep the default group as a default argument

from utils import program
from utils.errors import FAULT, UserError, explain, print_error, record_for_launcher
from utils.hang import LauncherWatch, Watch
from utils.rendezvous import agree_on_start

_GRACE = timedelta(minutes=1)  # the backend times out only after the watch, which names the missing rank
_REPORTING_TIME = 1.0  # seconds that ranks wait for another to print: the launcher ends all ranks as soon as one has ended

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")  # gloo's, NCCL's words

_store: dist.Store | None = None
_watch: Watch | None = None
_timeout: timedelta | None = None  # of every group; None: PyTorch's
_launcher_watch: LauncherWatch | None = None
_host_groups: list[dist.ProcessGroup] = []


@dataclass(frozen=True)
class World:
    """This process's rank among `size` ranks, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without a process group."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


# ------------------------------------------------------------------------------------------------ joining


def start(timeout_minutes: float = 10.0) -> World:
    """Join the process group that torchrun describes in the environment; without torchrun, form a world of one rank.

    A rank that waits longer than `timeout_minutes` for another ends the run and names that rank (utils/hang.py).
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = choose_device(local_rank, local_size, torch.cuda.device_count())
    if device.type == "cuda":
        try:
            torch.cuda.set_device(device)
        except RuntimeError as fault:  # such as a driver that is too old for this PyTorch
            raise UserError(
                f"{device} cannot be used: {str(fault).splitlines()[0]}; CUDA_VISIBLE_DEVICES= uses the CPU"
            ) from fault
        torch.backends.cudnn.benchmark = True  # all batches have one shape: 8 % faster (docs/RESULTS.md)
    # Collectives on the host (labels, votes) use gloo even if features travel through NCCL.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    global _store, _watch, _launcher_watch, _timeout
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _launcher_watch = LauncherWatch()
    _timeout = timeout = timedelta(minutes=timeout_minutes) + _GRACE
    _store = _store_of_this_start(rank, size, timeout) if "RANK" in os.environ else dist.HashStore()
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=timeout)
    if size > 1:
        _watch = _start_watch(_store, rank, size, 60 * timeout_minutes)
    return World(rank, size, local_rank, local_size, device)


def choose_device(local_rank: int, local_size: int, gpu_count: int) -> torch.device:
    """The device of one process of this machine: its own GPU, or the CPU if there is no GPU.

    Raises UserError if there are GPUs, but fewer than processes.
    """
    if gpu_count == 0:
        return torch.device("cpu")
    if local_size > gpu_count:
        raise UserError(
            f"{local_size} processes were started on a machine with {gpu_count} GPU(s): each needs its own. "
            f"Start at most {gpu_count} (--nproc_per_node={gpu_count}), or hide the GPUs with CUDA_VISIBLE_DEVICES= "
            "to use the CPU; with Slurm, give all GPUs to all tasks (no --gpus-per-task)"
        )
    return torch.device("cuda", local_rank)


def host_group() -> dist.ProcessGroup:
    """Another group of all ranks, on the host, for a thread whose collectives must not mix with the main thread's. Collective."""
    group = dist.new_group(backend="gloo", timeout=_timeout)
    _host_groups.append(group)
    return group


def _store_of_this_start(rank: int, size: int, timeout: timedelta) -> dist.Store:
    shared = next(dist.rendezvous("env://", rank, size, timeout=timeout))[0]
    return dist.PrefixStore(agree_on_start(shared, rank, size, timeout), shared)


# ------------------------------------------------------------------------------------------------ watching


def mark_collective(what: str) -> None:
    """Count a collective that this rank is about to enter, so that a rank that does not arrive can be named (utils/hang.py).

    All ranks call this at the same places: utils/dist.py does so for its own collectives; others, such as DDP's, need a call.
    """
    if _watch is not None:
        _watch.enter(what)


def _start_watch(store: dist.Store, rank: int, size: int, limit: float) -> Watch:
    connection = cast(Any, store).clone()  # the main thread may be waiting in the other connection
    connection.set_timeout(timedelta(seconds=max(5.0, min(60.0, limit))))
    keys = [f"collectives/{number}" for number in range(size)]
    connection.set(keys[rank], "0")
    watch = Watch(
        rank,
        limit,
        publish=lambda count: connection.set(keys[rank], str(count)),
        counts=lambda: [int(value) for value in connection.multi_get(keys)],
    )
    watch.start()
    return watch


# ------------------------------------------------------------------------------------------------ leaving


def run_command(main: Callable[[], object]) -> None:
    """Run the main function of a command that calls `start`, then leave the process group.

    If it raises, the process ends at once, with an exit code of utils/errors.py. Process groups are not released then: that
    would wait for collectives that other ranks, which may have ended, have not entered.
    """
    try:
        program.raise_first()
        main()
        sys.stdout.flush()  # its reader may have ended
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - reported here
        program.end_at_once()
        problem = explain(error) or _out_of_memory(error) or _lost_rank(error)
        record_for_launcher(f"{type(error).__name__}: {error}" if problem is None else f"error: {problem}")
        if problem is None:
            traceback.print_exc()
        elif _claim_report("out of memory" if isinstance(error, torch.OutOfMemoryError) else str(problem)):
            print_error(problem)
        _end(FAULT if problem is None else problem.code)
    program.end_at_once()
    stop()  # now that the local variables of `main` no longer keep a group alive


def stop() -> None:
    """Leave the process group after finished work. No thread of a process group or of the watch remains.

    `destroy_process_group` only drops PyTorch's references. A group joins its threads when its last reference goes, and
    DistributedDataParallel, often part of a reference cycle, holds one. A thread that frees the tensors of its last collective
    while the interpreter shuts down aborts the process ("terminate called without an active exception").
    """
    global _store, _watch, _launcher_watch
    for thread in (_watch, _launcher_watch):
        if thread is not None:
            thread.stop()
    _watch = _launcher_watch = None
    groups = [dist.group.WORLD, *_host_groups] if dist.is_initialized() else []
    _host_groups.clear()
    if groups:
        dist.destroy_process_group()
    gc.collect()
    # These must be the last references. Dropping them waits for the threads without holding the interpreter's lock, which
    # the threads need to free tensors; a DistributedDataParallel that drops the last one would hold the lock and deadlock.
    groups.clear()
    _store = None


def _end(code: int) -> None:
    """End this process; if there are process groups, without shutting down the interpreter (see `stop`)."""
    if not dist.is_initialized():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader may have ended
            stream.flush()
    os._exit(code)


def _out_of_memory(error: BaseException) -> UserError | None:
    if not isinstance(error, torch.OutOfMemoryError):  # of a GPU; the details differ between ranks
        return None
    advice = "lower batch_size, or set precision=bf16 or sample_rate below 1"
    return UserError(f"the GPU's memory is full; {advice} ({str(error).splitlines()[0]})")


def _lost_rank(error: BaseException) -> UserError | None:
    """The error as one for the user if it is due to another rank that has ended, which is where the reason is."""
    if rank_and_world()[1] == 1 or not isinstance(error, RuntimeError) or not any(sign in str(error) for sign in _LOST):
        return None
    time.sleep(_REPORTING_TIME)  # a launcher that sees the other rank's end first blames that one, and ends this one
    rank, _ = rank_and_world()
    return UserError(f"rank {rank}: another rank has ended; start the run again to continue from its last checkpoint", code=FAULT)


def _claim_report(text: str) -> bool:
    """Whether this rank prints an error that several ranks report with the same text: True on one of them.

    Before the process group exists, that is the first rank of each machine.
    """
    if _store is None:
        is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    else:
        try:
            is_first = _store.add(f"reported/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
        except (RuntimeError, ConnectionError):  # the process that holds the store has ended
            return True
    if not is_first:
        time.sleep(_REPORTING_TIME)
    return is_first
