"""BatchNorm with the statistics of all ranks, on any device.

PyTorch's SyncBatchNorm runs on GPUs only. This one computes the same with a differentiable all-reduce, for training and tests on
CPUs.
"""

from __future__ import annotations

import torch
from torch import nn

from utils.dist import sum_over_ranks

_BatchNorm = nn.modules.batchnorm._BatchNorm


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm synchronised over the ranks: PyTorch's on GPUs, else `HostSyncBatchNorm`.

    State-dict names do not change.
    """
    if next(module.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return _convert(module)


def _convert(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm):
        synced = HostSyncBatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        synced.load_state_dict(module.state_dict())
        for name, parameter in module.named_parameters(recurse=False):
            synced.get_parameter(name).requires_grad_(parameter.requires_grad)
        return synced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module


class HostSyncBatchNorm(_BatchNorm):
    """BatchNorm1d and BatchNorm2d over the batch of all ranks, with the same parameters and buffers.

    Sums are float64: a difference of float32 sums would lose digits and depend on the number of ranks.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, not {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        value = input.double()
        count = torch.tensor([float(value.numel() // value.shape[1])], dtype=torch.float64)
        sums = torch.cat([value.sum(axes), value.square().sum(axes), count])
        total, squares, count = _SumOverRanks.apply(sums).split([self.num_features, self.num_features, 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        self._update_running(mean.detach(), (variance * count / (count - 1)).detach())
        shape = [1, -1] + [1] * (input.dim() - 2)
        normalised = (value - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: torch.Tensor, unbiased_variance: torch.Tensor) -> None:
        if self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
            self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), rate)


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks. Its gradient is summed too, because each rank's loss depends on every rank's summand."""

    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(value.clone())

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(grad.clone())
