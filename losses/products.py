"""Matrix products of the sharded losses, in the precision that the configuration names.

`fp32` multiplies as PyTorch is told to. `bf16` rounds the factors to bfloat16 and sums in float32: results, and everything
computed from them (exponentials, sums, norms, gradients), stay float32. On GPUs that is a tensor-core product with float32
output; on CPUs oneDNN does the same inside where the hardware multiplies bfloat16 (AMX, AVX512-BF16), and elsewhere it
computes in float32, which is only more exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

HeadPrecision = Literal["fp32", "bf16"]


class Products:
    """[n, k] x [k, m] products of one precision. `factor` prepares an operand that is used several times."""

    def __init__(self, precision: HeadPrecision = "fp32"):
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision of the head must be 'fp32' or 'bf16', not {precision!r}")
        self.precision = precision

    def _rounds(self, value: torch.Tensor) -> bool:
        return self.precision == "bf16" and value.is_cuda

    def factor(self, value: torch.Tensor) -> torch.Tensor:
        """`value` as an operand of `multiply` and `add_product`."""
        return value.bfloat16() if self._rounds(value) else value

    def multiply(self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """left @ right; `out` receives the result where it is given."""
        if self._rounds(left):
            product = torch.mm(self.factor(left), self.factor(right), out_dtype=torch.float32)
            return product if out is None else out.copy_(product)
        with self._on_cpu():
            return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)

    def add_product(self, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """total += left @ right, in place; `total` is float32."""
        if self._rounds(left):
            total.add_(torch.mm(self.factor(left), self.factor(right), out_dtype=torch.float32))
            return
        with self._on_cpu():
            total.addmm_(left, right)

    @contextlib.contextmanager
    def _on_cpu(self) -> Iterator[None]:
        if self.precision == "fp32":
            yield
            return
        setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = setting.fp32_precision
        setting.fp32_precision = "bf16"
        try:
            yield
        finally:
            setting.fp32_precision = before
