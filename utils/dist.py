"""Collectives: the one module, besides the sharded losses, that calls torch.distributed.

There is one code path for 1..N ranks. A plain `python train.py` is a world of one rank with a process group of its own,
so every collective below is always defined and a world of one is not a special case anywhere.

Conventions, stated here and nowhere else:

- A step's batch is the concatenation of the ranks' batches in rank order, so rank r's rows are r*B..(r+1)*B of G = W*B.
- Losses are GLOBAL (divided by global counts) and computed from gathered features, identically on all ranks; each rank's
  backward yields its part of the gradient with respect to the gathered features, and `gather_rows` sums the parts.
- DistributedDataParallel then AVERAGES the encoder's gradients over the ranks, while the true gradient is their sum.
  `gather_rows` therefore multiplies by W. Parameters that are sharded (the classifier) hold true gradients already.
- A term that every rank computes in full (not a part of) enters through `replicated`, which divides its gradient by W.

Shapes: B images on this rank, W ranks, G = W*B gathered, V views, D embedding.
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
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before any group exists: its functions keep the default group as a default argument

from utils.errors import FAULT, INTERRUPTED, USER_MISTAKE, UserError, print_error
from utils.hang import Watch
from utils.rendezvous import agree_on_round

# torch 2.13 renamed these two; 2.11 and 2.12 know them by the old names only.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Result = TypeVar("Result")

_REPORTING_TIME = 1.0  # seconds before the other ranks end: the launcher ends all as soon as one has ended
_GRACE = timedelta(minutes=1)  # the backend's own time-out comes after the watch has had its say, which names the rank
_store: dist.Store | None = None
_watch: Watch | None = None
_further_groups: list[dist.ProcessGroup] = []


@dataclass(frozen=True)
class World:
    """Who this process is: its rank among `size` processes, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def choose_device(local_rank: int, local_size: int, gpu_count: int) -> torch.device:
    """The device of one process of this machine: a GPU of its own, or the CPU where there is no GPU.

    Raises UserError where there are GPUs but fewer than processes.
    """
    if gpu_count == 0:
        return torch.device("cpu")
    if local_size > gpu_count:
        raise UserError(
            f"{local_size} processes were started on a machine with {gpu_count} GPU(s): each needs its own. "
            f"Start at most {gpu_count} (--nproc_per_node={gpu_count}), or hide the GPUs with CUDA_VISIBLE_DEVICES= "
            "to use the CPU"
        )
    return torch.device("cuda", local_rank)


def start(timeout_minutes: float = 10.0) -> World:
    """Joins the process group that torchrun describes in the environment; without torchrun, makes a world of one.

    A rank that waits longer than `timeout_minutes` for another one ends the run and names it (utils/hang.py).
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = choose_device(local_rank, local_size, torch.cuda.device_count())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Host-side collectives (labels, agreement) go through gloo even where features travel through NCCL.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_minutes) + _GRACE
    global _store, _watch
    _store = _meet(rank, size, timeout) if "RANK" in os.environ else dist.HashStore()
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=timeout)
    if size > 1:
        _watch = _start_watch(_store, rank, size, 60 * timeout_minutes)
    return World(rank, size, local_rank, local_size, device)


def _meet(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The store in which the ranks of this start, and only they, meet."""
    shared = next(dist.rendezvous("env://", rank, size, timeout=timeout))[0]
    return dist.PrefixStore(agree_on_round(shared, rank, size, timeout), shared)


def _start_watch(store: dist.Store, rank: int, size: int, limit: float) -> Watch:
    line = cast(Any, store).clone()  # a connection of its own: the main thread may sit waiting in the other one
    line.set_timeout(timedelta(seconds=max(5.0, min(60.0, limit))))
    keys = [f"collectives/{number}" for number in range(size)]
    line.set(keys[rank], "0")
    watch = Watch(
        rank, limit, lambda count: line.set(keys[rank], str(count)), lambda: [int(value) for value in line.multi_get(keys)]
    )
    watch.start()
    return watch


def mark_collective(what: str) -> None:
    """This rank comes to a place where ranks meet that is not one of this module's own collectives, such as DDP's. To be
    called by all ranks alike: whoever has not come is then known (utils/hang.py)."""
    if _watch is not None:
        _watch.entered(what)


