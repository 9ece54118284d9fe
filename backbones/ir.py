"""`ir_18 ir_34 ir_50 ir_101`, with the state-dict names and the arithmetic of AdaFace's encoders (Kim et al., 2022).

Differences from iresnet: a block with as many output as input channels subsamples its shortcut instead of convolving
it, dropout is 0.4, and the last BatchNorm has no parameters. AdaFace's code returns the normalised embedding and its norm;
this one returns the raw feature, which is their product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from backbones.layers import PReLU, full_precision, run_blocks, strided_shortcut, with_norm_of

WIDTHS = (64, 128, 256, 512)


class BasicBlockIR(nn.Module):
    """[B, c_in, H, W] -> [B, c_out, H / stride, W / stride]; the stride is in the second convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        # A 1x1 max pool with a stride keeps every stride-th pixel; it has no state.
        self.shortcut_layer = nn.MaxPool2d(1, stride) if c_in == c_out else strided_shortcut(c_in, c_out, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
            PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IRNet(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] (AdaFace's released weights expect BGR) -> raw features [B, embedding_size].

    Features are float32, also under autocast. depths: blocks per stage. dropout: rate before the fully connected layer.
    gradient_checkpointing: recompute each block's activations in the backward pass, to save memory. map_norm: features have the
    norm of the last map instead of their own.
    """

    def __init__(
        self,
        depths: Sequence[int],
        embedding_size: int = 512,
        dropout: float = 0.4,
        gradient_checkpointing: bool = False,
        map_norm: bool = False,
    ) -> None:
        super().__init__()
        self.map_norm = map_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), PReLU(WIDTHS[0])
        )
        # Before `body`, because the released state dicts are in this order.
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(WIDTHS[3]),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(WIDTHS[3] * 7 * 7, embedding_size),
            nn.BatchNorm1d(embedding_size, affine=False),
        )
        blocks: list[nn.Module] = []
        channels = WIDTHS[0]
        for width, depth in zip(WIDTHS, depths, strict=True):
            for index in range(depth):
                blocks.append(BasicBlockIR(channels, width, stride=2 if index == 0 else 1))
                channels = width
        self.body = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = run_blocks(self.body, self.input_layer(images), self.gradient_checkpointing and self.training)
        x = self.output_layer[0](x)  # BatchNorm; then dropout, flatten, fully connected, BatchNorm
        with full_precision(x):
            features = self.output_layer[3:](self.output_layer[1:3](x).float())
            return with_norm_of(x.flatten(1).float(), features) if self.map_norm else features


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "ir_18": partial(IRNet, (2, 2, 2, 2)),
    "ir_34": partial(IRNet, (3, 4, 6, 3)),
    "ir_50": partial(IRNet, (3, 4, 14, 3)),
    "ir_101": partial(IRNet, (3, 13, 30, 3)),
}
