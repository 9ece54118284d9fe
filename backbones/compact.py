"""`tiny` and `small`: compact residual encoders that train in minutes on a CPU.

On a CPU the early, high-resolution layers and the elementwise operations cost the most, not the convolutions, which run on
bfloat16 matrix units. So one 7x7 convolution with stride 4 reduces 112x112 to 28x28 at once; a block has two BatchNorms; the
activation is a leaky ReLU with slope 0.25 (PReLU's initial slope; PyTorch's backward pass of PReLU takes a third of the
step); channel counts are multiples of 32. The output layers are iresnet's: BatchNorm, fully connected, BatchNorm1d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from backbones.layers import full_precision, strided_shortcut, with_norm_of

SLOPE = 0.25


class CompactBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, c_in, H, W] -> [B, c_out, H / stride, W / stride]."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = nn.Identity() if stride == 1 and c_in == c_out else strided_shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.downsample(x)


class CompactNet(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] -> raw features [B, embedding_size], float32 (also under autocast).

    widths, depths: channels and blocks of the stages at 28x28, 14x14 and 7x7. map_norm: features have the norm of the last map
    instead of their own.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        embedding_size: int = 512,
        dropout: float = 0.0,
        map_norm: bool = False,
    ) -> None:
        super().__init__()
        self.map_norm = map_norm
        channels = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, 4, 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        blocks: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                blocks.append(CompactBlock(channels, width, stride=2 if stage > 0 and index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        # As in iresnet: the loss owns the features' scale, so the last BatchNorm's weight stays 1.
        self.features.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn(self.blocks(self.stem(images)))
        with full_precision(x):
            flat = torch.flatten(x, 1).float()
            features = self.features(self.fc(self.dropout(flat)))
            return with_norm_of(flat, features) if self.map_norm else features


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "tiny": partial(CompactNet, (64, 96, 192), (1, 2, 2)),
    "small": partial(CompactNet, (64, 128, 256), (2, 3, 3)),
}
