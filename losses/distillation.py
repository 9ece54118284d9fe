"""Feature distillation: the student's features turn towards a teacher's (FitNets; Romero et al., ICLR 2015,
https://arxiv.org/abs/1412.6550, equation 3, on normalised features).

    L = 1 / (V G) sum over views v and images i of 1 - cos(h_vi, t_i)

This is half the squared distance of the normalised features: norms, which measure quality, stay the student's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from utils import dist


def distillation_loss(features_VGD: torch.Tensor, teacher_1GD: torch.Tensor) -> torch.Tensor:
    """Scalar of the whole batch, computed on every rank in full.

    features_VGD: raw gathered features with gradient. teacher_1GD: raw gathered features of the teacher, for all views.

    >>> world = dist.start()
    >>> features = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])  # two views of one image
    >>> distillation_loss(features, torch.tensor([[[5.0, 0.0]]]))
    tensor(0.5000)
    >>> dist.stop()
    """
    return 1 - F.cosine_similarity(dist.replicated(features_VGD), teacher_1GD, dim=2).mean()
