"""Collectives. Only this module and utils/process_group.py call torch.distributed.

There is one code path for 1..N ranks. A plain `python train.py` is a world of one rank with its own process group, so every
collective below is always defined and no caller treats a world of one as a special case.

Conventions, stated only here:

- A step's batch is the concatenation of the ranks' batches in rank order: rank r's rows are r*B..(r+1)*B of G = W*B.
- Losses are GLOBAL (divided by global counts) and computed from gathered features, identically on all ranks. Each rank's
  backward pass yields its part of the gradient with respect to the gathered features, and `gather_rows` sums the parts.
- DistributedDataParallel then AVERAGES the encoder's gradients over the ranks, while the true gradient is their sum.
  `gather_rows` therefore multiplies by W. Sharded parameters (the classifier) hold true gradients already.
- A term that every rank computes in full, not in part, enters through `replicated`, which divides its gradient by W.

Shapes: B images on this rank, W ranks, G = W*B gathered, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from utils.errors import UserError, explain
from utils.process_group import World, choose_device, host_group, mark_collective, rank_and_world, run_command, start, stop

__all__ = ["World", "choose_device", "host_group", "run_command", "start", "stop"]  # for callers that need both modules

# torch 2.13 renamed these two functions; 2.11 and 2.12 have the old names only.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Result = TypeVar("Result")


# ------------------------------------------------------------------------------------------------ shards


@dataclass(frozen=True)
class ShardRange:
    """The contiguous part [start, stop) of `total` rows that one rank owns.

    Sizes as in `torch.chunk` and DTensor's `Shard(0)`: ceil(total/W) rows per rank; the last ranks have fewer or none.
    """

    total: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def owns(self, index: torch.Tensor) -> torch.Tensor:
        """Which entries of `index` are in this shard: a boolean mask."""
        return (index >= self.start) & (index < self.stop)


def shard_range(total: int, rank: int | None = None, world: int | None = None) -> ShardRange:
    """The rows, of `total`, that a rank (default: this one) owns."""
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
        mark_collective("all-gather of features")
        flat = rows_VBD.new_empty(world * views * batch, dim)
        _all_gather_single(flat, rows_VBD.contiguous().view(-1, dim))
        return flat.view(world, views, batch, dim).transpose(0, 1).reshape(views, world * batch, dim)

    @staticmethod
    def backward(ctx, grad_VGD: torch.Tensor) -> torch.Tensor:
        world, views, batch, dim = ctx.sizes
        parts = grad_VGD.view(views, world, batch, dim).transpose(0, 1).reshape(world * views * batch, dim)
        mark_collective("reduce-scatter of feature gradients (backward)")
        mine = parts.new_empty(views * batch, dim)
        _reduce_scatter_single(mine, parts, op=dist.ReduceOp.SUM)
        return mine.mul_(world).view(views, batch, dim)  # times W: DDP will average (see the head of this file)


def gather_rows(rows_VBD: torch.Tensor) -> torch.Tensor:
    """Gather all ranks' features, differentiably: [V, B, D] -> [V, G, D]. B must be the same on all ranks.

    One all-gather in the forward pass and one reduce-scatter in the backward pass, for all views together.
    """
    return _GatherRows.apply(rows_VBD)


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad / dist.get_world_size()


def replicated(value: torch.Tensor) -> torch.Tensor:
    """Mark a tensor that enters a computation which every rank repeats in full.

    Identity in the forward pass; the backward pass divides the gradient by W, so that the sum over the ranks in `gather_rows`
    counts the computation once.
    """
    return _Replicated.apply(value)


def gather_labels(labels_B: torch.Tensor) -> torch.Tensor:
    """Gather all ranks' labels: int64 [B] -> [G]. On the host, so that neither host nor GPU waits for the other."""
    return gather_labels_and_requests(labels_B, 0)[0]


def gather_labels_and_requests(labels_B: torch.Tensor, request: int) -> tuple[torch.Tensor, int]:
    """`gather_labels`, and in the same collective the bitwise OR of the ranks' requests. Both are the same on all ranks."""
    mark_collective("all-gather of labels")
    mine = torch.cat([labels_B, labels_B.new_tensor([request])])
    rows_WX = mine.new_empty(dist.get_world_size(), mine.numel())
    _all_gather_single(rows_WX.view(-1), mine)
    requests = 0
    for bits in rows_WX[:, -1].tolist():
        requests |= bits
    return rows_WX[:, :-1].reshape(-1), requests


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the ranks, in place; not differentiable."""
    mark_collective("sum over ranks")
    dist.all_reduce(value, op=dist.ReduceOp.SUM)
    return value


def gather_stack(value: torch.Tensor) -> torch.Tensor:
    """Stack all ranks' tensors, which have the same shape: [...] -> [W, ...]; not differentiable."""
    mark_collective("all-gather of tensors")
    stacked = value.new_empty(dist.get_world_size(), *value.shape)
    _all_gather_single(stacked.view(-1), value.contiguous().view(-1))
    return stacked


def gather_uneven_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate all ranks' rows in rank order, [n_r, ...] -> [sum n_r, ...]. The number of rows may differ between ranks."""
    rank, world = rank_and_world()
    if world == 1:
        return rows
    counts = gather_stack(torch.tensor([rows.shape[0]])).flatten().tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: counts[rank]] = rows
    stacked = gather_stack(padded)
    return torch.cat([stacked[r, :n] for r, n in enumerate(counts)])


def exchange_rows(rows: torch.Tensor, send_counts: list[int]) -> torch.Tensor:
    """Send consecutive blocks of rows to the ranks, `send_counts[r]` rows to rank r; return the received rows in rank order."""
    mark_collective("exchange of rows")
    receive_counts = torch.empty(len(send_counts), dtype=torch.int64)
    dist.all_to_all_single(receive_counts, torch.tensor(send_counts))
    received = rows.new_empty(int(receive_counts.sum()), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), receive_counts.tolist(), send_counts)
    return received


def any_rank(flag: bool) -> bool:
    """True on all ranks if `flag` is true on any rank."""
    mark_collective("vote")
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def broadcast_object(value):
    """Return rank 0's value (plain Python data) on all ranks. Without a process group, return the value itself."""
    if not dist.is_initialized():
        return value
    mark_collective("wait for rank 0")
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value) -> list:
    """Return all ranks' values (plain Python data) in rank order. Without a process group, return this value alone."""
    if not dist.is_initialized():
        return [value]
    mark_collective("all-gather of values")
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 while the other ranks wait; return its value (plain Python data) on all ranks.

    If the action raises UserError or OSError, all ranks raise UserError.
    """
    value: Result | None = None
    problem: UserError | None = None
    if rank_and_world()[0] == 0:
        try:
            value = action()
        except UserError as error:
            problem = error
        except OSError as error:
            problem = explain(error) or UserError(str(error))
    value, problem = broadcast_object((value, problem))
    if problem is not None:
        raise problem
    return value


@torch.no_grad()
def broadcast_buffers(module: torch.nn.Module) -> None:
    """Copy rank 0's buffers to all ranks. DDP does so before a forward pass; checkpoints and evaluation need it in between."""
    mark_collective("broadcast of buffers")
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for all ranks. On the host, so that it also orders file operations."""
    mark_collective("barrier")
    dist.all_reduce(torch.zeros(1))