def stop() -> None:
    """Leaves the process group after finished work. Afterwards no thread of the watch or of a process group is left.

    `destroy_process_group` only drops PyTorch's own references. A group ends, and joins its threads, with its last reference, and
    DistributedDataParallel holds one; it is usually part of a reference cycle, as are objects of ours that hold it. A thread
    that is still there when the interpreter shuts down, and only then gets to free the tensors of its last collective,
    aborts the process.
    """
    global _store, _watch
    if _watch is not None:
        _watch.stop()
        _watch = None
    groups = [dist.group.WORLD, *_further_groups] if dist.is_initialized() else []
    _further_groups.clear()
    if groups:
        dist.destroy_process_group()
    gc.collect()
    # The last references must be these. Their release waits for the threads without holding the interpreter's lock, which
    # the threads need to free tensors; the release of a DistributedDataParallel holds it.
    groups.clear()
    _store = None


def run_command(main: Callable[[], object]) -> None:
    """Runs the main function of a command that calls `start`, then `stop`.

    If it raises, the process ends at once, with an exit code of utils/errors.py. Process groups are not released then: that
    would wait for collectives that the other ranks, which may be gone, have not entered.
    """
    try:
        main()
    except UserError as error:
        if _claim_report(str(error)):
            print_error(error)
        _end(USER_MISTAKE)
    except KeyboardInterrupt:
        if _claim_report("interrupted"):
            print("error: interrupted", file=sys.stderr)
        _end(INTERRUPTED)
    except Exception:  # noqa: BLE001 - reported here, with its traceback
        traceback.print_exc()
        _end(FAULT)
    stop()  # here `main` no longer holds anything that holds a group


def _end(code: int) -> None:
    """Ends this process. If there are process groups, without shutting down the interpreter, see `stop`."""
    if not dist.is_initialized():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader may be gone
            stream.flush()
    os._exit(code)


def _claim_report(text: str) -> bool:
    """True on one of the ranks that call this with the same text, so that an error that all ranks meet is printed once.

    Before the process group exists, it is True on the first rank of each machine: the machine's ranks read the same files.
    """
    if _store is None:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            return True
        time.sleep(_REPORTING_TIME)
        return False
    key = f"reported/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        is_first = _store.add(key, 1) == 1
    except (RuntimeError, ConnectionError):  # the store has gone with the process that holds it
        return True
    if not is_first:
        time.sleep(_REPORTING_TIME)
    return is_first


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) where no process group has been started."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


# ------------------------------------------------------------------------------------------------ shards of a list


@dataclass(frozen=True)
class ShardRange:
    """The contiguous part [start, stop) of `total` rows that one rank owns.

    Sizes are those of `torch.chunk` and of DTensor's `Shard(0)`: ceil(total/W) rows each, the last ranks fewer or none.
    """

    total: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def owns(self, index: torch.Tensor) -> torch.Tensor:
        """Boolean mask of the entries of `index` that lie in this shard."""
        return (index >= self.start) & (index < self.stop)


def shard_range(total: int, rank: int | None = None, world: int | None = None) -> ShardRange:
    """The rows of a list of `total` that a rank (default: this one) owns."""
    here, size = rank_and_world()
    rank, world = (here if rank is None else rank), (size if world is None else world)
    step = -(-total // world)
    return ShardRange(total, min(rank * step, total), min((rank + 1) * step, total))


# ------------------------------------------------------------------------------------------------ collectives


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_VBD: torch.Tensor) -> torch.Tensor:
        views, batch, dim = rows_VBD.shape
        world = dist.get_world_size()
        ctx.sizes = (world, views, batch, dim)
        mark_collective("gathering of features")
        flat = rows_VBD.new_empty(world * views * batch, dim)
        _all_gather_single(flat, rows_VBD.contiguous().view(-1, dim))
        return flat.view(world, views, batch, dim).transpose(0, 1).reshape(views, world * batch, dim)

    @staticmethod
    def backward(ctx, grad_VGD: torch.Tensor) -> torch.Tensor:
        world, views, batch, dim = ctx.sizes
        parts = grad_VGD.view(views, world, batch, dim).transpose(0, 1).reshape(world * views * batch, dim)
        mark_collective("backward, reduce-scatter of feature gradients")
        mine = parts.new_empty(views * batch, dim)
        _reduce_scatter_single(mine, parts, op=dist.ReduceOp.SUM)
        return mine.mul_(world).view(views, batch, dim)  # times W: DDP will average (see the head of this file)


def gather_rows(rows_VBD: torch.Tensor) -> torch.Tensor:
    """All ranks' features: [V, B, D] -> [V, G, D], differentiable. One all-gather forward, one reduce-scatter backward,
    for all views together. B must be the same on all ranks."""
    return _GatherRows.apply(rows_VBD)


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad / dist.get_world_size()


