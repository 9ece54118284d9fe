"""Keeps and puts back state that a forward pass changes: BatchNorm's running statistics, the quality statistics.

Used where a forward pass must leave no trace: in a skipped step (recognition/step.py), and in the additional forward pass of
the diagnostics (recognition/monitor/diagnostics.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from recognition.freezing import FrozenBatchNorm

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Snapshot:
    """The values of some tensors at the last `take` (the constructor takes one). Needs few kernels for many tensors."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        self._groups = list(by_type.values())
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        self._copies = [_flat(group) for group in self._groups]

    def restore(self) -> None:
        for group, copy in zip(self._groups, self._copies, strict=True):
            _write(group, copy)

    @torch.no_grad()
    def restore_unless(self, keep: torch.Tensor) -> None:
        """Restore if `keep` (bool scalar on the device) is false. The host does not wait for it."""
        for group, copy in zip(self._groups, self._copies, strict=True):
            _write(group, torch.where(keep, _flat(group), copy))


@torch.no_grad()
def _write(tensors: list[torch.Tensor], flat: torch.Tensor) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def running_statistics(*encoders: nn.Module | None) -> list[torch.Tensor]:
    """The running statistics of all BatchNorm layers."""
    modules = [module for encoder in encoders if encoder is not None for module in encoder.modules()]
    return [buffer for module in modules if isinstance(module, _BatchNorm) for buffer in module.buffers()]


@contextlib.contextmanager
def batch_statistics(encoder: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm normalises with the batch's own statistics (unless it is frozen), as in training; dropout and
    the like are off.

    Afterwards each module is in its former mode, and the running statistics have their former values, bit for bit.
    """
    before, modes = Snapshot(running_statistics(encoder)), [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    for module, _ in modes:
        if isinstance(module, _BatchNorm) and not isinstance(module, FrozenBatchNorm):
            module.training = True
    try:
        yield
    finally:
        before.restore()
        for module, mode in modes:
            module.training = mode
