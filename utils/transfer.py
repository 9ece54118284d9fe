"""Copies between host and device for which the host does not wait."""

from __future__ import annotations

import torch


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a host tensor to the device, ordered before what is queued next; on the CPU, the tensor itself.

    A copy from ordinary memory may wait for all that the GPU has to do. So the values pass through page-locked memory, which
    PyTorch reuses only when the copy is done.
    """
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


class Later:
    """A device tensor that the host will read later. The copy is queued at once, without waiting."""

    def __init__(self, value: torch.Tensor):
        self._value, self._copied = value, None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> torch.Tensor:
        """The tensor on the host. Waits until the device has computed it, but not for what was queued afterwards."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value
