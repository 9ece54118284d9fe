"""Optimisers, gradient arithmetic that all ranks agree on, and loss scaling.

With partial FC a step sees only some rows of the classifier. A sparse gradient names those rows: they and their rows of the
optimiser's state move as the dense optimiser would move them; all other rows, weight decay and momentum included, stay bit
for bit as they were, unless `move_all_rows` is set. Dense gradients take PyTorch's own path.

A gradient norm counts every parameter of the world once: the encoder's, which are equal on all ranks unless it is sharded, and,
unless it is that of the encoder alone, all shards of the classifier.

Shapes: W ranks, K rows of a parameter, S rows in a sparse gradient (increasing, each once), D columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.sgd import sgd

from losses.sharded_softmax import streamed_gradient
from recognition.fine_tuning import rate_factors
from recognition.sharding import is_sharded, own_rows
from utils.config import Config
from utils.dist import gather_stack

_NORMALISATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_ROWS_AT_A_TIME = {"cpu": 4096, "cuda": 1 << 16}  # bounds the temporary copies


def build_optimiser(config: Config, encoder: nn.Module, head: nn.Module) -> RowOptimiser:
    """SGD with momentum, as in the paper, or AdamW."""
    groups = parameter_groups(encoder, head, config.weight_decay, config.decay_norms, config.layer_decay)
    optimiser: RowOptimiser
    if config.optimizer == "adamw":
        optimiser = RowAdamW(groups, lr=config.lr, fused=True)
    else:
        optimiser = RowSGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    optimiser.move_all_rows = config.unsampled_rows == "moved"
    return optimiser


def parameter_groups(
    encoder: nn.Module, head: nn.Module, weight_decay: float, decay_norms: bool, layer_decay: float = 1.0
) -> list[dict]:
    """Two groups: with weight decay, and without it (unless `decay_norms`, all parameters of normalisation layers).

    With `layer_decay` < 1, two per stage of the encoder, from the output on. rate: factor of the group's learning rate.
    """
    undecayed = {
        id(parameter)
        for module in encoder.modules()
        if isinstance(module, _NORMALISATION) and not decay_norms
        for parameter in module.parameters(recurse=False)
    }
    factors = rate_factors(encoder, layer_decay) if layer_decay < 1 else {}
    rates = {id(p): factors.get(name, 1.0) for name, p in encoder.named_parameters()} | {id(p): 1.0 for p in head.parameters()}
    parameters = [p for module in (encoder, head) for p in module.parameters() if p.requires_grad]
    groups = []
    for rate in sorted(set(rates.values()), reverse=True):
        own = [p for p in parameters if rates[id(p)] == rate]
        groups += [
            {"params": [own_rows(p) for p in own if id(p) not in undecayed], "weight_decay": weight_decay, "rate": rate},
            {"params": [own_rows(p) for p in own if id(p) in undecayed], "weight_decay": 0.0, "rate": rate},
        ]
    return groups


# ------------------------------------------------------------------------------------------------ gradients


class GradientNorm:
    """L2 norm of all gradients of the world, and whether each rank's are finite.

    with_head: include the head's gradients in the norm. Whether they are finite is checked in any case. finite_W: bool [W], on
    the device, equal on all ranks. The encoder's gradients are sums over the ranks: if one rank's are not finite, no rank's are.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, with_head: bool = True):
        self._streamed = [g for g in map(streamed_gradient, head.parameters()) if g is not None] if with_head else []
        self._shared = torch.nn.utils.get_total_norm(_gradients(encoder)).double().square()
        if is_sharded(encoder):
            self._shared = gather_stack(self._shared).sum()
        sharded = torch.nn.utils.get_total_norm(_gradients(head)).double().square()
        unknown = [torch.where(g.finite, 0.0, torch.inf) for g in map(streamed_gradient, head.parameters()) if g is not None]
        sharded_W = gather_stack(sum(unknown, sharded))
        self.finite_W = (self._shared + sharded_W).isfinite()
        self._squared = self._shared + sharded_W.sum() if with_head else self._shared

    def value(self) -> torch.Tensor:
        """The norm, float64 scalar on the device, equal on all ranks. Collective. A streamed gradient is computed for it, unless
        the optimiser has applied it."""
        sharded = [gradient.squared_norm() for gradient in self._streamed]
        return (self._squared + gather_stack(torch.stack(sharded)).sum() if sharded else self._squared).sqrt()


