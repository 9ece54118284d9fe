"""Images in, features out: normalisation, channel order and precision.

Shapes: n images, D embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from losses.products import HeadPrecision
from recognition.encoders.card import MEAN, STD
from utils.errors import UserError

_AUTOCAST_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def to_input(images_nHWC: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Normalise images on the device: uint8 [n, H, W, 3] on the host -> float32 [n, 3, H, W] in [-1, 1], channels-last.

    The transfer to the device moves bytes, a quarter of the floats' size.
    """
    images = images_nHWC.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return images.to(torch.float32).sub_(MEAN).div_(STD)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The number format of autocast for a configuration's `precision`; None for plain fp32.

    "auto" is bf16 if the hardware multiplies it natively (emulated bf16 is slower than fp32), else fp32.
    Raises UserError for fp16 on the CPU.
    """
    if precision == "auto":
        precision = "bf16" if _has_native_bf16(device) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU; use bf16, fp32 or auto on the CPU")
    return _AUTOCAST_TYPES[precision]


def product_precision(head_precision: Literal["auto", "fp32", "bf16"], precision: str, device: torch.device) -> HeadPrecision:
    """The number format of the classifier's and the queue's products. "auto" is bf16 if the encoder computes in bf16, by its
    `precision`, and the hardware multiplies it natively, else fp32."""
    if head_precision != "auto":
        return head_precision
    return "bf16" if autocast_type(precision, device) == torch.bfloat16 and _has_native_bf16(device) else "fp32"


def _has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 numbers itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text()


class Embedder:
    """uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU, without gradient.

    channel_order: RGB or BGR, as the encoder expects it. autocast: from `autocast_type`.
    """

    def __init__(self, encoder: nn.Module, device: torch.device, channel_order: str, autocast: torch.dtype | None):
        self.encoder, self.device, self.channel_order, self.autocast = encoder, device, channel_order, autocast

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return next(name for name, dtype in _AUTOCAST_TYPES.items() if dtype == self.autocast)

    @torch.inference_mode()
    def __call__(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        return self.features(images_nHWC).cpu()

    @torch.no_grad()
    def features(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        """The same on the device, from images that may be there already."""
        inputs = to_input(images_nHWC, self.device)
        if self.channel_order == "BGR":
            inputs = inputs.flip(1)
        training = self.encoder.training
        self.encoder.eval()
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            features = self.encoder(inputs)
        self.encoder.train(training)
        return features.float()
