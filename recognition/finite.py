"""Whether a step's numbers were finite, decided on the device, and how a step that was not fit is undone there.

The host queues a step's work without ever waiting for it, so it cannot branch on what came out. The decision is a tensor:
the optimiser moves nothing where it says so, and state that a step changes on its way is put back through `torch.where`.
What the host counts itself is put back when it reads the verdict, one step later.

Shapes: W ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from utils.transfer import Later


class Verdict:
    """fit_W, sound_W: of each rank, whether its features and its gradients were finite; bool on the device, equal on all ranks.

    good: bool scalar on the device: the step may be learned from.
    """

    def __init__(self, fit_W: torch.Tensor, sound_W: torch.Tensor):
        both_2W = torch.stack([fit_W, sound_W])
        self.good = both_2W.all()
        self._both_2W = Later(both_2W)

    def read(self) -> str:
        """Empty, or on which ranks what was not finite. Waits for the step's end."""
        for what, good_W in zip(("features", "gradients"), self._both_2W.read().tolist(), strict=True):
            ranks = [str(rank) for rank, good in enumerate(good_W) if not good]
            if ranks:
                return f"{what} of rank {', '.join(ranks)} are not finite"
        return ""


class Refusal:
    """The verdict over a step that the host itself declined, known at once."""

    def __init__(self, why: str, device: torch.device):
        self.good = torch.zeros((), dtype=torch.bool, device=device)
        self._why = why

    def read(self) -> str:
        return self._why


class DeviceState:
    """Tensors that a step changes outside the optimiser (BatchNorm's running statistics, quality statistics): remembered before
    the step, and put back after it unless it was good. A few kernels, however many tensors there are."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        self._groups = list(by_type.values())
        self._copies = [_flat(group) for group in self._groups]

    @torch.no_grad()
    def remember(self) -> None:
        self._copies = [_flat(group) for group in self._groups]

    @torch.no_grad()
    def restore_unless(self, good: torch.Tensor) -> None:
        """good: bool scalar on the device."""
        for group, copy in zip(self._groups, self._copies, strict=True):
            kept = torch.where(good, _flat(group), copy)
            parts = kept.split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [part.view(tensor.shape) for part, tensor in zip(parts, group, strict=True)])


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
