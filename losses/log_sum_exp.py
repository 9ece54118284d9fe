"""The one expensive primitive: log-sum-exp of scaled cosines over keys that are sharded over the ranks.

    n_i = log sum_j exp(s cos(f_i, k_j)),   j over the keys of all ranks, less those that are excluded for i

Both the softmax over C classes and the contrastive loss over Q queue entries are this quantity plus arithmetic on
vectors of length N. Here the N x K logits never exist at once: keys are visited in chunks, and a chunk is thrown away
after use and computed again in the backward pass, unless it fits in `keep_bytes`.

What makes a chunk cheap. Keys are never normalised as rows: the product with the raw keys is scaled by column, which
touches N c numbers instead of c D. And because |s cos| <= s, sums of exp(s cos) neither overflow nor underflow in float32
for s <= 64 (e^-64 .. e^64 times the number of keys), so no maximum is sought, nothing is shifted, and the exponentials of
the forward pass are already, but for one factor a query, the gradient. Larger scales, and rules that lift some negatives
above s, take the general way: a running log-sum-exp, always recomputed.

Gradient: d n_i / d cos_ij = s exp(s cos_ij - n_i), zero where the cosine is clamped. Backward returns this rank's PART of
the gradient with respect to the queries (over its own keys; `utils.dist.gather_rows` sums the parts) and the whole
gradient with respect to its own keys: dense, or a sparse tensor of the visited rows where only some keys are visited.

Shapes: N queries, M of them computed, K keys of this rank, c keys of a chunk, D embedding. All arithmetic is float32
(float64 where the inputs are); see `losses.products` for the products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F

from losses.products import Products
from utils.dist import gather_stack

_MAX_PLAIN_SCALE = 64.0  # e^64 times 2^31 keys is still a float32; e^-64 is still a normal one
_SLACK = 1e-5  # of a logit: two exponentials of the same number may differ in the last place


@dataclass(frozen=True)
class ChunkPlan:
    """How much memory the primitive may use beyond its results.

    chunk_elements: logits of a chunk (N x c); keep_bytes: chunks kept from forward to backward instead of recomputed.
    leave_out: queries whose sum does not matter are not computed. Not on a GPU: to ask how many there are is to wait for it.
    """

    chunk_elements: int = 1 << 19
    keep_bytes: int = 192 << 20
    leave_out: bool = True

    def bounds(self, queries: int, keys: int) -> list[tuple[int, int]]:
        step = max(64, self.chunk_elements // max(queries, 1))
        return [(start, min(start + step, keys)) for start in range(0, keys, step)]

    @staticmethod
    def for_device(device: torch.device) -> ChunkPlan:
        """Chunks that fit a CPU core's caches, or that fill a GPU."""
        return ChunkPlan(1 << 24, 256 << 20, False) if device.type == "cuda" else ChunkPlan()


class KeyShard(ABC):
    """This rank's keys, as the primitive sees them."""

    @abstractmethod
    def __len__(self) -> int:
        """K, the number of keys of this rank that are visited."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Keys start..stop as they are, not normalised: [c, D]."""

    @abstractmethod
    def exclude_(self, logits_MC: torch.Tensor, start: int, stop: int, chosen_M: torch.Tensor | None) -> None:
        """Sets the logits of excluded (query, key) pairs of this chunk to -inf, in place. `chosen_M`: the queries that the
        rows of `logits_MC` belong to, or None for all in order."""

    def own_row(self) -> torch.Tensor | None:
        """int64 [N]: each query's own row of the weight, -1 where another rank holds it; None if queries have none."""
        return None

    def visited_rows(self) -> torch.Tensor | None:
        """int64 [K], increasing: the rows of the weight that are the keys; None if they are all rows, in order."""
        return None


class NegativeRule(Protocol):
    """A margin's say about the logits of other classes (none of the usual margins has one)."""

    def logits(self, scaled_MC: torch.Tensor, chosen_M: torch.Tensor | None) -> torch.Tensor:
        """From s cos to the logits; -inf stays -inf."""

    def slope(self, scaled_MC: torch.Tensor, chosen_M: torch.Tensor | None) -> torch.Tensor:
        """Derivative of the logits with respect to s cos."""


