"""The visits of a log-sum-exp (`losses.log_sum_exp`) to this rank's keys, chunk by chunk: forward for the sums, backward for the
gradients, and once more if the keys' gradient is streamed.

Shapes: N queries, K keys of this rank, c keys of a chunk, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from losses.products import add_product, cast, multiply, onednn_precision

if TYPE_CHECKING:
    from losses.log_sum_exp import KeyShard, LogSumExpOptions, NegativeRule

_SLACK = 1e-5  # of a logit: two exponentials of the same number may differ in the last place
_SMALLEST_NORM = 1e-12  # of a key, as in F.normalize
_ROWS_STREAMED = 512  # of a streamed gradient: with the rows and their momentum, they stay in a core's cache
_ROWS_IN_CACHE = 128  # 256 KB of 512 numbers each: a temporary copy of them stays in a core's cache


@dataclass(frozen=True)
class ChunkPlan:
    """How much memory a log-sum-exp may use beyond its results.

    chunk_elements: logits per chunk (N x c). keep_bytes: exponentials that are kept from the forward to the backward pass, in
    the products' precision. keep_at_least: fewer bytes are not kept, because so few exponentials are quickly computed again
    and would be most of a small head's extra memory. skip_unneeded: do not compute queries that no loss needs
    (`losses.selection`). Not on a GPU: counting them would wait for it.
    """

    chunk_elements: int = 1 << 18
    keep_bytes: int = 192 << 20
    skip_unneeded: bool = True
    keep_at_least: int = 0

    @staticmethod
    def for_device(device: torch.device) -> ChunkPlan:
        """Chunks that fit a CPU core's caches, or that fill a GPU."""
        return ChunkPlan(1 << 24, 256 << 20, False) if device.type == "cuda" else ChunkPlan(keep_at_least=4 << 20)

    def kept(self, size: int) -> int:
        """How many bytes of exponentials are kept of `size`."""
        return min(size, self.keep_bytes) if size >= self.keep_at_least else 0


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


