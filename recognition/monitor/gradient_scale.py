"""AdaFace's gradient scaling term (QGFace, eqs. 11-12 and figure 2; Kim, Jain, Liu, CVPR 2022, eq. 12): a sample's weight.

The gradient of the loss -log P_y with respect to the target cosine is g = (P_y - 1) df/dcos(theta), where f is the target logit
with its margin; |g| is the sample's weight. P_y also depends on the other classes. Here all C - 1 of them are orthogonal to
the feature, as random directions nearly are in many dimensions: P_y = exp(f) / (exp(f) + C - 1).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from eval.present.plots import GradientMap
from losses.margins.adaface import AdaFace
from recognition.encoders.card import QualityScale

_QUALITIES = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the slices


@torch.enable_grad()
def gradient_term(margin: AdaFace, classes: int, degrees: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """g, float64, at most 0, of the angle to the sample's own class and the quality z-hat; the two are broadcast."""
    angle, z_hat = torch.broadcast_tensors(torch.as_tensor(degrees).double().deg2rad(), torch.as_tensor(quality).double())
    cosine = angle.cos().requires_grad_()
    logit = margin.target_logit(cosine.clamp(-margin.cosine_limit, margin.cosine_limit), z_hat, torch.ones_like(z_hat))
    others = torch.full_like(logit, math.log(max(classes - 1, 1e-300)))
    (gradient,) = torch.autograd.grad((torch.logaddexp(logit, others) - logit).sum(), cosine)
    return gradient.numpy()


def gradient_map(margin: float, scale: float, classes: int, quality: QualityScale) -> GradientMap:
    """|g| over norms for which z-hat runs from -1.25 to 1.25, and angles from 0 to 100 degrees.

    margin, scale: AdaFace's m and s.
    """
    adaface = AdaFace(margin, scale)
    norms = np.linspace(max(0.0, quality.norm_of(-0.125)), quality.norm_of(1.125), 200)
    degrees = np.linspace(0.0, 100.0, 240)
    values = np.abs(gradient_term(adaface, classes, degrees[:, None], 2 * quality.u(norms)[None] - 1))
    slices = {
        z_hat: (quality.norm_of((z_hat + 1) / 2), np.abs(gradient_term(adaface, classes, degrees, np.array(z_hat))))
        for z_hat in _QUALITIES
    }
    border = None if quality.threshold is None else quality.norm_of(quality.threshold)
    return GradientMap(norms, degrees, values, slices, border, quality.threshold)
