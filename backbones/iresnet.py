"""iresnet `r18 r34 r50 r100 r200 r2060`, with the state-dict names and the arithmetic of insightface's arcface_torch.

ResNet improved for faces (Deng et al., ArcFace, 2019, section 3.1; Duta et al., Improved Residual Networks, 2020): no
pooling at the input, a block is BN-conv-BN-PReLU-conv-BN, and the output keeps the 7x7 map: BN, dropout, fully
connected, BatchNorm1d whose weight stays 1. The trainer sets the precision (autocast); only fc and the last BatchNorm are
always float32, as in the original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from backbones.layers import PReLU, full_precision, run_blocks, strided_shortcut, with_norm_of

WIDTHS = (64, 128, 256, 512)


class IBasicBlock(nn.Module):
    """[B, c_in, H, W] -> [B, c_out, H / stride, W / stride]; the stride is in the second convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.prelu = PReLU(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = None if stride == 1 and c_in == c_out else strided_shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] -> raw features [B, embedding_size], float32 (also under autocast).

    depths: blocks per stage (56x56, 28x28, 14x14, 7x7). dropout: rate before the fully connected layer.
    gradient_checkpointing: recompute each block's activations in the backward pass, to save memory. map_norm: features have the
    norm of the last map instead of their own.
    """

    def __init__(
        self,
        depths: Sequence[int],
        embedding_size: int = 512,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        map_norm: bool = False,
    ) -> None:
        super().__init__()
        self.map_norm = map_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = PReLU(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], depths[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], depths[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], depths[2])
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], depths[3])
        self.bn2 = nn.BatchNorm2d(WIDTHS[3])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(WIDTHS[3] * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)  # stays 1: the loss sets the features' scale
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_blocks(stage, x, self.gradient_checkpointing and self.training)
        flat = torch.flatten(self.bn2(x), 1)
        with full_precision(x):
            features = self.features(self.fc(self.dropout(flat).float()))
            return with_norm_of(flat.float(), features) if self.map_norm else features


def _stage(c_in: int, c_out: int, depth: int) -> nn.Sequential:
    return nn.Sequential(IBasicBlock(c_in, c_out, stride=2), *(IBasicBlock(c_out, c_out) for _ in range(depth - 1)))


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "r18": partial(IResNet, (2, 2, 2, 2)),
    "r34": partial(IResNet, (3, 4, 6, 3)),
    "r50": partial(IResNet, (3, 4, 14, 3)),
    "r100": partial(IResNet, (3, 13, 30, 3)),
    "r200": partial(IResNet, (6, 26, 60, 6)),
    "r2060": partial(IResNet, (3, 128, 896, 3)),
}
