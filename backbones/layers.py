"""What several encoders share: a float32 island under autocast, activation checkpointing, PReLU, the strided shortcut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

IMAGE_SIZE = 112  # side of the input in pixels; utils.images.FACE_SIZE, which this package does not import


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast is off for the device of `like`. The caller casts its inputs with `.float()`.

    The context is entered only if autocast is on, so that exporters, which trace the module, see no context at all.
    """
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if kind != "meta" and torch.is_autocast_enabled(kind) else nullcontext()


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """A context in which BatchNorm normalises by the batch, as in training, but keeps its running statistics and counter.

    Activation checkpointing requires the same saved tensors in both passes; hence a momentum of zero instead of
    `track_running_stats=False`.
    """
    kept = [
        (norm, norm.momentum, counter)
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and (counter := norm.num_batches_tracked) is not None
    ]
    for norm, _, counter in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros_like(counter)
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter


class PReLU(nn.PReLU):
    """nn.PReLU, with a backward pass for CPUs that takes a third to a half of the time of PyTorch's (docs/RESULTS.md)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and len(self.weight) == x.shape[1]:
            return _PReLU.apply(x, self.weight)
        return super().forward(x)


class _PReLU(torch.autograd.Function):
    """`apply(x, weight)` -> x where it is positive, weight * x elsewhere: [B, C, ...]."""

    BYTES_AT_ONCE = 1 << 20  # of images, so that temporary copies stay in a core's cache

    @staticmethod
    def forward(ctx, x, weight_C):
        ctx.save_for_backward(x, weight_C)
        return F.prelu(x, weight_C.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight_C = ctx.saved_tensors
        slope = weight_C.to(grad.dtype).view(-1, *[1] * (x.dim() - 2))
        grad_x, grad_weight_C = torch.empty_like(x), torch.zeros_like(weight_C)
        at_once = max(1, _PReLU.BYTES_AT_ONCE * len(x) // max(x.nbytes, 1))
        for part, grad_part, out in zip(x.split(at_once), grad.split(at_once), grad_x.split(at_once), strict=True):
            torch.ops.aten.threshold_backward.grad_input(grad_part, part, 0, grad_input=out)  # the gradient where x > 0
            below = grad_part - out  # and elsewhere
            out.addcmul_(below, slope)
            grad_weight_C += below.mul_(part).sum([d for d in range(x.dim()) if d != 1], dtype=weight_C.dtype)
        return grad_x, grad_weight_C


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, checkpointing: bool) -> Tensor:
    """Apply `blocks` to `x` in turn; with `checkpointing`, the backward pass recomputes the activations inside each block.

    The recomputation draws the same dropout masks and does not update BatchNorm's running statistics a second time.
    """
    for block in blocks:
        x = _checkpointed(block, x) if checkpointing and torch.is_grad_enabled() else block(x)
    return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics(block)))


def with_norm_of(map_BN: Tensor, features_BD: Tensor) -> Tensor:
    """Give the features the norms of the maps that they come from, at the features' scale: [B, N], [B, D] -> [B, D].

    The losses train directions only, so the norm of the fully connected layer's output is arbitrary after short training, while
    the map's separates sharp faces from degraded ones (docs/EXPERIMENTS.md). The norm has no gradient.
    """
    norm_B1 = torch.linalg.vector_norm(map_BN.detach(), dim=1, keepdim=True)
    return F.normalize(features_BD) * norm_B1 * (features_BD.shape[1] / map_BN.shape[1]) ** 0.5


def strided_shortcut(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """1x1 convolution and BatchNorm: [B, c_in, H, W] -> [B, c_out, H / stride, W / stride]."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
