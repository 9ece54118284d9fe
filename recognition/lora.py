"""LoRA: low-rank updates of frozen weights (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, section 4.1).

    W = W_0 + alpha / r * U D        W_0 [out, in], U [out, r] initially 0, D [r, in]

A convolution's weight [out, in, kh, kw] counts as the matrix [out, in * kh * kw]. Everything else is frozen: biases, and
BatchNorm, which also keeps its running statistics. Training and evaluation thus compute the same function, on any number of
ranks, and an update merges into its weight without a trace.

Not the package peft: it requires transformers and accelerate and wraps the model, which renames its entries. PyTorch's
parametrizations need the few lines below, and plug-ins keep their classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from backbones.layers import full_precision
from recognition.freezing import stop_training
from utils.errors import UserError

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_MARK = ".parametrizations.weight."


class LowRankUpdate(nn.Module):
    """The parametrization of one weight."""

    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        down = nn.init.kaiming_uniform_(torch.empty(rank, columns, device="cpu"), a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.register_buffer("scale", torch.tensor(alpha / rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with full_precision(weight):
            return _updated(weight, self.up, self.down, self.scale)


def _updated(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return weight + (scale * (up @ down)).view(weight.shape)


def adapt(encoder: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Freeze the encoder and give the layers that were trained until now a low-rank update.

    Layers with no more rows or columns than `rank` get none. Call it before the optimiser, DDP or a momentum encoder see the
    encoder. seed: of the initial D. Raises UserError if there is no layer to adapt.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, _LAYERS) and layer.weight.requires_grad]
    layers = [layer for layer in layers if rank < min(layer.weight.flatten(1).shape)]
    if not layers:
        raise UserError(f"lora_rank={rank}: this network has no trained linear or convolution layer of a higher rank; set 0")
    stop_training(encoder, ["*"])
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, rank, alpha, generator))


def load_base(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load the state dict of the plain encoder into an adapted one, whose updates stay as they are."""
    own = {name: state.get(name.replace(f"{_MARK}original", ".weight"), value) for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(own)


def merged(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of the plain encoder, with the updates added to its weights. Without updates, the state dict itself."""
    plain = {}
    for name, value in state.items():
        layer, mark, part = name.partition(_MARK)
        if not mark:
            plain[name] = value
        elif part == "original":
            up, down, scale = (state[f"{layer}{_MARK}0.{factor}"] for factor in ("up", "down", "scale"))
            plain[f"{layer}.weight"] = _updated(value, up, down, scale)
    return plain
