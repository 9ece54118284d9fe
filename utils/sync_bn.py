"""BatchNorm with the statistics of all ranks, on any device. torch's own SyncBatchNorm runs on GPUs only; this one computes
the same with a differentiable all-reduce, so that CPU runs (and the tests) can have it too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks; so is its gradient (each rank's loss depends on every rank's summand)."""

    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class HostSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Drop-in for BatchNorm1d and BatchNorm2d: the same parameters, buffers and arithmetic over the world's batch."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, not {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        value = input.double()  # the difference of sums below would lose what float32 has, and differ by the number of ranks
        count = torch.tensor([float(value.numel() // value.shape[1])], dtype=torch.float64)
        sums = torch.cat([value.sum(axes), value.square().sum(axes), count])
        total, squares, count = _SumOverRanks.apply(sums).split([self.num_features, self.num_features, 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        shape = [1, -1] + [1] * (input.dim() - 2)
        normalised = (value - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        if self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm synchronised over the ranks: torch's on GPUs, ours elsewhere. State-dict names stay."""
    if next(module.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return _convert(module)


def _convert(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        synced = HostSyncBatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        synced.load_state_dict(module.state_dict())
        for name, parameter in module.named_parameters(recurse=False):
            synced.get_parameter(name).requires_grad_(parameter.requires_grad)
        return synced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module
