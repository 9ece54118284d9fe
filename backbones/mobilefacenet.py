"""`mbf` and `mbf_large`: MobileFaceNet (Chen et al., 2018) as arcface_torch widened it, with its state-dict names.

Inverted residual blocks (expand 1x1, depthwise 3x3, project 1x1) and a global depthwise convolution at the end, which
weights the 49 positions of the 7x7 map instead of averaging them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from backbones.layers import PReLU, full_precision


class ConvUnit(nn.Module):
    """Convolution, BatchNorm and, unless `linear`, PReLU: [B, c_in, H, W] -> [B, c_out, H / stride, W / stride]."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(c_out)
        )
        if not linear:
            self.layers.append(PReLU(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DepthWise(nn.Module):
    """Inverted bottleneck of `inner` channels; with `residual`, input and output have the same shape and are added."""

    def __init__(self, c_in: int, c_out: int, inner: int, stride: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvUnit(c_in, inner),
            ConvUnit(inner, inner, kernel=3, stride=stride, padding=1, groups=inner),
            ConvUnit(inner, c_out, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class ResidualStack(nn.Module):
    """`depth` residual blocks on [B, channels, H, W]."""

    def __init__(self, channels: int, depth: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(DepthWise(channels, channels, inner, 1, residual=True) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class GlobalDepthwise(nn.Module):
    """[B, 512, 7, 7] -> raw features [B, embedding_size]."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvUnit(512, 512, kernel=7, groups=512, linear=True),
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MobileFaceNet(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] -> raw features [B, embedding_size], float32 (also under autocast).

    depths: blocks at 56x56, 28x28, 14x14 and 7x7. scale: channels as a multiple of the paper's.
    """

    def __init__(self, depths: Sequence[int], scale: int, embedding_size: int = 512) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        first: nn.Module = ResidualStack(narrow, depths[0], inner=128)
        if depths[0] == 1:
            first = ConvUnit(narrow, narrow, kernel=3, padding=1, groups=64)
        self.layers = nn.ModuleList(
            [
                ConvUnit(3, narrow, kernel=3, stride=2, padding=1),
                first,
                DepthWise(narrow, narrow, inner=128, stride=2),
                ResidualStack(narrow, depths[1], inner=128),
                DepthWise(narrow, wide, inner=256, stride=2),
                ResidualStack(wide, depths[2], inner=256),
                DepthWise(wide, wide, inner=512, stride=2),
                ResidualStack(wide, depths[3], inner=256),
            ]
        )
        self.conv_sep = ConvUnit(wide, 512)
        self.features = GlobalDepthwise(embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.layers:
            x = layer(x)
        with full_precision(x):  # from here on float32, as in the original
            return self.features(self.conv_sep(x.float()))


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mbf": partial(MobileFaceNet, (1, 4, 6, 2), 2),
    "mbf_large": partial(MobileFaceNet, (2, 8, 12, 4), 4),
}
