"""Log-sum-exp of scaled cosines over keys that are sharded over the ranks: the one expensive operation of the losses.

    n_i = log sum_j exp(s cos(f_i, k_j)),   j over the keys of all ranks, except those excluded for i

The softmax over C classes and the contrastive loss over Q queue entries are this quantity plus arithmetic on vectors of length N.
The N x K logits never exist at once: keys are visited in chunks. The exponentials of the first chunks are kept for the backward
pass, as many as fit in `keep_bytes`; those of the other chunks are computed again.

Two properties make a chunk cheap:

- Keys are not normalised row by row. The product with the raw keys is scaled per column: N c numbers instead of c D.
- |s cos| <= s. For s <= 64, sums of exp(s cos) neither overflow nor underflow in float32, so no maximum is subtracted, and the
  exponentials of the forward pass are the gradient up to one factor per query. Larger scales, and margins that raise logits of
  negatives above s, use a running log-sum-exp and never keep a chunk.

`losses.visits` has the loops over the chunks. Gradient: d n_i / d cos_ij = s exp(s cos_ij - n_i), zero where the cosine is
clamped. The backward pass returns this rank's PART of the queries' gradient (over its own keys; `utils.dist.gather_rows` sums the
parts) and the whole gradient of its own keys: dense, a sparse tensor of the visited rows if only some rows are visited, or a
`StreamedGradient`.

Shapes: N queries, K keys of this rank, c keys of a chunk, D embedding. Arithmetic is float32 (float64 if the
inputs are), also with bfloat16 products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.products import HeadPrecision, onednn_precision
from losses.visits import ChunkPlan, Visits, inverse_norms, remove_radial_
from utils.dist import gather_stack

_MAX_PLAIN_SCALE = 64.0  # e^64 times 2^31 keys is still a float32; e^-64 is still a normal one


@dataclass(frozen=True)
class LogSumExpOptions:
    """scale: s. cosine_limit: cosines are clamped to +-cosine_limit. plan: None chooses by device. precision: of the matrix
    products (`losses.products`). Raises ValueError for a precision other than fp32 and bf16."""

    scale: float
    cosine_limit: float = torch.inf
    plan: ChunkPlan | None = None
    precision: HeadPrecision = "fp32"

    def __post_init__(self):
        if self.precision not in get_args(HeadPrecision):
            raise ValueError(f"precision of the head must be 'fp32' or 'bf16', not {self.precision!r}")

    @property
    def limit(self) -> float:
        """The largest absolute value of a logit."""
        return self.scale * self.cosine_limit

    @property
    def is_plain(self) -> bool:
        """Whether the scale needs no running maximum, so that chunks can be kept."""
        return self.scale <= _MAX_PLAIN_SCALE


class KeyShard(ABC):
    """This rank's keys."""

    @abstractmethod
    def __len__(self) -> int:
        """K, the number of keys that are visited."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Keys start..stop, not normalised: [c, D]."""

    @abstractmethod
    def exclude_(self, logits_NC: Tensor, start: int, stop: int) -> Tensor | None:
        """Set the logits of excluded (query, key) pairs with keys start..stop to -inf, in place.

        Return how many excluded pairs of each query still count in the sum, as the constant exp(0): int64 [N]; None for none.
        """

    def own_row(self) -> Tensor | None:
        """int64 [N]: each query's own row of the weight, -1 if another rank holds it. None: queries have no own row."""
        return None

    def visited_rows(self) -> Tensor | None:
        """int64 [K], increasing: the rows of the weight that are the keys. None: all rows, in order."""
        return None

    def empty_gradient(self, weight_KD: Tensor) -> Tensor:
        """Memory for the gradient of the visited rows of the weight: [K, D]."""
        return weight_KD.new_empty(len(self), weight_KD.shape[1])


class NegativeRule(Protocol):
    """How a margin changes the logits of other classes (CurricularFace is the only one that does)."""

    def logits(self, scaled_NC: Tensor) -> Tensor:
        """The logits for s cos; -inf stays -inf."""

    def slope(self, scaled_NC: Tensor) -> Tensor:
        """Derivative of the logits with respect to s cos."""


Sink = Callable[["StreamedGradient"], None]
"""Receives the keys' gradient in the backward pass, instead of the weight's `grad`."""

RuleOf = Callable[[Tensor], NegativeRule]
"""Maps the target cosines of all queries [N] to the rule."""