@dataclass(frozen=True)
class Terms:
    """How the sum is formed. `rule_of` is given the target cosines of all queries and may return a rule for negatives.
    needed_N: queries whose sum matters; the others may be left out (-inf, no gradient)."""

    scale: float
    cosine_limit: float = torch.inf
    plan: ChunkPlan | None = None
    products: Products = field(default_factory=Products)
    rule_of: Callable[[torch.Tensor], NegativeRule] | None = None
    needed_N: torch.Tensor | None = None


class ShardedLogSumExp(torch.autograd.Function):
    """`apply(unit_ND, weight_KD, keys, terms)` -> (n_N, target_cosine_N).

    unit_ND: normalised queries, equal on all ranks. weight_KD: the raw rows behind `keys` when they learn, else None.
    target_cosine_N: each query's cosine with its own row, not clamped; zero where queries have no own row.
    A query with no key on any rank gives n = -inf and no gradient.
    """

    @staticmethod
    def forward(ctx, unit_ND, weight_KD, keys: KeyShard, terms: Terms):
        cosine_N = _own_cosine(unit_ND, weight_KD, keys)
        rule = None
        if terms.rule_of is not None:  # the rule depends on all target cosines: one more exchange of N numbers
            cosine_N = gather_stack(cosine_N).sum(dim=0)
            rule = terms.rule_of(cosine_N)
        walk = _Walk(unit_ND, keys, terms, rule)
        partial_N = walk.log_sums()
        if rule is None:
            parts_W2N = gather_stack(torch.stack([partial_N, cosine_N]))  # one collective for both
            total_N, cosine_N = parts_W2N[:, 0].logsumexp(dim=0), parts_W2N[:, 1].sum(dim=0)
        else:
            total_N = gather_stack(partial_N).logsumexp(dim=0)
        ctx.save_for_backward(unit_ND, weight_KD, total_N)
        ctx.keys, ctx.walk = keys, walk
        return total_N, cosine_N

    @staticmethod
    def backward(ctx, grad_N, grad_cosine_N):
        unit_ND, weight_KD, total_N = ctx.saved_tensors
        keys, walk = ctx.keys, ctx.walk
        grad_rows_KD = weight_KD.new_empty(len(keys), weight_KD.shape[1]) if ctx.needs_input_grad[1] else None
        grad_unit_ND = walk.gradients(grad_N, total_N, grad_rows_KD)
        own_N = keys.own_row()
        if own_N is not None and len(keys) > 0:
            _add_own_gradients(grad_unit_ND, grad_rows_KD, unit_ND, weight_KD, keys, grad_cosine_N)
        visited_K = keys.visited_rows()
        if grad_rows_KD is not None and visited_K is not None:
            grad_rows_KD = torch.sparse_coo_tensor(
                visited_K[None], grad_rows_KD, weight_KD.shape, is_coalesced=True, check_invariants=False
            )
        return grad_unit_ND, grad_rows_KD, None, None


