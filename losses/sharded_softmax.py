"""Margin softmax over classes that are sharded over the ranks (partial FC's layout, An et al., CVPR 2022 workshops,
https://arxiv.org/abs/2203.15565; QGFace eqs. 6-10 for the loss).

    L_cls = sum_i a_i (log(exp(t_i) + exp(n_i)) - t_i),   t_i = margin(cos(h_i, w_{y_i})),
    n_i = log sum_{j != y_i} exp(s cos(h_i, w_j))

with a_i the weight of sample i (1 / N where it is selected, 0 where not). Only n_i needs all classes, and it is the
chunked primitive; the margin sees N target cosines and nothing else.

Shapes: N gathered features, C classes in all, K = classes of this rank, D embedding.
"""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import nn

from losses.chunked import ChunkPlan, KeyShard, ShardedLogSumExp
from losses.margins import Margin
from utils.dist import ShardRange, shard_range

_INIT_BLOCK = 4096  # classes that share one random stream, so that a rank draws only about what it owns
_INIT_STD = 0.01  # arcface_torch's


def initial_rows(total: int, dim: int, shard: ShardRange, seed: int) -> torch.Tensor:
    """Rows shard.start..shard.stop of a [total, dim] normal matrix that depends on the seed alone, not on the ranks."""
    rows = torch.empty(shard.size, dim)
    for first in range(shard.start - shard.start % _INIT_BLOCK, shard.stop, _INIT_BLOCK):
        generator = torch.Generator().manual_seed(_block_seed(seed, first // _INIT_BLOCK))
        block = torch.empty(min(_INIT_BLOCK, total - first), dim).normal_(0, _INIT_STD, generator=generator)
        low, high = max(first, shard.start), min(first + len(block), shard.stop)
        rows[low - shard.start : high - shard.start] = block[low - first : high - first]
    return rows


def _block_seed(seed: int, block: int) -> int:
    """32 bits, which is all that the generator takes; different for all blocks of a seed (the factor is odd)."""
    return (zlib.crc32(str(seed).encode()) + block * 0x9E3779B1) & 0xFFFFFFFF


class _ClassKeys(KeyShard):
    """The classifier's rows as keys; a query's own class is excluded."""

    def __init__(self, weight_KD: torch.Tensor, target_N: torch.Tensor):
        self.weight_KD, self.target_N = weight_KD, target_N

    def __len__(self) -> int:
        return self.weight_KD.shape[0]

    def unit_rows(self, start: int, stop: int) -> torch.Tensor:
        return F.normalize(self.weight_KD[start:stop])

    def exclude_(self, logits_NC: torch.Tensor, start: int, stop: int) -> None:
        inside_N1 = ((self.target_N >= start) & (self.target_N < stop))[:, None]
        column_N1 = (self.target_N - start).clamp(0, stop - start - 1)[:, None]
        logits_NC.scatter_(1, column_N1, logits_NC.gather(1, column_N1).masked_fill(inside_N1, -torch.inf))


class ShardedSoftmax(nn.Module):
    """The classifier: this rank's rows of the [C, D] weight, and the margin softmax over all of them.

    The weight is drawn from (seed, class), so the same seed gives the same classifier for any number of ranks.
    """

    def __init__(self, num_classes: int, embedding_size: int, margin: Margin, seed: int = 0, plan: ChunkPlan | None = None):
        super().__init__()
        self.num_classes, self.margin = num_classes, margin
        self.plan = plan or ChunkPlan()
        self.shard = shard_range(num_classes)
        self.weight = nn.Parameter(initial_rows(num_classes, embedding_size, self.shard, seed))

    def forward(
        self, unit_ND: torch.Tensor, label_N: torch.Tensor, quality_N: torch.Tensor, share_N: torch.Tensor
    ) -> torch.Tensor:
        """The loss of the whole batch, a float32 scalar, equal on all ranks.

        unit_ND: normalised gathered features. label_N: int64 in [0, C). quality_N: z-hat, for the margin.
        share_N: a_i, the weight of each sample in the sum. Gradients: see `utils.dist` for who holds which part.
        """
        target_N = torch.where(self.shard.owns(label_N), label_N - self.shard.start, -1)
        keys = _ClassKeys(self.weight.detach(), target_N)
        others_N, cosine_N = ShardedLogSumExp.apply(
            unit_ND, self.weight, target_N, keys, self.margin.scale, self.margin.cosine_limit, self.plan
        )
        limit = self.margin.cosine_limit
        target_logit_N = self.margin.target_logit(cosine_N.clamp(-limit, limit), quality_N)
        return ((torch.logaddexp(others_N, target_logit_N) - target_logit_N) * share_N).sum()

    def rows_of(self, label_K: torch.Tensor) -> torch.Tensor:
        """The current classifier rows of labels that this rank owns, without gradient: float32 [K, D]."""
        return self.weight.detach()[label_K - self.shard.start]
