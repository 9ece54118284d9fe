"""AdaFace's gradient scaling term is what autograd finds for the margin and loss that train."""

from __future__ import annotations

import numpy as np
import torch

from eval.present.gradient_scale import AdaFaceScale
from losses.margins import AdaFace
from losses.quality import QualityStatistics

SCALE = AdaFaceScale(margin=0.4, scale=64.0, classes=8631, mean=20.0, std=3.0, concentration=0.333)


def test_the_term_is_the_gradient_of_the_loss_with_respect_to_the_target_cosine():
    """Over all qualities and angles, those where a clamp stops the gradient included."""
    margin = AdaFace(SCALE.margin, SCALE.scale)
    angle = torch.linspace(0.005, np.pi - 0.005, 301, dtype=torch.float64)
    stopped = 0
    for quality in (-1.0, -0.6, -0.1, 0.0, 0.3, 1.0):
        raw = angle.cos().requires_grad_()
        cosine = raw.clamp(-margin.cosine_limit, margin.cosine_limit)
        logit = margin.target_logit(cosine, torch.full_like(angle, quality), torch.ones_like(angle))
        others = torch.full_like(logit, np.log(SCALE.classes - 1))  # s cos(90 degrees) = 0, C - 1 times
        (torch.logaddexp(logit, others) - logit).sum().backward()
        found = SCALE.term(angle.numpy(), np.array(quality))
        np.testing.assert_allclose(found, raw.grad.numpy(), rtol=1e-6, atol=1e-9)
        stopped += int((found == 0).sum())
        assert found.min() < -10
    assert stopped > 10, "clamps take part"


def test_quality_of_a_norm_is_equation_one():
    norms = np.linspace(0, 130, 400)
    statistics = QualityStatistics(SCALE.concentration, initial_mean=SCALE.mean, initial_std=SCALE.std)
    expected = statistics.normalise(torch.tensor(norms, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(SCALE.quality(norms), expected, atol=1e-6)
    qualities = np.array([-1.0, -0.6, 0.5])
    np.testing.assert_allclose(SCALE.quality(np.array([SCALE.norm_of(each) for each in qualities])), qualities, atol=1e-9)
