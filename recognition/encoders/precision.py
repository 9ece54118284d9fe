"""Which number format the encoder computes in."""

from __future__ import annotations

from pathlib import Path

import torch

from utils.errors import UserError


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast shall use for a config's `precision`; None for plain fp32.

    "auto": bf16 where the hardware multiplies it natively (emulated bf16 is slower than fp32), else fp32.
    """
    if precision == "auto":
        return torch.bfloat16 if _native_bf16(device) else None
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU; use bf16, fp32 or auto on the CPU")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text()
