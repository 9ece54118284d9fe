"""Vision transformers `vit_t vit_s vit_b vit_l vit_h`, with the state-dict names and the arithmetic of arcface_torch's.

Dosovitskiy et al., 2020, adapted to faces (An et al., Partial FC, 2022): 9x9 patches (a 12x12 grid that leaves four
pixels at the right and bottom unused), no class token: all 144 tokens go into the output layer; ReLU6 in the MLP;
in training, stochastic depth (Huang et al., 2016), and a random part of the tokens is left out and replaced at the output.

Two deliberate departures, neither visible in evaluation: `mask_ratio` has an effect (arcface_torch always masks a tenth if it
masks at all), and attention under autocast stays in low precision, with PyTorch's fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.layers import IMAGE_SIZE, full_precision, run_blocks


class DropPath(nn.Module):
    """Stochastic depth: in training, zeroes a whole sample with probability `rate` and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep_B11 = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * keep_B11.to(x.dtype) / (1.0 - self.rate)


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, dim = x.shape
        q_BHNd, k_BHNd, v_BHNd = self.qkv(x).view(B, N, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.proj(mixed_BHNd.transpose(1, 2).reshape(B, N, dim))


class Mlp(nn.Module):
    """Two layers on every token: [B, N, dim] -> [B, N, dim]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after LayerNorm and with a shortcut: [B, N, dim] -> [B, N, dim]."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Images [B, 3, 112, 112] -> tokens [B, 144, dim]."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] -> raw features [B, embedding_size], float32 (also under autocast).

    drop_path: rate of stochastic depth at the last block; it grows linearly from 0. mask_ratio: share of the tokens left out in
    training. gradient_checkpointing: recompute each block's activations in the backward pass, to save memory.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        embedding_size: int = 512,
        heads: int = 8,
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= mask_ratio < 1.0:
            raise ValueError(f"mask_ratio is {mask_ratio}, expected 0 <= mask_ratio < 1")
        self.gradient_checkpointing = gradient_checkpointing
        self.mask_ratio = mask_ratio
        patch, tokens = 9, (IMAGE_SIZE // 9) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        # Without masking it gets no gradient, which DistributedDataParallel would wait for.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim), requires_grad=mask_ratio > 0)
        self.patch_embed = PatchEmbed(dim, patch)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, drop_path * i / max(depth - 1, 1)) for i in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(dim * tokens, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pos_drop(self.patch_embed(images) + self.pos_embed)
        if self.training and self.mask_ratio > 0:
            kept_BK, order_BN = _random_subset(x, self.mask_ratio)
            x = x.gather(1, kept_BK.unsqueeze(-1).expand(-1, -1, x.shape[2]))
            x = self._encode(x)
            missing = self.mask_token.expand(x.shape[0], order_BN.shape[1] - x.shape[1], -1)
            x = torch.cat([x, missing], dim=1).gather(1, order_BN.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        else:
            x = self._encode(x)
        with full_precision(x):
            return self.feature(x.flatten(1))

    def _encode(self, x: Tensor) -> Tensor:
        x = run_blocks(self.blocks, x, self.gradient_checkpointing and self.training)
        with full_precision(x):
            return self.norm(x.float())


def _random_subset(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Indices of the tokens that are kept, int64 [B, K], and the position of each of the N tokens in (kept, left out), [B, N]."""
    B, N, _ = x.shape
    shuffled_BN = torch.rand(B, N, device=x.device).argsort(dim=1)
    return shuffled_BN[:, : int(N * (1 - mask_ratio))], shuffled_BN.argsort(dim=1)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "vit_t": partial(VisionTransformer, 256, 12),
    "vit_s": partial(VisionTransformer, 512, 12),
    "vit_b": partial(VisionTransformer, 512, 24),
    "vit_l": partial(VisionTransformer, 768, 24),
    "vit_h": partial(VisionTransformer, 1024, 48, mask_ratio=0.0),
}
