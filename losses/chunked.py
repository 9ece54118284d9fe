"""The one expensive primitive: log-sum-exp of scaled cosines over keys that are sharded over the ranks.

    n_i = log sum_j exp(s cos(f_i, k_j)),   j over the keys of all ranks, less those that are excluded for i

Both the softmax over C classes and the contrastive loss over Q queue entries are this quantity plus arithmetic on
vectors of length N. Here the N x K logits never exist at once: keys are visited in chunks, and a chunk's logits are
thrown away after use and computed again in the backward pass, unless they fit in `keep_bytes`.

Gradient: d n_i / d cos_ij = s exp(s cos_ij - n_i), zero where the cosine is clamped. Backward returns this rank's PART of
the gradient with respect to the queries (over its own keys; `utils.dist.gather_rows` sums the parts) and the whole
gradient with respect to its own keys.

Shapes: N queries, K keys of this rank, c keys of a chunk, D embedding. All arithmetic is float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.dist import gather_stack


@dataclass(frozen=True)
class ChunkPlan:
    """How much memory the primitive may use beyond its results.

    chunk_elements: logits of a chunk (N x c); keep_bytes: chunks kept from forward to backward instead of recomputed.
    """

    chunk_elements: int = 1 << 20
    keep_bytes: int = 64 << 20

    def bounds(self, queries: int, keys: int) -> list[tuple[int, int]]:
        step = max(64, self.chunk_elements // max(queries, 1))
        return [(start, min(start + step, keys)) for start in range(0, keys, step)]


class KeyShard(ABC):
    """This rank's keys, as the primitive sees them."""

    @abstractmethod
    def __len__(self) -> int:
        """K, the number of keys of this rank."""

    @abstractmethod
    def unit_rows(self, start: int, stop: int) -> torch.Tensor:
        """Keys start..stop, normalised: float32 [c, D]."""

    @abstractmethod
    def exclude_(self, logits_NC: torch.Tensor, start: int, stop: int) -> None:
        """Sets the logits of excluded (query, key) pairs of this chunk to -inf, in place."""