class _Walk:
    """The two visits to all chunks of this rank's keys, and what the first keeps for the second."""

    def __init__(self, unit_ND: torch.Tensor, keys: KeyShard, terms: Terms, rule: NegativeRule | None):
        self.keys, self.terms, self.rule = keys, terms, rule
        self.plain = rule is None and terms.scale <= _MAX_PLAIN_SCALE
        self.queries = unit_ND.shape[0]
        self.chosen_M = None
        plan = terms.plan or ChunkPlan.for_device(unit_ND.device)
        if terms.needed_N is not None and plan.leave_out:
            chosen_M = terms.needed_N.nonzero().flatten()
            self.chosen_M = chosen_M if len(chosen_M) < self.queries else None
        self.unit_MD = unit_ND if self.chosen_M is None else unit_ND[self.chosen_M]
        self.scaled_MD = terms.products.factor(self.unit_MD * terms.scale)
        self.keep_bytes = plan.keep_bytes if self.plain else 0
        self.limit = terms.scale * terms.cosine_limit
        self.bounds = plan.bounds(len(self.unit_MD), len(keys)) if len(self.unit_MD) else []
        self.kept: list[torch.Tensor | None] = []
        self.inverse_norms: list[torch.Tensor] = []
        self._room: torch.Tensor | None = None

    # Forward ------------------------------------------------------------------------------------------------

    def log_sums(self) -> torch.Tensor:
        """log sum exp over this rank's keys: [N], -inf where there is nothing to sum."""
        running_M = self.unit_MD.new_full((len(self.unit_MD),), 0.0 if self.plain else -torch.inf)
        keep_left = self.keep_bytes
        for start, stop in self.bounds:
            rows_CD = self.keys.rows(start, stop)
            self.inverse_norms.append(rows_CD.norm(dim=1).clamp_min_(1e-12).reciprocal_())
            keep_left -= len(self.unit_MD) * (stop - start) * self.unit_MD.element_size()
            keep = keep_left >= 0
            scaled_MC = self._scaled_cosines(len(self.inverse_norms) - 1, rows_CD, fresh=keep)
            if not self.plain:
                logits_MC = scaled_MC if self.rule is None else self.rule.logits(scaled_MC, self.chosen_M)
                running_M = torch.logaddexp(running_M, logits_MC.logsumexp(dim=1))
                continue
            running_M.add_(scaled_MC.exp_().sum(dim=1))
            if keep:
                self.kept.append(scaled_MC)
        self._room = None
        return self._to_all(running_M.log_() if self.plain else running_M, -torch.inf)

    def _scaled_cosines(self, number: int, rows_CD: torch.Tensor, fresh: bool) -> torch.Tensor:
        """s cos of a chunk, clamped, -inf for what is excluded: [M, c]; in shared room unless `fresh`."""
        start, stop = self.bounds[number]
        out = None if fresh else self._shared_room(stop - start)
        scaled_MC = self.terms.products.multiply(self.scaled_MD, rows_CD.T, out=out)
        scaled_MC.mul_(self.inverse_norms[number])
        if self.limit < torch.inf:
            scaled_MC.clamp_(-self.limit, self.limit)
        self.keys.exclude_(scaled_MC, start, stop, self.chosen_M)
        return scaled_MC

    def _shared_room(self, columns: int) -> torch.Tensor:
        if self._room is None:
            widest = max(stop - start for start, stop in self.bounds)
            self._room = self.unit_MD.new_empty(len(self.unit_MD) * widest)
        return self._room[: len(self.unit_MD) * columns].view(-1, columns)

    def _to_all(self, value_M: torch.Tensor, filling: float) -> torch.Tensor:
        """From the chosen queries to all of them."""
        if self.chosen_M is None:
            return value_M
        return value_M.new_full((self.queries, *value_M.shape[1:]), filling).index_copy_(0, self.chosen_M, value_M)

    # Backward -----------------------------------------------------------------------------------------------

    def gradients(self, grad_N: torch.Tensor, total_N: torch.Tensor, grad_rows_KD: torch.Tensor | None) -> torch.Tensor:
        """Fills `grad_rows_KD` and returns this rank's part of the gradient with respect to the queries, [N, D]."""
        total_N = torch.where(total_N.isinf(), 0.0, total_N)  # no key at all: every exponential is 0
        grad_M, total_M = (v if self.chosen_M is None else v[self.chosen_M] for v in (grad_N, total_N))
        factor_M1 = (grad_M * self.terms.scale * (-total_M).exp() if self.plain else grad_M * self.terms.scale)[:, None]
        products = self.terms.products
        weighted_MD = products.factor(self.unit_MD * factor_M1)
        grad_unit_MD = torch.zeros_like(self.unit_MD)
        if grad_rows_KD is not None and not self.bounds:  # no query is needed: nothing below would fill it
            grad_rows_KD.zero_()
        for number, (start, stop) in enumerate(self.bounds):
            rows_CD = self.keys.rows(start, stop)
            share_MC = products.factor(self._exponentials(number, rows_CD, total_M).mul_(self.inverse_norms[number]))
            products.add_product(grad_unit_MD, share_MC, rows_CD)
            if grad_rows_KD is not None:
                grad_CD = products.multiply(share_MC.T, weighted_MD, out=grad_rows_KD[start:stop])
                _remove_radial_(grad_CD, rows_CD, self.inverse_norms[number])
        self._room = None
        return self._to_all(grad_unit_MD.mul_(factor_M1), 0.0)

    def _exponentials(self, number: int, rows_CD: torch.Tensor, total_M: torch.Tensor) -> torch.Tensor:
        """d n / d(s cos) of a chunk but for the factor of each query, zero where clamped or excluded: [M, c]."""
        kept_MC = self.kept[number] if number < len(self.kept) else None
        if kept_MC is not None:
            self.kept[number] = None  # freed as we go; a second backward pass would compute it again
            return self._drop_clamped_(kept_MC)
        scaled_MC = self._scaled_cosines(number, rows_CD, fresh=False)
        if self.plain:
            return self._drop_clamped_(scaled_MC.exp_())
        logits_MC, slope_MC = scaled_MC, None
        if self.rule is not None:
            logits_MC = self.rule.logits(scaled_MC, self.chosen_M)
            slope_MC = self.rule.slope(scaled_MC, self.chosen_M)
        result_MC = (logits_MC - total_M[:, None]).exp_().masked_fill_(scaled_MC.abs() >= self.limit, 0.0)
        return result_MC if slope_MC is None else result_MC.mul_(slope_MC)

    def _drop_clamped_(self, exponential_MC: torch.Tensor) -> torch.Tensor:
        if self.limit == torch.inf:
            return exponential_MC
        low, high = math.exp(-self.limit + _SLACK), math.exp(self.limit - _SLACK)
        return torch.ops.aten.hardtanh_backward(exponential_MC, exponential_MC, low, high)


