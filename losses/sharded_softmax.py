"""Margin softmax over classes that are sharded over the ranks (the layout of partial FC: An et al., CVPR 2022 workshops,
https://arxiv.org/abs/2203.15565; the loss: QGFace eqs. 6-10).

    L_cls = sum_i a_i (log(exp(t_i) + exp(n_i)) - t_i),   t_i = margin(cos(h_i, w_{y_i})),
    n_i = log sum_{j != y_i} exp(s cos(h_i, w_j))

a_i is the weight of sample i: 1 / N if it is selected, else 0. Only n_i involves all classes (`losses.log_sum_exp`). A margin
sees N target cosines; CurricularFace alone changes the others' logits too, and MagFace adds a regulariser of the norm.

Shapes: N gathered features, M of them computed, C classes in all, K = classes of this rank, S sampled, c keys of a chunk,
D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from losses.log_sum_exp import ChunkPlan, KeyShard, LogSumExpOptions, ShardedLogSumExp, StreamedGradient
from losses.margins import Margin
from losses.possibly_same import PossiblySame
from losses.products import HeadPrecision
from losses.reused_memory import ReusedMemory
from losses.sampling import ClassSampler
from losses.selection import Selection
from utils.dist import ShardRange, replicated, shard_range
from utils.randomness import seed_for

_INIT_BLOCK = 4096  # classes per generator, so that a rank draws little more than what it owns
INIT_STD = 0.01  # of each number; arcface_torch's


def initial_rows(total: int, dim: int, shard: ShardRange, seed: int) -> torch.Tensor:
    """Rows shard.start..shard.stop of a [total, dim] normal matrix that depends on the seed alone, not on the ranks."""
    rows = torch.empty(shard.size, dim)
    for first in range(shard.start - shard.start % _INIT_BLOCK, shard.stop, _INIT_BLOCK):
        generator = torch.Generator().manual_seed(seed_for(seed, first // _INIT_BLOCK))
        block = torch.empty(min(_INIT_BLOCK, total - first), dim).normal_(0, INIT_STD, generator=generator)
        low, high = max(first, shard.start), min(first + len(block), shard.stop)
        rows[low - shard.start : high - shard.start] = block[low - first : high - first]
    return rows


@dataclass(frozen=True)
class HeadOptions:
    """Options of the classifier besides its margin.

    sample_rate: fraction of the classes, in [0, 1], that a step compares with, in addition to those of the batch
    (`losses.sampling`). filter_above: inter-class filtering of negatives with a larger cosine; 0 for none (An et al., section
    3.3). filtered: "dropped" leaves them out of the sum; "zeroed" sets their cosines to the constant 0, as An et al. do, so that
    each counts as exp(0), without gradient. plan, precision: see `losses.log_sum_exp`. gradient: "stored" in the weight's `grad`;
    "streamed": computed chunk by chunk while the optimiser applies it (`streamed_gradient`), which needs no memory for it.
    """

    sample_rate: float = 1.0
    filter_above: float = 0.0
    plan: ChunkPlan | None = None
    precision: HeadPrecision = "fp32"
    filtered: Literal["dropped", "zeroed"] = "dropped"
    gradient: Literal["stored", "streamed"] = "stored"


def streamed_gradient(weight: nn.Parameter) -> StreamedGradient | None:
    """The gradient that a backward pass left for the optimiser, if it is streamed."""
    return getattr(weight, "streamed_gradient", None)


class ShardedSoftmax(nn.Module):
    """The classifier: this rank's rows of the float32 [C, D] weight, and the margin softmax over all rows.

    The initial weight is drawn per class from the seed, so it does not depend on the number of ranks. If `sample_rate` < 1, its
    gradient is a sparse tensor of the sampled rows, and the optimiser must leave the other rows alone (`recognition.optimiser`);
    `draws`, the number of samples drawn so far, is state. possibly_same: tells which classes a sample's sum leaves out. Raises
    ValueError for an unknown precision.

    >>> import torch
    >>> from losses.margins.arcface import ArcFace
    >>> from utils import dist
    >>> world = dist.start()
    >>> head = ShardedSoftmax(num_classes=10, embedding_size=4, margin=ArcFace(margin=0.5, scale=8.0))
    >>> unit, label = torch.eye(4), torch.arange(4)
    >>> loss = head(unit, label, quality_N=torch.zeros(4), share_N=torch.full((4,), 1 / 4))
    >>> loss.backward()
    >>> f"{loss.item():.2f}", tuple(head.weight.grad.shape)
    ('10.78', (10, 4))
    >>> dist.stop()
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: Margin,
        seed: int = 0,
        options: HeadOptions | None = None,
        possibly_same: PossiblySame | None = None,
    ):
        super().__init__()
        self.possibly_same = possibly_same
        self.num_classes, self.margin, self.draws = num_classes, margin, 0
        self.options = options or HeadOptions()
        self.sum_options = LogSumExpOptions(margin.scale, margin.cosine_limit, self.options.plan, self.options.precision)
        self.shard = shard_range(num_classes)
        if self.options.sample_rate < 1 and self.options.gradient == "streamed":
            raise ValueError("the gradient of sampled classes is small, and cannot be streamed")
        self.sampler = ClassSampler(self.shard, self.options.sample_rate, seed) if self.options.sample_rate < 1 else None
        self.weight = nn.Parameter(initial_rows(num_classes, embedding_size, self.shard, seed))
        self._memory = ReusedMemory()

    def forward(
        self,
        unit_ND: torch.Tensor,
        label_N: torch.Tensor,
        quality_N: torch.Tensor,
        share_N: torch.Tensor,
        norm_N: torch.Tensor | None = None,
        host_label_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of the whole batch: a float32 scalar, equal on all ranks. `utils.dist` explains who holds which gradient.

        unit_ND: normalised gathered features, float32. label_N: int64 in [0, C). quality_N: z-hat, for the margin. share_N: a_i,
        float32. norm_N: norms of the raw features, with gradient, for margins that use them. host_label_N: the labels on the
        CPU; raises ValueError if they are missing and classes are sampled.
        """
        visited_S = self._sample(host_label_N, unit_ND.device)
        # Every rank computes the norms' part of the loss in full, unlike the cosines'.
        norm_N = unit_ND.new_ones(len(unit_ND)) if norm_N is None else replicated(norm_N)
        needed = Selection(share_N, self.options.plan)
        unit_MD, label_M, quality_M, share_M, norm_M = needed.take(unit_ND, label_N, quality_N, share_N, norm_N)
        own_M = torch.where(self.shard.owns(label_M), label_M - self.shard.start, -1)
        zeroed = self.options.filtered == "zeroed"
        possible = None if self.possibly_same is None else _Possible(self.possibly_same, label_M, self.shard.start)
        keys = _ClassKeys(self.weight.detach(), own_M, visited_S, self._filtered_above(), zeroed, possible, self._memory)
        margin, limit = self.margin, self.margin.cosine_limit
        rule_of = (lambda cosine_M: margin.rule_for_negatives(cosine_M, share_M)) if margin.touches_negatives else None
        sink = self._stream if self.options.gradient == "streamed" else None
        others_M, cosine_M = ShardedLogSumExp.apply(unit_MD, self.weight, keys, self.sum_options, rule_of, sink)
        target_logit_M = margin.target_logit(cosine_M.clamp(-limit, limit), quality_M, norm_M)
        loss_M = torch.logaddexp(others_M, target_logit_M) - target_logit_M
        return needed.sum((loss_M + margin.regulariser(norm_M)) * share_M)

    def _sample(self, host_label_N: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        """This step's sampled rows of the shard, int64 [S]; None for all."""
        if self.sampler is None:
            return None
        if host_label_N is None:
            raise ValueError("host_label_N is missing: sampling of classes needs the labels on the CPU")
        self.draws += 1
        return self.sampler.rows(self.draws - 1, host_label_N, device)

    def _filtered_above(self) -> float:
        """The logit above which negatives are filtered."""
        return self.margin.scale * self.options.filter_above if self.options.filter_above > 0 else torch.inf

    def _stream(self, gradient: StreamedGradient) -> None:
        """Keep the weight's gradient for the optimiser. Raises RuntimeError for a second backward pass before it is applied."""
        if streamed_gradient(self.weight) is not None:
            raise RuntimeError(
                "a streamed gradient holds one backward pass: apply it, or use gradient='stored' to add up several"
            )
        self.weight.streamed_gradient = gradient  # type: ignore[attr-defined]

    def rows_of(self, label_K: torch.Tensor) -> torch.Tensor:
        """The current rows of labels that this rank owns, int64 [n], without gradient: float32 [n, D]."""
        return self.weight.detach()[label_K - self.shard.start]


@dataclass(frozen=True)
class _Possible:
    """The classes that may be the same person as a query's. first_class: of this rank."""

    relation: PossiblySame
    label_N: torch.Tensor
    first_class: int

    def excluded(self, row_c: torch.Tensor) -> torch.Tensor:
        """Which of these rows of the shard, int64 [c], are no negatives for which queries: bool [N, c]."""
        return self.relation.excluded(self.label_N, self.first_class + row_c)


class _ClassKeys(KeyShard):
    """The classifier's rows as keys. Excluded are each query's own class; classes that are `possible`, the same person under
    another label; and, with inter-class filtering, every class whose logit is above a threshold: presumably the same person under
    another label. zeroed: filtered classes count as exp(0)."""

    def __init__(
        self,
        weight_KD,
        own_N: torch.Tensor,
        visited_S: torch.Tensor | None,
        filtered_above: float,
        zeroed: bool,
        possible: _Possible | None,
        memory: ReusedMemory,
    ):
        self.possible, self.memory = possible, memory
        self.weight_KD, self.own_N, self.visited_S = weight_KD, own_N, visited_S
        self.filtered_above, self.zeroed = filtered_above, zeroed
        self.place_N = own_N if visited_S is None else torch.searchsorted(visited_S, own_N.clamp_min(0))
        self.place_N = torch.where(own_N >= 0, self.place_N, -1)

    def __len__(self) -> int:
        return self.weight_KD.shape[0] if self.visited_S is None else self.visited_S.shape[0]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        if self.visited_S is None:
            return self.weight_KD[start:stop]
        return self.weight_KD.index_select(0, self.visited_S[start:stop])

    def exclude_(self, logits_NC: torch.Tensor, start: int, stop: int) -> torch.Tensor | None:
        place_N1 = self.place_N[:, None]
        inside_N1 = (place_N1 >= start) & (place_N1 < stop)
        column_N1 = (place_N1 - start).clamp(0, stop - start - 1)
        logits_NC.scatter_(1, column_N1, logits_NC.gather(1, column_N1).masked_fill(inside_N1, -torch.inf))
        if self.possible is not None:
            row_C = torch.arange(start, stop, device=logits_NC.device) if self.visited_S is None else self.visited_S[start:stop]
            logits_NC.masked_fill_(self.possible.excluded(row_C), -torch.inf)
        if self.filtered_above == torch.inf:
            return None
        filtered_NC = logits_NC > self.filtered_above
        logits_NC.masked_fill_(filtered_NC, -torch.inf)
        return filtered_NC.sum(dim=1) if self.zeroed else None

    def own_row(self) -> torch.Tensor:
        return self.own_N

    def visited_rows(self) -> torch.Tensor | None:
        return self.visited_S

    def empty_gradient(self, weight_KD: torch.Tensor) -> torch.Tensor:
        return self.memory.like(weight_KD) if self.visited_S is None else super().empty_gradient(weight_KD)
