"""Log-sum-exp of scaled cosines over keys that are sharded over the ranks: the one expensive operation of the losses.

    n_i = log sum_j exp(s cos(f_i, k_j)),   j over the keys of all ranks, except those excluded for i

The softmax over C classes and the contrastive loss over Q queue entries are this quantity plus arithmetic on vectors of length N.
The N x K logits never exist at once: keys are visited in chunks. The exponentials of the first chunks are kept for the backward
pass, as many as fit in `keep_bytes`; those of the other chunks are computed again.

Two properties make a chunk cheap:

- Keys are not normalised row by row. The product with the raw keys is scaled per column: N c numbers instead of c D.
- |s cos| <= s. For s <= 64, sums of exp(s cos) neither overflow nor underflow in float32, so no maximum is subtracted, and the
  exponentials of the forward pass are the gradient up to one factor per query (`_PlainSum`). Larger scales, and margins that
  raise logits of negatives above s, use a running log-sum-exp and never keep a chunk (`_RunningSum`).

Gradient: d n_i / d cos_ij = s exp(s cos_ij - n_i), zero where the cosine is clamped. The backward pass returns this rank's PART
of the queries' gradient (over its own keys; `utils.dist.gather_rows` sums the parts) and the whole gradient of its own keys:
dense, or a sparse tensor of the visited rows if only some rows are visited.

Shapes: N queries, K keys of this rank, c keys of a chunk, D embedding. Arithmetic is float32 (float64 if the
inputs are), also with bfloat16 products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.products import HeadPrecision, add_product, cast, multiply, onednn_precision
from utils.dist import gather_stack

_MAX_PLAIN_SCALE = 64.0  # e^64 times 2^31 keys is still a float32; e^-64 is still a normal one
_SLACK = 1e-5  # of a logit: two exponentials of the same number may differ in the last place
_SMALLEST_NORM = 1e-12  # of a key, as in F.normalize
_ROWS_IN_CACHE = 128  # 256 KB of 512 numbers each: a temporary copy of them stays in a core's cache


@dataclass(frozen=True)
class ChunkPlan:
    """How much memory a log-sum-exp may use beyond its results.

    chunk_elements: logits per chunk (N x c). keep_bytes: exponentials that are kept from the forward to the backward pass.
    skip_unneeded: do not compute queries that no loss needs (`losses.selection`). Not on a GPU: counting them would wait for it.
    """

    chunk_elements: int = 1 << 18
    keep_bytes: int = 192 << 20
    skip_unneeded: bool = True

    @staticmethod
    def for_device(device: torch.device) -> ChunkPlan:
        """Chunks that fit a CPU core's caches, or that fill a GPU."""
        return ChunkPlan(1 << 24, 256 << 20, False) if device.type == "cuda" else ChunkPlan()


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
        visits = _Visits(unit_ND, keys, options, rule)
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
        grad_rows_KD = weight_KD.new_empty(len(keys), weight_KD.shape[1]) if stored else None
        with onednn_precision(visits.options.precision, unit_ND.device):
            grad_unit_ND = visits.gradients(grad_N, total_N, grad_rows_KD, keep_slopes=ctx.sink is not None)
        own = None
        if keys.own_row() is not None and len(keys) > 0:
            own = _OwnGradients(unit_ND, weight_KD, keys, grad_cosine_N)
            grad_unit_ND.add_(own.unit_ND)
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


@dataclass
class _Chunk:
    """Keys start..stop. The forward pass stores the inverse norms and, if `keep`, the exponentials; the backward pass may keep
    what it made of them, the slopes."""

    start: int
    stop: int
    keep: bool
    inverse_norm_C: Tensor = field(init=False)
    exponential_NC: Tensor | None = None
    slope_NC: Tensor | None = None