def _own_cosine(unit_ND, weight_KD, keys: KeyShard) -> torch.Tensor:
    """Cosines with the own rows that this rank holds, zero elsewhere: [N]."""
    own_N = keys.own_row()
    if own_N is None or weight_KD.shape[0] == 0:
        return unit_ND.new_zeros(unit_ND.shape[0])
    own_ND = F.normalize(weight_KD[own_N.clamp_min(0)])
    return (unit_ND * own_ND).sum(dim=1) * (own_N >= 0)


def _add_own_gradients(grad_unit_ND, grad_rows_KD, unit_ND, weight_KD, keys: KeyShard, grad_cosine_N) -> None:
    """Adds the gradients through the target cosines that this rank holds, in place."""
    own_N, visited_K = keys.own_row(), keys.visited_rows()
    assert own_N is not None
    row_N = own_N.clamp_min(0)
    raw_ND = weight_KD[row_N]
    inverse_N = raw_ND.norm(dim=1).clamp_min_(1e-12).reciprocal_()
    grad_N1 = (grad_cosine_N * (own_N >= 0))[:, None]
    grad_unit_ND.addcmul_(grad_N1, raw_ND * inverse_N[:, None])
    if grad_rows_KD is not None:
        place_N = row_N if visited_K is None else torch.searchsorted(visited_K, row_N).clamp_max_(len(keys) - 1)
        grad_rows_KD.index_add_(0, place_N, _remove_radial_(grad_N1 * unit_ND * inverse_N[:, None], raw_ND, inverse_N))


def _remove_radial_(grad_CD: torch.Tensor, raw_CD: torch.Tensor, inverse_norm_C: torch.Tensor) -> torch.Tensor:
    """Takes out the part along the raw rows, in place: the length of a row has no say in its cosines."""
    along_C = (grad_CD * raw_CD).sum(dim=1) * inverse_norm_C.square()
    return grad_CD.addcmul_(raw_CD, along_C[:, None], value=-1)
