"""The features that a loss needs: those with a share in it. The quality partition leaves the others out."""

from __future__ import annotations

import torch

from losses.log_sum_exp import ChunkPlan


class Selection:
    """The M of N features whose share in the loss is not zero; all N where `plan.skip_unneeded` is off.

    share_N: float [N], equal on all ranks. plan: None chooses by device.
    """

    def __init__(self, share_N: torch.Tensor, plan: ChunkPlan | None):
        plan = plan or ChunkPlan.for_device(share_N.device)
        self.count, self.chosen_M = len(share_N), None
        if plan.skip_unneeded:
            chosen_M = (share_N > 0).nonzero().flatten()
            self.chosen_M = chosen_M if len(chosen_M) < self.count else None

    def take(self, *values_N: torch.Tensor) -> list[torch.Tensor]:
        """The selected entries of tensors [N, ...], differentiable."""
        return list(values_N) if self.chosen_M is None else [value_N.index_select(0, self.chosen_M) for value_N in values_N]

    def sum(self, value_M: torch.Tensor) -> torch.Tensor:
        """The sum over all N features, of which those left out count as zero; summed in the order of the whole batch."""
        if self.chosen_M is None:
            return value_M.sum()
        return value_M.new_zeros(self.count).index_copy(0, self.chosen_M, value_M).sum()