class _Visits:
    """The two visits to the chunks of this rank's keys: forward for the sums, backward for the gradients."""

    def __init__(self, unit_ND: Tensor, keys: KeyShard, options: LogSumExpOptions, rule: NegativeRule | None):
        self.unit_ND, self.keys, self.options = unit_ND, keys, options
        self.scaled_ND = cast(unit_ND * options.scale, options.precision)
        plan = options.plan or ChunkPlan.for_device(unit_ND.device)
        plain = rule is None and options.is_plain
        self.sum = _PlainSum(options.limit) if plain else _RunningSum(options.limit, rule)
        self.chunks = _cut(unit_ND, len(keys), plan.chunk_elements, plan.keep_bytes if plain else 0)

    def log_sums(self) -> Tensor:
        """log sum exp over this rank's keys: [N], -inf if there are none."""
        sum_N, memory = self.unit_ND.new_full((len(self.unit_ND),), self.sum.empty), self._shared_memory()
        for chunk in self.chunks:
            rows_CD = self.keys.rows(chunk.start, chunk.stop)
            chunk.inverse_norm_C = _inverse_norms(rows_CD)
            scaled_NC, ones_N = self._scaled_cosines(chunk, rows_CD, memory)
            sum_N = self.sum.add(sum_N, scaled_NC)
            if ones_N is not None:
                sum_N = self.sum.add_ones(sum_N, ones_N)
            chunk.exponential_NC = scaled_NC if chunk.keep else None
        return self.sum.log(sum_N)

    def gradients(self, grad_N: Tensor, total_N: Tensor, grad_rows_KD: Tensor | None, keep_slopes: bool) -> Tensor:
        """Fill `grad_rows_KD` and return this rank's part of the queries' gradient, [N, D]. keep_slopes: for `row_gradients`."""
        total_N = torch.where(total_N.isinf(), 0.0, total_N)  # no key at all: every exponential is 0
        factor_N1 = (grad_N * self.options.scale * self.sum.query_factor(total_N))[:, None]
        self.total_N, self.weighted_ND = total_N, cast(self.unit_ND * factor_N1, self.options.precision)
        grad_unit_ND, memory = torch.zeros_like(self.unit_ND), self._shared_memory()
        for chunk in self.chunks:
            rows_CD = self.keys.rows(chunk.start, chunk.stop)
            slope_NC = self._slopes(chunk, rows_CD, memory)
            add_product(grad_unit_ND, slope_NC, rows_CD)
            if grad_rows_KD is not None:
                self._row_gradient(slope_NC, rows_CD, chunk, grad_rows_KD[chunk.start : chunk.stop])
            elif keep_slopes and chunk.keep:
                chunk.slope_NC = slope_NC
        return grad_unit_ND.mul_(factor_N1)

    def row_gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """After `gradients` with `keep_slopes`: row ranges and their gradients [c, D], in memory that the next chunk reuses."""
        widest = max((chunk.stop - chunk.start for chunk in self.chunks), default=0)
        memory, out_CD = self._shared_memory(), self.unit_ND.new_empty(widest, self.unit_ND.shape[1])
        for chunk in self.chunks:
            rows_CD = self.keys.rows(chunk.start, chunk.stop)
            with onednn_precision(self.options.precision, rows_CD.device):
                slope_NC = self._slopes(chunk, rows_CD, memory) if chunk.slope_NC is None else chunk.slope_NC
                grad_CD = self._row_gradient(slope_NC, rows_CD, chunk, out_CD[: len(rows_CD)])
            yield slice(chunk.start, chunk.stop), grad_CD

    def _row_gradient(self, slope_NC: Tensor, rows_CD: Tensor, chunk: _Chunk, out_CD: Tensor) -> Tensor:
        multiply(slope_NC.T, self.weighted_ND, out=out_CD)
        return _remove_radial_(out_CD, rows_CD, chunk.inverse_norm_C)

    def _slopes(self, chunk: _Chunk, rows_CD: Tensor, memory: Tensor) -> Tensor:
        """d n / d(s cos) of a chunk, divided by the keys' norms, up to the factor per query; 0 if clamped or excluded: [N, c]."""
        exponential_NC, chunk.exponential_NC = chunk.exponential_NC, None  # freed now; a second backward pass computes it again
        if exponential_NC is not None:
            slope_NC = _drop_clamped_(exponential_NC, self.options.limit)
        else:
            scaled_NC, _ = self._scaled_cosines(chunk, rows_CD, memory)
            slope_NC = self.sum.slopes(scaled_NC, self.total_N)
        return cast(slope_NC.mul_(chunk.inverse_norm_C), self.options.precision)

    def _scaled_cosines(self, chunk: _Chunk, rows_CD: Tensor, memory: Tensor) -> tuple[Tensor, Tensor | None]:
        """s cos of a chunk, clamped, -inf for excluded pairs: [N, c], in `memory` unless the chunk is kept; and the number of
        excluded pairs that count as exp(0) (`KeyShard.exclude_`)."""
        queries, columns, limit = len(self.unit_ND), len(rows_CD), self.options.limit
        out = None if chunk.keep else memory[: queries * columns].view(queries, columns)
        scaled_NC = multiply(self.scaled_ND, rows_CD.T, out).mul_(chunk.inverse_norm_C)
        if limit < torch.inf:
            scaled_NC.clamp_(-limit, limit)
        return scaled_NC, self.keys.exclude_(scaled_NC, chunk.start, chunk.stop)

    def _shared_memory(self) -> Tensor:
        """Room for the logits of one chunk, which all chunks use that are not kept."""
        widest = max((chunk.stop - chunk.start for chunk in self.chunks if not chunk.keep), default=0)
        return self.unit_ND.new_empty(len(self.unit_ND) * widest)


