"""Margin softmax over classes that are sharded over the ranks (partial FC's layout, An et al., CVPR 2022 workshops,
https://arxiv.org/abs/2203.15565; QGFace eqs. 6-10 for the loss).

    L_cls = sum_i a_i (log(exp(t_i) + exp(n_i)) - t_i),   t_i = margin(cos(h_i, w_{y_i})),
    n_i = log sum_{j != y_i} exp(s cos(h_i, w_j))

with a_i the weight of sample i (1 / N where it is selected, 0 where not). Only n_i needs all classes, and it is the
chunked primitive; the margin sees N target cosines (CurricularFace alone also has a say about the others). MagFace adds a
regulariser g of the feature's norm to every sample's term.

Shapes: N gathered features, M of them computed, C classes in all, K = classes of this rank, S sampled, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from losses.log_sum_exp import ChunkPlan, HeadPrecision, KeyShard, LogSumExpOptions, ShardedLogSumExp
from losses.margins import Margin
from losses.sampling import ClassSampler
from losses.selection import Selection
from utils.dist import ShardRange, replicated, shard_range
from utils.randomness import seed_for

_INIT_BLOCK = 4096  # classes that share one random stream, so that a rank draws only about what it owns
_INIT_STD = 0.01  # arcface_torch's


def initial_rows(total: int, dim: int, shard: ShardRange, seed: int) -> torch.Tensor:
    """Rows shard.start..shard.stop of a [total, dim] normal matrix that depends on the seed alone, not on the ranks."""
    rows = torch.empty(shard.size, dim)
    for first in range(shard.start - shard.start % _INIT_BLOCK, shard.stop, _INIT_BLOCK):
        generator = torch.Generator().manual_seed(seed_for(seed, first // _INIT_BLOCK))
        block = torch.empty(min(_INIT_BLOCK, total - first), dim).normal_(0, _INIT_STD, generator=generator)
        low, high = max(first, shard.start), min(first + len(block), shard.stop)
        rows[low - shard.start : high - shard.start] = block[low - first : high - first]
    return rows


class _ClassKeys(KeyShard):
    """The classifier's rows as keys; a query's own class is excluded, and with inter-class filtering also every class that
    is nearer than a threshold, which is taken for the same person under another label."""

    def __init__(self, weight_KD, own_N: torch.Tensor, visited_S: torch.Tensor | None, filtered_above: float):
        self.weight_KD, self.own_N, self.visited_S, self.filtered_above = weight_KD, own_N, visited_S, filtered_above
        self.place_N = own_N if visited_S is None else torch.searchsorted(visited_S, own_N.clamp_min(0))
        self.place_N = torch.where(own_N >= 0, self.place_N, -1)

    def __len__(self) -> int:
        return self.weight_KD.shape[0] if self.visited_S is None else self.visited_S.shape[0]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        if self.visited_S is None:
            return self.weight_KD[start:stop]
        return self.weight_KD.index_select(0, self.visited_S[start:stop])

    def exclude_(self, logits_NC: torch.Tensor, start: int, stop: int) -> None:
        if self.filtered_above < torch.inf:
            logits_NC.masked_fill_(logits_NC > self.filtered_above, -torch.inf)
        place_N1 = self.place_N[:, None]
        inside_N1 = (place_N1 >= start) & (place_N1 < stop)
        column_N1 = (place_N1 - start).clamp(0, stop - start - 1)
        logits_NC.scatter_(1, column_N1, logits_NC.gather(1, column_N1).masked_fill(inside_N1, -torch.inf))

    def own_row(self) -> torch.Tensor:
        return self.own_N

    def visited_rows(self) -> torch.Tensor | None:
        return self.visited_S


@dataclass(frozen=True)
class HeadOptions:
    """What a classifier may do besides the plain softmax.

    sample_rate: part of the classes that a step compares with, besides those of the batch (`losses.sampling`).
    filter_above: inter-class filtering: negatives with a larger cosine are left out of the sum (-inf); 0 for none
    (An et al., section 3.3, which writes cosine 0; here they are really gone). plan: memory of the walk over the classes;
    None chooses by device. precision: of the matrix products.
    """

    sample_rate: float = 1.0
    filter_above: float = 0.0
    plan: ChunkPlan | None = None
    precision: HeadPrecision = "fp32"


class ShardedSoftmax(nn.Module):
    """The classifier: this rank's rows of the [C, D] weight, and the margin softmax over all of them.

    The weight is drawn from (seed, class), so the same seed gives the same classifier for any number of ranks. With
    `sample_rate` < 1 its gradient is a sparse tensor of the sampled rows (`recognition.optimiser` leaves the others alone),
    and `draws` counts the samples drawn: it is state.
    """

    def __init__(self, num_classes: int, embedding_size: int, margin: Margin, seed: int = 0, options: HeadOptions | None = None):
        super().__init__()
        self.num_classes, self.margin, self.draws = num_classes, margin, 0
        self.options = options or HeadOptions()
        self.sum_options = LogSumExpOptions(margin.scale, margin.cosine_limit, self.options.plan, self.options.precision)
        self.shard = shard_range(num_classes)
        self.sampler = ClassSampler(self.shard, self.options.sample_rate, seed) if self.options.sample_rate < 1 else None
        self.weight = nn.Parameter(initial_rows(num_classes, embedding_size, self.shard, seed))

    def forward(
        self, unit_ND: torch.Tensor, label_N: torch.Tensor, quality_N: torch.Tensor, share_N: torch.Tensor,
        norm_N: torch.Tensor | None = None, host_label_N: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The loss of the whole batch, a float32 scalar, equal on all ranks.

        unit_ND: normalised gathered features. label_N: int64 in [0, C). quality_N: z-hat, for the margin.
        share_N: a_i, the weight of each sample in the sum. norm_N: raw norms with their gradient, for margins that learn
        from them. host_label_N: the labels on the CPU, where classes are sampled. Gradients: see `utils.dist` for who
        holds which part.
        """
        visited_S = self._sample(host_label_N, unit_ND.device)
        # Every rank computes in full what the norms do to the loss, unlike what the cosines do.
        norm_N = unit_ND.new_ones(len(unit_ND)) if norm_N is None else replicated(norm_N)
        needed = Selection(share_N, self.options.plan)
        unit_MD, label_M, quality_M, share_M, norm_M = needed.take(unit_ND, label_N, quality_N, share_N, norm_N)
        own_M = torch.where(self.shard.owns(label_M), label_M - self.shard.start, -1)
        keys = _ClassKeys(self.weight.detach(), own_M, visited_S, self._filtered_above())
        margin, limit = self.margin, self.margin.cosine_limit
        rule_of = (lambda cosine_M: margin.rule_for_negatives(cosine_M, share_M)) if margin.touches_negatives else None
        others_M, cosine_M = ShardedLogSumExp.apply(unit_MD, self.weight, keys, self.sum_options, rule_of)
        target_logit_M = margin.target_logit(cosine_M.clamp(-limit, limit), quality_M, norm_M)
        loss_M = torch.logaddexp(others_M, target_logit_M) - target_logit_M
        return needed.sum((loss_M + margin.regulariser(norm_M)) * share_M)

    def _sample(self, host_label_N: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        if self.sampler is None:
            return None
        if host_label_N is None:
            raise ValueError("sampling of classes needs host_label_N")
        self.draws += 1
        return self.sampler.rows(self.draws - 1, host_label_N, device)

    def _filtered_above(self) -> float:
        return self.margin.scale * self.options.filter_above if self.options.filter_above > 0 else torch.inf

    def rows_of(self, label_K: torch.Tensor) -> torch.Tensor:
        """The current classifier rows of labels that this rank owns, without gradient: float32 [K, D]."""
        return self.weight.detach()[label_K - self.shard.start]
