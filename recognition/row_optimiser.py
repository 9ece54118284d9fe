"""Optimisers for a classifier of which a step sees some rows only (partial FC).

A sparse gradient names the rows that took part. Those rows, and their rows of the optimiser's state, move as the dense
optimiser would move them; all others, weight decay and momentum included, stay bit for bit as they were. Dense gradients
take PyTorch's own way.

Shapes: K rows of a parameter, S rows that a gradient holds (increasing, each once), D columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

_ROWS_AT_A_TIME = 4096  # bounds the temporary copies


class RowOptimiser(torch.optim.Optimizer):
    """Hides sparse gradients from PyTorch's optimiser while it steps, and hands them to `_move_rows`."""

    found_inf: torch.Tensor | None = None  # PyTorch's name: the fused kernels look at it, and do nothing where it is 1

    @torch.no_grad()
    def step_if(self, good: torch.Tensor) -> None:
        """`step`, which changes neither parameters nor state where `good` (a bool scalar on the device) is false. Nobody waits
        to know."""
        self.found_inf = 1 - good.float()
        try:
            self.step()
        finally:
            self.found_inf = None

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """One step over dense and sparse gradients. `closure` is not supported."""
        if closure is not None:
            raise ValueError("an optimiser with sampled rows takes no closure")
        apart: list[tuple[dict, nn.Parameter, torch.Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    apart.append((group, parameter, parameter.grad.coalesce()))
                    parameter.grad = None
                elif parameter.grad is not None:
                    self._make_dense_state(group, parameter, self.state[parameter])
        super().step()
        for group, parameter, gradient in apart:
            parameter.grad = gradient
            state = self.state[parameter]
            self._make_state(group, parameter, state)  # on every rank, also one without a row: checkpoints are collective
            rows, values = gradient.indices()[0], gradient.values()
            for start in range(0, len(rows), _ROWS_AT_A_TIME):
                part = slice(start, start + _ROWS_AT_A_TIME)
                self._move_rows(group, parameter, state, rows[part], values[part])

    def _make_dense_state(self, group: dict, parameter: nn.Parameter, state: dict) -> None:
        """What PyTorch's optimiser would not make itself in a first step that is skipped."""

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

    _make_dense_state = _make_state  # PyTorch's would be memory as it is found, which a skipped first step leaves so

    def _move_rows(self, group: dict, parameter: nn.Parameter, state: dict, rows, gradient) -> None:
        row_SD = parameter.index_select(0, rows)
        moved_SD = gradient.add(row_SD, alpha=group["weight_decay"])
        if group["momentum"]:
            moved_SD.add_(state["momentum_buffer"].index_select(0, rows), alpha=group["momentum"])
            self._put(state["momentum_buffer"], rows, moved_SD)
        self._put(parameter, rows, row_SD.sub_(moved_SD, alpha=float(group["lr"])))


class RowAdamW(RowOptimiser, torch.optim.AdamW):
    """AdamW. Each row counts its own steps (`row_step`, float32 [K]), so that the corrections of a row's averages fit what
    that row has seen."""

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
