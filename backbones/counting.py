"""The arithmetic of one image through an encoder, for utilisation figures (MFU)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones.layers import IMAGE_SIZE


def flops(module: nn.Module, input_size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> int:
    """Multiply-adds of one image's forward pass: convolutions, linear layers and attention.

    One multiply-add is two floating-point operations, and a training step costs about three forwards: a step of B
    images is about 6 * B * flops(module) operations. BatchNorm, activations and additions are not counted, as is usual.
    `input_size` is (height, width). The module is run once on zeros, in evaluation mode, and left as it was.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        else:  # a layer that counts its own products, such as attention
            total += layer.extra_multiply_adds(inputs[0])  # type: ignore[operator]

    layers = list(module.modules())
    hooks = [
        layer.register_forward_hook(count)
        for layer in layers
        if isinstance(layer, nn.Conv2d | nn.Linear) or hasattr(layer, "extra_multiply_adds")
    ]
    was_training = [layer.training for layer in layers]
    first = next(module.parameters())
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros(1, 3, *input_size, device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in zip(layers, was_training, strict=True):
            layer.training = training
    return total