class ShardedLogSumExp(torch.autograd.Function):
    """`apply(unit_ND, weight_KD, keys, options, rule_of)` -> (n_N, target_cosine_N).

    unit_ND: normalised queries, equal on all ranks. weight_KD: the raw rows behind `keys` if they learn, else None.
    rule_of: None unless the margin changes the logits of other classes.
    sink: receives the gradient of the rows, which then does not become `weight_KD.grad`; None for the usual way.
    target_cosine_N: each query's cosine with its own row, not clamped; zero if queries have no own row.
    A query without a key on any rank has n = -inf and no gradient.
    """

    @staticmethod
    def forward(
        ctx,
        unit_ND,
        weight_KD,
        keys: KeyShard,
        options: LogSumExpOptions,
        rule_of: RuleOf | None = None,
        sink: Sink | None = None,
    ):
        cosine_N, rule = _own_cosine(unit_ND, weight_KD, keys), None
        if rule_of is not None:  # the rule depends on all target cosines: one more collective
            cosine_N = gather_stack(cosine_N).sum(dim=0)
            rule = rule_of(cosine_N)
        visits = Visits(unit_ND, keys, options, rule)
        with onednn_precision(options.precision, unit_ND.device):
            partial_N = visits.log_sums()
        if rule_of is None:
            parts_W2N = gather_stack(torch.stack([partial_N, cosine_N]))
            total_N, cosine_N = parts_W2N[:, 0].logsumexp(dim=0), parts_W2N[:, 1].sum(dim=0)
        else:
            total_N = gather_stack(partial_N).logsumexp(dim=0)
        ctx.save_for_backward(unit_ND, weight_KD, total_N)
        ctx.keys, ctx.visits, ctx.sink = keys, visits, sink
        return total_N, cosine_N

    @staticmethod
    def backward(ctx, grad_N, grad_cosine_N):
        unit_ND, weight_KD, total_N = ctx.saved_tensors
        keys, visits = ctx.keys, ctx.visits
        stored = ctx.needs_input_grad[1] and ctx.sink is None
        grad_rows_KD = keys.empty_gradient(weight_KD) if stored else None
        with onednn_precision(visits.options.precision, unit_ND.device):
            grad_unit_ND = visits.gradients(grad_N, total_N, grad_rows_KD, keep_slopes=ctx.sink is not None)
        own = None
        if keys.own_row() is not None and len(keys) > 0:
            own = _OwnGradients(unit_ND, weight_KD, keys, grad_cosine_N)
            grad_unit_ND.addcmul_(own.grad_N1, own.key_ND)
            if grad_rows_KD is not None:
                grad_rows_KD.index_add_(0, own.place_N, own.rows_ND)
        if ctx.sink is not None:
            ctx.sink(StreamedGradient(visits, own, grad_unit_ND.isfinite().all()))
        visited_K = keys.visited_rows()
        if grad_rows_KD is not None and visited_K is not None:
            grad_rows_KD = torch.sparse_coo_tensor(
                visited_K[None], grad_rows_KD, weight_KD.shape, is_coalesced=True, check_invariants=False
            )
        return grad_unit_ND, grad_rows_KD, None, None, None, None


def _own_cosine(unit_ND: Tensor, weight_KD: Tensor, keys: KeyShard) -> Tensor:
    """Cosines with the own rows that this rank holds, zero elsewhere: [N]."""
    own_N = keys.own_row()
    if own_N is None or weight_KD.shape[0] == 0:
        return unit_ND.new_zeros(unit_ND.shape[0])
    own_ND = F.normalize(weight_KD[own_N.clamp_min(0)])
    return (unit_ND * own_ND).sum(dim=1) * (own_N >= 0)


class _OwnGradients:
    """The gradients through the target cosines that this rank holds.

    grad_N1 * key_ND: of the queries. rows_ND: of the keys place_N. Both are to be added; zero if another rank holds the own row.
    """

    def __init__(self, unit_ND: Tensor, weight_KD: Tensor, keys: KeyShard, grad_cosine_N: Tensor):
        own_N, visited_K = keys.own_row(), keys.visited_rows()
        assert own_N is not None
        row_N = own_N.clamp_min(0)
        raw_ND = weight_KD[row_N]
        inverse_N = inverse_norms(raw_ND)
        grad_N1 = (grad_cosine_N * (own_N >= 0))[:, None]
        self.grad_N1, self.key_ND = grad_N1, raw_ND * inverse_N[:, None]
        self.place_N = row_N if visited_K is None else torch.searchsorted(visited_K, row_N).clamp_max_(len(keys) - 1)
        self.rows_ND = remove_radial_(grad_N1 * unit_ND * inverse_N[:, None], raw_ND, inverse_N)

    def add_to(self, grad_CD: Tensor, rows: slice) -> None:
        """Add the gradients of keys rows.start..rows.stop to theirs."""
        if grad_CD.device.type == "cpu":  # few of them, and known here
            chosen_n = self._order_N[bisect_left(self._sorted, rows.start) : bisect_left(self._sorted, rows.stop)]
            if len(chosen_n):
                grad_CD.index_add_(0, self.place_N[chosen_n] - rows.start, self.rows_ND[chosen_n])
        else:
            inside_N = (self.place_N >= rows.start) & (self.place_N < rows.stop)
            grad_CD.index_add_(0, (self.place_N - rows.start).clamp(0, len(grad_CD) - 1), self.rows_ND * inside_N[:, None])

    @cached_property
    def _order_N(self) -> Tensor:
        return self.place_N.argsort(stable=True)

    @cached_property
    def _sorted(self) -> list[int]:
        return self.place_N[self._order_N].tolist()


class StreamedGradient:
    """The gradient of this rank's keys, which never exists as a whole: `chunks` computes it piece by piece, whenever it is read.

    finite: whether all of it is finite, a bool scalar on the device: every product with a number that is not finite also reaches
    the gradient of the queries. factors: numbers or scalar tensors that multiply the gradient.
    """

    def __init__(self, visits: Visits, own: _OwnGradients | None, finite: Tensor):
        self._visits, self._own, self.finite = visits, own, finite
        self.factors: list[Tensor | float] = []
        self._squared_norm: Tensor | None = None

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row ranges and their gradients [c, D], in memory that the next chunk reuses. A chunk's rows may change after it."""
        norms = [torch.zeros_like(self._visits.total_N).sum()]
        for rows, grad_CD in self._visits.row_gradients():
            if self._own is not None:
                self._own.add_to(grad_CD, rows)
            for factor in self.factors:
                grad_CD.mul_(factor)
            if self._squared_norm is None:
                norms.append(torch.linalg.vector_norm(grad_CD))
            yield rows, grad_CD
        if self._squared_norm is None:
            self._squared_norm = torch.stack(norms).double().square().sum()

    def squared_norm(self) -> Tensor:
        """The squared L2 norm, float64: as it was when the chunks were read first. If they have not been read, reads them."""
        if self._squared_norm is None:
            for _ in self.chunks():
                pass
        assert self._squared_norm is not None
        return self._squared_norm
