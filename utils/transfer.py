"""Between host and device without the host waiting."""

from __future__ import annotations

import torch


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device, ordered before what is queued next; on the CPU the tensor itself.

    From ordinary memory a copy may wait for all that the GPU has to do, so the numbers go through page-locked memory (which
    PyTorch keeps for reuse, and frees for it only when the copy is done).
    """
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


class Later:
    """A device's tensor, to be read by the host at a later time. The copy is queued at once, and nobody waits for it."""

    def __init__(self, value: torch.Tensor):
        self._value, self._copied = value, None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> torch.Tensor:
        """The tensor on the host; waits until the device has computed it (and for nothing that was queued afterwards)."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value