def coalesce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up, in place, what several backward passes of a step contributed to the same row of a sparse gradient."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse and not parameter.grad.is_coalesced():
            parameter.grad = parameter.grad.coalesce()


def scale_gradients(parameters: Iterable[nn.Parameter], factor: torch.Tensor | float) -> None:
    """Multiply all gradients in place by a number or by a scalar on the device."""
    for parameter in parameters:
        if parameter.grad is not None:
            _values(parameter.grad).mul_(factor)
        if (streamed := streamed_gradient(parameter)) is not None:
            streamed.factors.append(factor)


def _gradients(module: nn.Module) -> list[torch.Tensor]:
    return [_values(p.grad) for p in map(own_rows, module.parameters()) if p.grad is not None]


def _values(gradient: torch.Tensor) -> torch.Tensor:
    """The numbers of a gradient; of a sparse one, those of its rows."""
    if not gradient.is_sparse:
        return gradient
    assert gradient.is_coalesced(), "call coalesce_gradients before anything that reads gradients"
    return gradient.values()


# ------------------------------------------------------------------------------------------------ optimisers


class RowOptimiser(torch.optim.Optimizer):
    """Mixin that keeps sparse gradients away from PyTorch's optimiser and passes them to `_move_rows`.

    move_all_rows: treat them as dense gradients instead, zero in the other rows, which weight decay and momentum then move too.
    """

    move_all_rows = False
    found_inf: torch.Tensor | None = None  # PyTorch's name: its fused kernels change nothing if it is 1

    @torch.no_grad()
    def step_if(self, finite: torch.Tensor) -> None:
        """`step`, but without any effect if `finite` (bool scalar on the device) is false. The host does not wait for it."""
        self.found_inf = 1 - finite.float()
        try:
            self.step()
        finally:
            self.found_inf = None

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Apply dense and sparse gradients. `closure` is not supported."""
        if closure is not None:
            raise ValueError("an optimiser with sampled rows takes no closure")
        sparse: list[tuple[dict, nn.Parameter, torch.Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse and self.move_all_rows:
                    parameter.grad = parameter.grad.to_dense()
                if parameter.grad is not None and parameter.grad.is_sparse:
                    sparse.append((group, parameter, parameter.grad.coalesce()))
                    parameter.grad = None
                elif parameter.grad is not None:
                    self._make_dense_state(group, parameter, self.state[parameter])
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if streamed_gradient(parameter) is not None:
                    self._move_streamed(group, parameter)
        for group, parameter, gradient in sparse:
            parameter.grad = gradient
            state = self.state[parameter]
            self._make_state(group, parameter, state)  # also on a rank without any row: checkpoints are collective
            rows, values = gradient.indices()[0], gradient.values()
            at_a_time = _ROWS_AT_A_TIME[parameter.device.type]
            for start in range(0, len(rows), at_a_time):
                part = slice(start, start + at_a_time)
                self._move_rows(group, parameter, state, rows[part], values[part])

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for parameter in group["params"]:
                if streamed_gradient(parameter) is not None:
                    parameter.streamed_gradient = None

    def _move_streamed(self, group: dict, parameter: nn.Parameter) -> None:
        raise NotImplementedError

    def _make_dense_state(self, group: dict, parameter: nn.Parameter, state: dict) -> None:
        """Create the state that PyTorch's optimiser would leave undefined if the first step is skipped."""

    def _make_state(self, group: dict, parameter: nn.Parameter, state: dict) -> None:
        raise NotImplementedError

    def _move_rows(self, group: dict, parameter: nn.Parameter, state: dict, rows, gradient) -> None:
        raise NotImplementedError

    def _put(self, target: torch.Tensor, rows: torch.Tensor, moved: torch.Tensor) -> None:
        """target[rows] = moved, unless the step is skipped."""
        if self.found_inf is not None:
            moved = torch.where(self.found_inf > 0, target.index_select(0, rows), moved)
        target.index_copy_(0, rows, moved)