def _chunk_logits(
    scaled_ND: torch.Tensor, shard: KeyShard, start: int, stop: int, limit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    unit_CD = shard.unit_rows(start, stop)
    logits_NC = scaled_ND @ unit_CD.T
    logits_NC.clamp_(-limit, limit)
    shard.exclude_(logits_NC, start, stop)
    return logits_NC, unit_CD


def _probability_(logits_NC: torch.Tensor, total_N: torch.Tensor, grad_N: torch.Tensor, limit: float) -> torch.Tensor:
    """Turns a chunk's logits into d(sum grad_i n_i)/d logits, in place."""
    clamped_NC = logits_NC.abs() >= limit
    logits_NC.sub_(total_N[:, None]).exp_().mul_(grad_N[:, None])
    return logits_NC.masked_fill_(clamped_NC, 0.0)


class ShardedLogSumExp(torch.autograd.Function):
    """`apply(unit_ND, weight_KD, target_N, shard, scale, cosine_limit, plan)` -> (n_N, target_cosine_N).

    unit_ND: normalised queries, equal on all ranks. weight_KD: the raw rows behind `shard.unit_rows` when they learn,
    else None. target_N: int64, each query's own key as an index into this rank's keys, -1 where another rank holds it;
    None where queries have no key of their own (then target_cosine_N is zero). The target cosine is not clamped.
    A query with no key on any rank gives n = -inf and no gradient.
    """

    @staticmethod
    def forward(ctx, unit_ND, weight_KD, target_N, shard: KeyShard, scale: float, cosine_limit: float, plan: ChunkPlan):
        scaled_ND = unit_ND * scale
        limit = scale * cosine_limit
        running_N = unit_ND.new_full((unit_ND.shape[0],), -torch.inf)
        kept: list[torch.Tensor | None] = []
        keep_left = plan.keep_bytes
        for start, stop in plan.bounds(unit_ND.shape[0], len(shard)):
            logits_NC, _ = _chunk_logits(scaled_ND, shard, start, stop, limit)
            running_N = torch.logaddexp(running_N, logits_NC.logsumexp(dim=1))
            keep_left -= logits_NC.nbytes
            if keep_left >= 0:
                kept.append(logits_NC)
        cosine_N = _target_cosine(unit_ND, weight_KD, target_N)
        parts_W2N = gather_stack(torch.stack([running_N, cosine_N]))  # one collective for both
        total_N, cosine_N = parts_W2N[:, 0].logsumexp(dim=0), parts_W2N[:, 1].sum(dim=0)
        ctx.save_for_backward(unit_ND, weight_KD, target_N, total_N)
        ctx.shard, ctx.scale, ctx.limit, ctx.plan, ctx.kept = shard, scale, limit, plan, kept
        return total_N, cosine_N

    @staticmethod
    def backward(ctx, grad_N, grad_cosine_N):
        unit_ND, weight_KD, target_N, total_N = ctx.saved_tensors
        shard, limit = ctx.shard, ctx.limit
        scaled_ND = unit_ND * ctx.scale
        total_N = torch.where(total_N.isinf(), 0.0, total_N)  # no key at all: every logit is -inf, its exp is 0
        grad_unit_ND = torch.zeros_like(unit_ND)
        grad_weight_KD = torch.empty_like(weight_KD) if ctx.needs_input_grad[1] else None
        for number, (start, stop) in enumerate(ctx.plan.bounds(unit_ND.shape[0], len(shard))):
            if number < len(ctx.kept):
                logits_NC, unit_CD = ctx.kept[number], shard.unit_rows(start, stop)
                ctx.kept[number] = None
            else:
                logits_NC, unit_CD = _chunk_logits(scaled_ND, shard, start, stop, limit)
            grad_logits_NC = _probability_(logits_NC, total_N, grad_N, limit)
            grad_unit_ND.addmm_(grad_logits_NC, unit_CD, alpha=ctx.scale)
            if grad_weight_KD is not None:
                grad_weight_KD[start:stop] = _through_normalisation(
                    grad_logits_NC.T @ scaled_ND, unit_CD, weight_KD[start:stop]
                )
        if target_N is not None and len(shard) > 0:
            _add_target_gradients(grad_unit_ND, grad_weight_KD, unit_ND, weight_KD, target_N, grad_cosine_N)
        return grad_unit_ND, grad_weight_KD, None, None, None, None, None


def _target_cosine(unit_ND, weight_KD, target_N) -> torch.Tensor:
    """Cosines with the targets that this rank holds, zero elsewhere: float32 [N]."""
    if target_N is None or weight_KD.shape[0] == 0:
        return unit_ND.new_zeros(unit_ND.shape[0])
    own_ND = F.normalize(weight_KD[target_N.clamp_min(0)])
    return (unit_ND * own_ND).sum(dim=1) * (target_N >= 0)


def _add_target_gradients(grad_unit_ND, grad_weight_KD, unit_ND, weight_KD, target_N, grad_cosine_N) -> None:
    """Adds the gradients through the target cosines that this rank holds, in place."""
    row_N = target_N.clamp_min(0)
    raw_ND = weight_KD[row_N]
    own_ND = F.normalize(raw_ND)
    grad_N1 = (grad_cosine_N * (target_N >= 0))[:, None]
    grad_unit_ND.addcmul_(grad_N1, own_ND)
    if grad_weight_KD is not None:
        grad_weight_KD.index_add_(0, row_N, _through_normalisation(grad_N1 * unit_ND, own_ND, raw_ND))


def _through_normalisation(grad_unit: torch.Tensor, unit: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
    """Gradient with respect to raw rows from that with respect to their normalised form, [n, D] each:
    (g - (g . u) u) / ||raw||."""
    along = (grad_unit * unit).sum(dim=1, keepdim=True)
    return (grad_unit - along * unit) / raw.norm(dim=1, keepdim=True).clamp_min(1e-12)
