"""Matrix products of the losses, in a precision.

`fp32` multiplies as PyTorch is configured to. `bf16` rounds the factors to bfloat16 and sums in float32: on GPUs with tensor
cores; on CPUs inside oneDNN if the hardware multiplies bfloat16 (AMX, AVX512-BF16), otherwise in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

HeadPrecision = Literal["fp32", "bf16"]


def cast(value: Tensor, precision: HeadPrecision) -> Tensor:
    """`value` as the left factor of products in `precision`; its type then determines how the products are computed."""
    return value.bfloat16() if precision == "bf16" and value.is_cuda else value


def multiply(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in float32, in `out` if given."""
    if left.dtype != torch.bfloat16:
        return torch.mm(left, right, out=out)
    product = torch.mm(left, right.bfloat16(), out_dtype=torch.float32)
    return product if out is None else out.copy_(product)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place."""
    if left.dtype != torch.bfloat16:
        total.addmm_(left, right)
    else:
        total.add_(multiply(left, right))


@contextmanager
def onednn_precision(precision: HeadPrecision, device: torch.device) -> Iterator[None]:
    """A context in which oneDNN's products, on the CPU, have this precision."""
    if precision != "bf16" or device.type != "cpu":
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
