"""What else was tried with photographs without identities (docs/experiments/controls.md): plug-ins for runs of one process.

    partition=scripts.ablation.trials:only_unlabelled     all labelled features classified, only unlabelled pairs contrasted
    partition=scripts.ablation.trials:consistency         the same pairs; replaces the contrastive loss
    partition=scripts.ablation.trials:against_proxies     the same pairs; replaces the contrastive loss
    network=scripts.ablation.trials:tiny_per_domain       `tiny` with BatchNorm statistics of their own for unlabelled images

Shapes: G pairs, U of them unlabelled, C classes, D embedding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backbones
from losses.contrastive import ContrastiveLoss
from utils import dist
from utils.errors import UserError

DOMAINS = ("labelled", "unlabelled")  # DOMAIN=unlabelled evaluates `tiny_per_domain` with those images' statistics
VIEWS = 2


class OnlyUnlabelled:
    """A partition that takes no labelled image from its label."""

    threshold: ClassVar[None] = None
    contrasts_unlabelled: ClassVar[bool] = True

    def high_quality(self, quality_N: Tensor) -> Tensor:
        """Every feature: bool [N]."""
        return torch.ones_like(quality_N, dtype=torch.bool)

    def low_quality_pairs(self, quality_VG: Tensor) -> Tensor:
        """No labelled pair: bool [G]."""
        return torch.zeros_like(quality_VG[0], dtype=torch.bool)


def only_unlabelled(config: Any) -> OnlyUnlabelled:
    """Contrast as configured."""
    return OnlyUnlabelled()


def consistency(config: Any, query: float = 0.1, key: float = 0.04, rate: float = 0.1) -> OnlyUnlabelled:
    """Instead of the contrast: both views resemble the same proxies (DINO, Caron et al., ICCV 2021).

    query, key: temperatures of the augmented view and of the original, which is the target. rate: of the target's moving mean,
    which is subtracted from it.
    """
    mean_C = torch.zeros(())

    def loss_U(query_UD: Tensor, key_UD: Tensor, proxy_CD: Tensor, scale: float) -> Tensor:
        nonlocal mean_C
        query_UC, key_UC = query_UD @ proxy_CD.T, key_UD @ proxy_CD.T
        target_UC = ((key_UC - mean_C) / key).softmax(dim=1)
        mean_C = (1 - rate) * mean_C + rate * key_UC.mean(dim=0)
        return -(target_UC * (query_UC / query).log_softmax(dim=1)).sum(dim=1)

    return _replace_contrast(loss_U)


def against_proxies(config: Any) -> OnlyUnlabelled:
    """Eq. 14 with the proxies as the only negatives."""

    def loss_U(query_UD: Tensor, key_UD: Tensor, proxy_CD: Tensor, scale: float) -> Tensor:
        return torch.logsumexp(scale * query_UD @ proxy_CD.T, dim=1) - scale * (query_UD * key_UD).sum(dim=1)

    return _replace_contrast(loss_U)


def _replace_contrast(loss_U: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> OnlyUnlabelled:
    """In this process every contrastive loss becomes the weighted sum of `loss_U`(queries, keys, normalised proxies, scale)."""
    if dist.rank_and_world()[1] > 1:
        raise UserError("this trial needs all proxies on one rank; start one process")

    def forward(self, query_GD, key_GD, label_G, share_G, queue, proxies):
        chosen_G = share_G > 0
        proxy_CD = F.normalize(proxies.__self__.weight.detach())
        each_U = loss_U(query_GD[chosen_G], key_GD[chosen_G].detach(), proxy_CD, self.sum_options.scale)
        return (each_U * share_G[chosen_G]).sum()

    ContrastiveLoss.forward = forward  # type: ignore[method-assign]
    return OnlyUnlabelled()


class BatchNormPerDomain(nn.Module):
    """BatchNorm with shared weights and, for the unlabelled images of a batch, statistics of their own.

    inner: that of the labelled images. is_unlabelled: bool [G]; a training batch has two views of these images.
    """

    other_mean: Tensor
    other_var: Tensor

    def __init__(self, inner: nn.BatchNorm1d | nn.BatchNorm2d, is_unlabelled: Tensor):
        super().__init__()
        assert inner.running_mean is not None and inner.running_var is not None
        self.inner, self.is_unlabelled = inner, is_unlabelled.repeat(VIEWS)
        self.register_buffer("other_mean", inner.running_mean.clone())
        self.register_buffer("other_var", inner.running_var.clone())

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._other(x) if _evaluated_domain() == "unlabelled" else self.inner(x)
        chosen = self.is_unlabelled
        if len(x) != len(chosen):
            expected, found = len(chosen) // VIEWS, len(x) / VIEWS
            raise UserError(
                f"tiny_per_domain: built for {expected} images per step and process, not {found:g}; see network_options"
            )
        labelled = self.inner(x[~chosen])
        out = torch.empty_like(x, dtype=labelled.dtype)
        out[~chosen], out[chosen] = labelled, self._other(x[chosen])
        return out

    def _other(self, x: Tensor) -> Tensor:
        inner = self.inner
        statistics = (self.other_mean, self.other_var)
        return F.batch_norm(x, *statistics, inner.weight, inner.bias, self.training, inner.momentum or 0.0, inner.eps)


def _evaluated_domain() -> str:
    domain = os.environ.get("DOMAIN", DOMAINS[0])
    if domain not in DOMAINS:
        raise UserError(f"DOMAIN={domain}: must be one of {', '.join(DOMAINS)}")
    return domain


def tiny_per_domain(embedding_size: int, images: int = 72, unlabelled: int = 25) -> nn.Module:
    """`tiny` for batches of so many images, of which so many are unlabelled, in the places of `MixedOrder`."""
    encoder = backbones.build("tiny", embedding_size=embedding_size)
    before = torch.arange(images + 1) * unlabelled // images
    is_unlabelled = before[1:] > before[:-1]
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, BatchNormPerDomain(child, is_unlabelled))
    return encoder