class RowSGD(RowOptimiser, torch.optim.SGD):
    """SGD with momentum (no dampening, no Nesterov). A row that is sampled for the first time starts without momentum."""

    def _make_state(self, group: dict, parameter: nn.Parameter, state: dict) -> None:
        if group["momentum"] and state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)

    _make_dense_state = _make_state  # PyTorch allocates it uninitialised, and a skipped first step would leave it so

    def _move_streamed(self, group: dict, parameter: nn.Parameter) -> None:
        """Move each chunk of rows while its gradient is in the cache, as PyTorch's fused optimiser would move all of them."""
        state, gradient = self.state[parameter], streamed_gradient(parameter)
        assert gradient is not None
        self._make_state(group, parameter, state)
        for rows, grad_CD in gradient.chunks():
            buffer = state["momentum_buffer"][rows] if group["momentum"] else None
            sgd(
                [parameter[rows]],
                [grad_CD],
                [buffer],
                fused=True,
                found_inf=self.found_inf,
                **{key: group[key] for key in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")},
            )

    def _move_rows(self, group: dict, parameter: nn.Parameter, state: dict, rows, gradient) -> None:
        row_SD = parameter.index_select(0, rows)
        moved_SD = gradient.add(row_SD, alpha=group["weight_decay"])
        if group["momentum"]:
            moved_SD.add_(state["momentum_buffer"].index_select(0, rows), alpha=group["momentum"])
            self._put(state["momentum_buffer"], rows, moved_SD)
        self._put(parameter, rows, row_SD.sub_(moved_SD, alpha=float(group["lr"])))


class RowAdamW(RowOptimiser, torch.optim.AdamW):
    """AdamW. Each row counts its own steps (`row_step`, float32 [K]), so that its bias corrections fit the gradients that it
    has seen."""

    def _make_state(self, group: dict, parameter: nn.Parameter, state: dict) -> None:
        if "row_step" not in state:
            state["row_step"] = torch.zeros(len(parameter), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def _move_rows(self, group: dict, parameter: nn.Parameter, state: dict, rows, gradient) -> None:
        (rate, rate_sq), learning_rate = group["betas"], float(group["lr"])
        step_S1 = (state["row_step"].index_select(0, rows) + 1)[:, None]
        mean_SD = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - rate)
        square_SD = state["exp_avg_sq"].index_select(0, rows).mul_(rate_sq).addcmul_(gradient, gradient, value=1 - rate_sq)
        for name, value in (("row_step", step_S1[:, 0]), ("exp_avg", mean_SD), ("exp_avg_sq", square_SD)):
            self._put(state[name], rows, value)
        corrected_SD = mean_SD / -torch.expm1(step_S1 * math.log(rate))
        root_SD = (square_SD / -torch.expm1(step_S1 * math.log(rate_sq))).sqrt_().add_(group["eps"])
        row_SD = parameter.index_select(0, rows).mul_(1 - learning_rate * group["weight_decay"])
        self._put(parameter, rows, row_SD.addcdiv_(corrected_SD, root_SD, value=-learning_rate))


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al., ICLR 2018, https://arxiv.org/abs/1710.03740).

    It follows whether the gradients of ALL ranks are finite, so it is equal on all ranks. Its state, `value` (float32) and
    `good_steps` (int32), consists of scalar tensors on the device. With `enabled=False` the scale stays 1.
    """

    GROWTH_INTERVAL = 2000

    def __init__(self, enabled: bool, device: torch.device | str = "cpu"):
        self.enabled = enabled
        self.value = torch.full((), 65536.0 if enabled else 1.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, features_finite: torch.Tensor, gradients_finite: torch.Tensor) -> None:
        """Halve the scale after an overflow, double it after GROWTH_INTERVAL good steps (arguments: bool scalars).

        Non-finite features do not change it: the scale enters only after them.
        """
        if not self.enabled:
            return
        good_steps = torch.where(gradients_finite, self.good_steps + 1, 0)
        long_enough = good_steps == self.GROWTH_INTERVAL
        value = torch.where(long_enough, self.value * 2, self.value)
        value = torch.where(gradients_finite, value, (self.value / 2).clamp_min(1.0))
        self.value.copy_(torch.where(features_finite, value, self.value))
        self.good_steps.copy_(torch.where(features_finite, good_steps.masked_fill(long_enough, 0), self.good_steps))