def _cut(unit_ND: Tensor, keys: int, chunk_elements: int, keep_bytes: int) -> list[_Chunk]:
    """`keys` keys in chunks. Kept are the first ones, as many as fit in `keep_bytes`."""
    step, bytes_per_key = max(64, chunk_elements // max(len(unit_ND), 1)), len(unit_ND) * unit_ND.element_size()
    ranges = [(start, min(start + step, keys)) for start in range(0, keys, step)]
    return [_Chunk(start, stop, stop * bytes_per_key <= keep_bytes) for start, stop in ranges]


class _PlainSum:
    """The sum of exp(x) itself. exp(x) is also the gradient of its logarithm n, up to the factor exp(-n) per query."""

    empty = 0.0

    def __init__(self, limit: float):
        self.limit = limit

    def add(self, sum_N: Tensor, scaled_NC: Tensor) -> Tensor:
        """The sum with a chunk added. Leaves the exponentials in `scaled_NC`."""
        return sum_N.add_(scaled_NC.exp_().sum(dim=1))

    def add_ones(self, sum_N: Tensor, ones_N: Tensor) -> Tensor:
        """The sum with ones_N times exp(0) added."""
        return sum_N.add_(ones_N)

    def log(self, sum_N: Tensor) -> Tensor:
        return sum_N.log_()

    def query_factor(self, total_N: Tensor) -> Tensor:
        return (-total_N).exp()

    def slopes(self, scaled_NC: Tensor, total_N: Tensor) -> Tensor:
        return _drop_clamped_(scaled_NC.exp_(), self.limit)


class _RunningSum:
    """A running log-sum-exp, for logits of any size, with or without a rule for negatives."""

    empty = -torch.inf

    def __init__(self, limit: float, rule: NegativeRule | None):
        self.limit, self.rule = limit, rule

    def add(self, sum_N: Tensor, scaled_NC: Tensor) -> Tensor:
        logits_NC = scaled_NC if self.rule is None else self.rule.logits(scaled_NC)
        return torch.logaddexp(sum_N, logits_NC.logsumexp(dim=1))

    def add_ones(self, sum_N: Tensor, ones_N: Tensor) -> Tensor:
        return torch.logaddexp(sum_N, ones_N.to(sum_N.dtype).log())

    def log(self, sum_N: Tensor) -> Tensor:
        return sum_N

    def query_factor(self, total_N: Tensor) -> float:
        return 1.0

    def slopes(self, scaled_NC: Tensor, total_N: Tensor) -> Tensor:
        logits_NC = scaled_NC if self.rule is None else self.rule.logits(scaled_NC)
        slope_NC = (logits_NC - total_N[:, None]).exp_().masked_fill_(scaled_NC.abs() >= self.limit, 0.0)
        return slope_NC if self.rule is None else slope_NC.mul_(self.rule.slope(scaled_NC))


def _drop_clamped_(exponential_NC: Tensor, limit: float) -> Tensor:
    """Set the exponentials of clamped logits to zero, in place."""
    if limit == torch.inf:
        return exponential_NC
    low, high = math.exp(-limit + _SLACK), math.exp(limit - _SLACK)
    return torch.ops.aten.hardtanh_backward.grad_input(exponential_NC, exponential_NC, low, high, grad_input=exponential_NC)


def _own_cosine(unit_ND: Tensor, weight_KD: Tensor, keys: KeyShard) -> Tensor:
    """Cosines with the own rows that this rank holds, zero elsewhere: [N]."""
    own_N = keys.own_row()
    if own_N is None or weight_KD.shape[0] == 0:
        return unit_ND.new_zeros(unit_ND.shape[0])
    own_ND = F.normalize(weight_KD[own_N.clamp_min(0)])
    return (unit_ND * own_ND).sum(dim=1) * (own_N >= 0)


class _OwnGradients:
    """The gradients through the target cosines that this rank holds.

    unit_ND: of the queries. place_N, rows_ND: of the keys place_N, to be added (zero if another rank holds the own row).
    """

    def __init__(self, unit_ND: Tensor, weight_KD: Tensor, keys: KeyShard, grad_cosine_N: Tensor):
        own_N, visited_K = keys.own_row(), keys.visited_rows()
        assert own_N is not None
        row_N = own_N.clamp_min(0)
        raw_ND = weight_KD[row_N]
        inverse_N = _inverse_norms(raw_ND)
        grad_N1 = (grad_cosine_N * (own_N >= 0))[:, None]
        self.unit_ND = grad_N1 * (raw_ND * inverse_N[:, None])
        self.place_N = row_N if visited_K is None else torch.searchsorted(visited_K, row_N).clamp_max_(len(keys) - 1)
        self.rows_ND = _remove_radial_(grad_N1 * unit_ND * inverse_N[:, None], raw_ND, inverse_N)

    def add_to(self, grad_CD: Tensor, rows: slice) -> None:
        """Add the gradients of keys rows.start..rows.stop to theirs."""
        inside_N = (self.place_N >= rows.start) & (self.place_N < rows.stop)
        if grad_CD.device.type == "cpu":  # elsewhere, selecting would wait for the device
            inside_n = inside_N.nonzero()[:, 0]
            grad_CD.index_add_(0, self.place_N[inside_n] - rows.start, self.rows_ND[inside_n])
        else:
            place_N = (self.place_N - rows.start).clamp(0, len(grad_CD) - 1)
            grad_CD.index_add_(0, place_N, self.rows_ND * inside_N[:, None])


class StreamedGradient:
    """The gradient of this rank's keys, which never exists as a whole: `chunks` computes it piece by piece, whenever it is read.

    finite: whether all of it is finite, a bool scalar on the device: every product with a number that is not finite also reaches
    the gradient of the queries. factors: numbers or scalar tensors that multiply the gradient.
    """

    def __init__(self, visits: _Visits, own: _OwnGradients | None, finite: Tensor):
        self._visits, self._own, self.finite = visits, own, finite
        self.factors: list[Tensor | float] = []
        self._squared_norm: Tensor | None = None

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row ranges and their gradients [c, D], in memory that the next chunk reuses. A chunk's rows may change after it."""
        squared = torch.zeros((), dtype=torch.float64, device=self.finite.device)
        for rows, grad_CD in self._visits.row_gradients():
            if self._own is not None:
                self._own.add_to(grad_CD, rows)
            for factor in self.factors:
                grad_CD.mul_(factor)
            if self._squared_norm is None:
                squared += torch.linalg.vector_norm(grad_CD).double().square()
            yield rows, grad_CD
        if self._squared_norm is None:
            self._squared_norm = squared

    def squared_norm(self) -> Tensor:
        """The squared L2 norm, float64: as it was when the chunks were read first. If they have not been read, reads them."""
        if self._squared_norm is None:
            for _ in self.chunks():
                pass
        assert self._squared_norm is not None
        return self._squared_norm


def _inverse_norms(rows_CD: Tensor) -> Tensor:
    return rows_CD.norm(dim=1).clamp_min_(_SMALLEST_NORM).reciprocal_()


def _remove_radial_(grad_CD: Tensor, raw_CD: Tensor, inverse_norm_C: Tensor) -> Tensor:
    """Remove the component along the raw rows, in place: a cosine does not depend on the length of a row."""
    at_once = _ROWS_IN_CACHE if grad_CD.device.type == "cpu" else max(len(grad_CD), 1)
    for grad_cD, raw_cD, inverse_c in zip(*(t.split(at_once) for t in (grad_CD, raw_CD, inverse_norm_C)), strict=True):
        along_c = (grad_cD * raw_cD).sum(dim=1) * inverse_c.square()
        grad_cD.addcmul_(raw_cD, along_c[:, None], value=-1)
    return grad_CD
