"""Memory that is used again in each step: new memory costs time, because the kernel clears it when it is first used."""

from __future__ import annotations

import sys

import numpy as np
import torch


class ReusedMemory:
    """Lends the same memory on the CPU each time, unless a tensor that was made in it, or a view of one, still exists.

    On other devices, whose allocators keep freed memory themselves, every tensor is a new one.

    >>> memory, like = ReusedMemory(), torch.empty(2)
    >>> first = memory.like(like)
    >>> second = memory.like(like)  # not the memory of `first`, which is in use
    >>> del first, second
    >>> address = memory.like(like).data_ptr()
    >>> memory.like(like).data_ptr() == address
    True
    """

    def __init__(self):
        self._array: np.ndarray | None = None  # NumPy's, because it counts who uses it

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor of the same shape, dtype and device, with any content."""
        if tensor.device != torch.device("cpu"):
            return torch.empty_like(tensor, memory_format=torch.contiguous_format)
        # Two references, the attribute and the argument of getrefcount, mean that no tensor uses the memory.
        if self._array is None or sys.getrefcount(self._array) > 2 or not _fits(self._array, tensor):
            self._array = torch.empty_like(tensor, memory_format=torch.contiguous_format).numpy()
        return torch.from_numpy(self._array)


def _fits(array: np.ndarray, tensor: torch.Tensor) -> bool:
    return array.shape == tensor.shape and torch.from_numpy(array).dtype == tensor.dtype
