"""ArcFace (Deng et al., CVPR 2019, https://arxiv.org/abs/1801.07698, eq. 3)."""

from __future__ import annotations

from typing import Any

from losses.margins.combined import Combined, combined_margin
from losses.margins.margin import Margin, register


def ArcFace(margin: float, scale: float, epsilon: float = 1e-4) -> Combined:
    """Additive angular margin: target logit = s cos(theta + m). The combined margin with m1 = 1, m2 = m, m3 = 0.

    >>> import torch
    >>> cosine = torch.tensor([0.9, 0.5, -0.2])
    >>> ArcFace(margin=0.5, scale=64.0).target_logit(cosine, cosine, cosine)
    tensor([ 37.1742,   1.5102, -41.2964])
    """
    return Combined(1.0, margin, 0.0, scale, epsilon)


@register("arcface", m=0.5)
def _from_config(config: Any) -> Margin:
    return combined_margin(config, 1.0, config.margin_m, 0.0)
