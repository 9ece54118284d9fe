"""CosFace (Wang et al., CVPR 2018, https://arxiv.org/abs/1801.09414, eq. 4)."""

from __future__ import annotations

from typing import Any

from losses.margins.combined import Combined
from losses.margins.margin import Margin, register


def CosFace(margin: float, scale: float, epsilon: float = 1e-4) -> Combined:
    """Additive cosine margin: target logit = s (cos(theta) - m). The combined margin with m1 = 1, m2 = 0, m3 = m.

    >>> import torch
    >>> cosine = torch.tensor([0.9, 0.5, -0.2])
    >>> CosFace(margin=0.4, scale=64.0).target_logit(cosine, cosine, cosine)
    tensor([ 32.0000,   6.4000, -38.4000])
    """
    return Combined(1.0, 0.0, margin, scale, epsilon)


@register("cosface", m=0.4)
def _from_config(config: Any) -> Margin:
    return CosFace(config.margin_m, config.scale)