def replicated(value: torch.Tensor) -> torch.Tensor:
    """Marks a tensor that feeds a computation which every rank repeats in full: identity forward, gradient / W backward,
    so that the sum over the ranks in `gather_rows` counts that computation once."""
    return _Replicated.apply(value)


def gather_labels(labels_B: torch.Tensor) -> torch.Tensor:
    """All ranks' labels on the host: int64 [B] -> [G]. Stays off the GPU, so that nobody waits for it."""
    return gather_labels_and_requests(labels_B, 0)[0]


def gather_labels_and_requests(labels_B: torch.Tensor, request: int) -> tuple[torch.Tensor, int]:
    """`gather_labels`, and in the same collective the ranks' requests: a number of bits each, joined by OR, the same on all."""
    mark_collective("gathering of labels")
    mine = torch.cat([labels_B, labels_B.new_tensor([request])])
    rows_WX = mine.new_empty(dist.get_world_size(), mine.numel())
    _all_gather_single(rows_WX.view(-1), mine)
    requests = 0
    for bits in rows_WX[:, -1].tolist():
        requests |= bits
    return rows_WX[:, :-1].reshape(-1), requests


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the ranks, in place; not differentiable."""
    mark_collective("sum over ranks")
    dist.all_reduce(value, op=dist.ReduceOp.SUM)
    return value


def gather_stack(value: torch.Tensor) -> torch.Tensor:
    """All ranks' tensors of equal shape stacked: [...] -> [W, ...]; not differentiable."""
    mark_collective("gathering of tensors")
    stacked = value.new_empty(dist.get_world_size(), *value.shape)
    _all_gather_single(stacked.view(-1), value.contiguous().view(-1))
    return stacked


def gather_uneven_rows(rows: torch.Tensor) -> torch.Tensor:
    """All ranks' rows in rank order; the number of rows may differ by rank, [n_r, ...] -> [sum n_r, ...]."""
    rank, world = rank_and_world()
    if world == 1:
        return rows
    counts = gather_stack(torch.tensor([rows.shape[0]])).flatten().tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: counts[rank]] = rows
    stacked = gather_stack(padded)
    return torch.cat([stacked[r, :n] for r, n in enumerate(counts)])


def exchange_rows(rows: torch.Tensor, send_counts: list[int]) -> torch.Tensor:
    """Sends consecutive blocks of rows to ranks 0..W-1 (`send_counts[r]` rows to rank r) and returns the rows received,
    in the order of the senders."""
    mark_collective("exchange of rows")
    receive_counts = torch.empty(len(send_counts), dtype=torch.int64)
    dist.all_to_all_single(receive_counts, torch.tensor(send_counts))
    received = rows.new_empty(int(receive_counts.sum()), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), receive_counts.tolist(), send_counts)
    return received


def any_rank(flag: bool) -> bool:
    """True on all ranks if `flag` is true on any."""
    mark_collective("vote")
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def broadcast_object(value):
    """Rank 0's value (plain Python data) on all ranks. Without a process group, the value itself."""
    if not dist.is_initialized():
        return value
    mark_collective("waiting for what rank 0 does")
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value) -> list:
    """All ranks' values (plain Python data) in rank order, on all ranks. Without a process group, this value alone."""
    if not dist.is_initialized():
        return [value]
    mark_collective("gathering of values")
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(action: Callable[[], Result]) -> Result:
    """Runs `action` on rank 0 while the other ranks wait; returns its value (plain Python data) on all ranks.

    A UserError or OSError of the action is raised on all ranks, as UserError.
    """
    value, fault = None, None
    if rank_and_world()[0] == 0:
        try:
            value = action()
        except (UserError, OSError) as error:
            fault = str(error)
    value, fault = broadcast_object((value, fault))
    if fault is not None:
        raise UserError(fault)
    return value


@torch.no_grad()
def broadcast_buffers(module: torch.nn.Module) -> None:
    """Gives all ranks rank 0's buffers. DDP does this before a forward pass; checkpoints and evaluation need it in between."""
    mark_collective("sharing of buffers")
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)


def host_group() -> dist.ProcessGroup:
    """A further group of all ranks, on the host, for a thread that must not come between the others' collectives. Collective."""
    group = dist.new_group(backend="gloo")
    _further_groups.append(group)
    return group


def barrier() -> None:
    """Waits for all ranks. Through the host, so that it also orders file operations."""
    mark_collective("barrier")
    dist.all_reduce(torch.zeros(1))