class Visits:
    """The two visits to the chunks of this rank's keys: forward for the sums, backward for the gradients."""

    def __init__(self, unit_ND: Tensor, keys: KeyShard, options: LogSumExpOptions, rule: NegativeRule | None):
        self.unit_ND, self.keys, self.options = unit_ND.detach(), keys, options
        self.factor_ND = cast(self.unit_ND, options.precision)
        plan = options.plan or ChunkPlan.for_device(unit_ND.device)
        plain = rule is None and options.is_plain
        self.sum = _PlainSum(options.limit) if plain else _RunningSum(options.limit, rule)
        self.kept_type = torch.bfloat16 if options.precision == "bf16" else unit_ND.dtype
        bytes_per_key = len(unit_ND) * self.kept_type.itemsize
        kept = plan.kept(bytes_per_key * len(keys)) // max(bytes_per_key, 1) if plain else 0
        self.chunks = _cut(len(unit_ND), len(keys), plan.chunk_elements, kept)

    def log_sums(self) -> Tensor:
        """log sum exp over this rank's keys: [N], -inf if there are none."""
        sum_N, memory = self.unit_ND.new_full((len(self.unit_ND),), self.sum.empty), self._shared_memory()
        for chunk in self.chunks:
            rows_CD = self.keys.rows(chunk.start, chunk.stop)
            chunk.inverse_norm_C = inverse_norms(rows_CD)
            scaled_NC, ones_N = self._scaled_cosines(chunk, rows_CD, memory)
            sum_N = self.sum.add(sum_N, scaled_NC)
            if ones_N is not None:
                sum_N = self.sum.add_ones(sum_N, ones_N)
            if chunk.keep:
                chunk.exponential_NC = _drop_clamped_(scaled_NC, self.options.limit).to(self.kept_type)
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
                self._row_gradient(slope_NC, rows_CD, chunk.inverse_norm_C, grad_rows_KD[chunk.start : chunk.stop])
            elif keep_slopes and chunk.keep:
                chunk.slope_NC = slope_NC.to(self.kept_type)
        return grad_unit_ND.mul_(factor_N1)

    def row_gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """After `gradients` with `keep_slopes`: row ranges and their gradients [c, D], in memory that the next range reuses."""
        memory = self._shared_memory()
        at_once = _ROWS_STREAMED if memory.device.type == "cpu" else max((c.stop - c.start for c in self.chunks), default=0)
        out_CD = self.unit_ND.new_empty(at_once, self.unit_ND.shape[1])
        for chunk in self.chunks:
            rows_CD, slope_NC = self.keys.rows(chunk.start, chunk.stop), chunk.slope_NC
            if slope_NC is None:
                with onednn_precision(self.options.precision, rows_CD.device):
                    slope_NC = self._slopes(chunk, rows_CD, memory)
            slope_NC = cast(slope_NC.to(self.unit_ND.dtype), self.options.precision)
            for start in range(0, len(rows_CD), at_once):
                part = slice(start, min(start + at_once, len(rows_CD)))
                with onednn_precision(self.options.precision, rows_CD.device):
                    grad_cD = self._row_gradient(
                        slope_NC[:, part], rows_CD[part], chunk.inverse_norm_C[part], out_CD[: part.stop - start]
                    )
                yield slice(chunk.start + part.start, chunk.start + part.stop), grad_cD

    def _row_gradient(self, slope_NC: Tensor, rows_CD: Tensor, inverse_norm_C: Tensor, out_CD: Tensor) -> Tensor:
        multiply(slope_NC.T, self.weighted_ND, out=out_CD)
        return remove_radial_(out_CD, rows_CD, inverse_norm_C)

    def _slopes(self, chunk: _Chunk, rows_CD: Tensor, memory: Tensor) -> Tensor:
        """d n / d(s cos) of a chunk, divided by the keys' norms, up to the factor per query; 0 if clamped or excluded: [N, c]."""
        exponential_NC, chunk.exponential_NC = chunk.exponential_NC, None  # freed now; a second backward pass computes it again
        if exponential_NC is not None:
            slope_NC = self._room(chunk, memory).copy_(exponential_NC) if self._is_shared(chunk) else exponential_NC
        else:
            scaled_NC, _ = self._scaled_cosines(chunk, rows_CD, memory)
            slope_NC = self.sum.slopes(scaled_NC, self.total_N)
        return cast(slope_NC.mul_(chunk.inverse_norm_C), self.options.precision)

    def _scaled_cosines(self, chunk: _Chunk, rows_CD: Tensor, memory: Tensor) -> tuple[Tensor, Tensor | None]:
        """s cos of a chunk, clamped, -inf for excluded pairs: [N, c], in `memory` unless the chunk is kept; and the number of
        excluded pairs that count as exp(0) (`KeyShard.exclude_`)."""
        limit, out = self.options.limit, self._room(chunk, memory) if self._is_shared(chunk) else None
        scaled_NC = multiply(self.factor_ND, rows_CD.T, out).mul_(chunk.inverse_norm_C * self.options.scale)
        if limit < torch.inf:
            scaled_NC.clamp_(-limit, limit)
        return scaled_NC, self.keys.exclude_(scaled_NC, chunk.start, chunk.stop)

    def _shared_memory(self) -> Tensor:
        """Room for the logits of one chunk, shared by all chunks whose logits are not kept as they are."""
        widest = max((chunk.stop - chunk.start for chunk in self.chunks if self._is_shared(chunk)), default=0)
        return self.unit_ND.new_empty(len(self.unit_ND) * widest)

    def _room(self, chunk: _Chunk, memory: Tensor) -> Tensor:
        """The part of the shared memory that a chunk needs: [N, c]."""
        shape = (len(self.unit_ND), chunk.stop - chunk.start)
        return memory[: math.prod(shape)].view(shape)

    def _is_shared(self, chunk: _Chunk) -> bool:
        return not chunk.keep or self.kept_type != self.unit_ND.dtype


def _cut(queries: int, keys: int, chunk_elements: int, kept: int) -> list[_Chunk]:
    """`keys` keys in chunks, of which the first are kept as long as they end within the first `kept` keys."""
    step = max(64, chunk_elements // max(queries, 1))
    ranges = [(start, min(start + step, keys)) for start in range(0, keys, step)]
    return [_Chunk(start, stop, stop <= kept) for start, stop in ranges]


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


def inverse_norms(rows_CD: Tensor) -> Tensor:
    return rows_CD.norm(dim=1).clamp_min_(_SMALLEST_NORM).reciprocal_()


def remove_radial_(grad_CD: Tensor, raw_CD: Tensor, inverse_norm_C: Tensor) -> Tensor:
    """Remove the component along the raw rows, in place: a cosine does not depend on the length of a row."""
    at_once = _ROWS_IN_CACHE if grad_CD.device.type == "cpu" else max(len(grad_CD), 1)
    for grad_cD, raw_cD, inverse_c in zip(*(t.split(at_once) for t in (grad_CD, raw_CD, inverse_norm_C)), strict=True):
        along_c = (grad_cD * raw_cD).sum(dim=1) * inverse_c.square()
        grad_cD.addcmul_(raw_cD, along_c[:, None], value=-1)
    return grad_CD
