"""Identities that may be one person under two labels, in data sets whose people may overlap: never negatives for each other.

Shapes: C classes, P groups of classes, N labels, c keys of a chunk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


class PossiblySame(nn.Module):
    """groups_C: uint8, the group of each class. related_PP: bool, symmetric: classes of the two groups may be the same person.

    Memory: a byte per class, on each rank. It holds no state: nothing of it is saved.

    >>> import numpy as np, torch
    >>> two_sets = PossiblySame(np.array([0, 0, 1], np.uint8), np.array([[False, True], [True, False]]))
    >>> two_sets.excluded(torch.tensor([0]), torch.tensor([0, 1, 2]))
    tensor([[False, False,  True]])
    """

    groups_C: torch.Tensor
    related_PP: torch.Tensor

    def __init__(self, groups_C: npt.NDArray[np.uint8], related_PP: npt.NDArray[np.bool_]):
        super().__init__()
        groups = len(related_PP)
        # Labels below 0, of images without an identity, index from the end: one more group, which is related to none.
        padded = np.pad(groups_C, (0, 1), constant_values=groups)
        self.register_buffer("groups_C", torch.from_numpy(padded), persistent=False)
        self.register_buffer("related_PP", torch.from_numpy(np.pad(related_PP, (0, 1))), persistent=False)

    def excluded(self, label_N: torch.Tensor, key_label_C: torch.Tensor) -> torch.Tensor:
        """Which keys are no negatives for which labels: bool [N, c]. label_N, key_label_C: int64."""
        group_N, group_C = (self.groups_C[label.clamp_min(-1)].long() for label in (label_N, key_label_C))
        return self.related_PP[group_N][:, group_C]
