"""Copies batches from the loader's shared memory to the device while the device computes the previous step.

On a GPU the slots are page-locked once, and a separate stream copies batch i+1 during the step of batch i. A slot goes back to
its worker only when its copy is complete. On the CPU batches are used in place.

Shapes: V views, B images of this rank.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from recognition.data.batch import Batch
from recognition.data.records.format import RecordError
from utils.errors import UserError


@dataclass(frozen=True)
class DeviceBatch:
    """images_VBHWC: uint8 on the device. labels_B: int64 on the host, -1 in the rows of skipped records."""

    images_VBHWC: torch.Tensor
    labels_B: torch.Tensor
    indices_B: np.ndarray
    skipped: tuple[RecordError, ...]


class Prefetcher:
    """`prefetcher(batches)` yields the same batches on `device`.

    slots: the loader's shared memory. keep: copy the images on a CPU too. Then a batch stays valid after the next one has been
    requested, as it always does on a GPU; otherwise only until then.
    """

    def __init__(self, device: torch.device, slots: list[np.ndarray], keep: bool = False):
        self.device, self.keep = device, keep
        self._pinned = slots if device.type == "cuda" else []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for slot in self._pinned:
            status = int(torch.cuda.cudart().cudaHostRegister(slot.ctypes.data, slot.nbytes, 0))
            if status:
                raise UserError(
                    f"{slot.nbytes} bytes of loader memory cannot be page-locked (CUDA error {status}); lower num_workers or "
                    "batch_size, or raise the container's memory limit"
                )

    def __call__(self, batches: Generator[Batch, None, None]) -> Generator[DeviceBatch, None, None]:
        try:
            if self._stream is None:
                yield from map(self._in_place, batches)
            else:
                yield from self._copied(batches, self._stream)
        finally:
            batches.close()

    def close(self) -> None:
        """Unlock the slots. Call this before closing the loader."""
        for slot in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(slot.ctypes.data)
        self._pinned = []

    def _in_place(self, batch: Batch) -> DeviceBatch:
        images = torch.from_numpy(batch.images_VBHWC)
        images = images.clone() if self.keep else images
        return DeviceBatch(images, torch.from_numpy(batch.labels_B), batch.indices_B, batch.skipped)

    def _copied(self, batches: Generator[Batch, None, None], stream: torch.cuda.Stream) -> Generator[DeviceBatch, None, None]:
        waiting: tuple[DeviceBatch, torch.cuda.Event] | None = None
        for batch in batches:
            with torch.cuda.stream(stream):
                images = torch.from_numpy(batch.images_VBHWC).to(self.device, non_blocking=True)
                copied = stream.record_event()
            moved = DeviceBatch(images, torch.from_numpy(batch.labels_B), batch.indices_B, batch.skipped)
            if waiting is not None:
                yield self._make_available(*waiting)
            copied.synchronize()  # the previous step is queued already; now the slot may be reused
            waiting = moved, copied
        if waiting is not None:
            yield self._make_available(*waiting)

    def _make_available(self, batch: DeviceBatch, copied: torch.cuda.Event) -> DeviceBatch:
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(copied)
        batch.images_VBHWC.record_stream(computing)  # allocated on the other stream: keeps its memory until this one is done
        return batch
