"""The gradient map: AdaFace's gradient scaling term and the norm of a quality, as in the papers' equations."""

from __future__ import annotations

import math

import numpy as np

from losses.margins.adaface import AdaFace
from recognition.encoders.card import QualityScale
from recognition.monitor.gradient_scale import gradient_map, gradient_term

MARGIN, SCALE, CLASSES = 0.4, 64.0, 8631
QUALITY = QualityScale(mean=20.0, std=3.0, concentration=0.333, threshold=0.3)
EPSILON = 1e-3  # of AdaFace's release: cosines are clamped to +-(1 - epsilon), angles with margin to [epsilon, pi - epsilon]


def closed_form(angle: np.ndarray, quality: float) -> np.ndarray:
    """g = (P - 1) df/dcos with f = s (cos(angle - m z) - m z - m), and no gradient where a clamp holds."""
    moved = angle - MARGIN * quality
    inside = np.clip(moved, EPSILON, math.pi - EPSILON)
    logit = SCALE * (np.cos(inside) - MARGIN * quality - MARGIN)
    probability = 1 / (1 + np.exp(np.clip(math.log(CLASSES - 1) - logit, -700, 700)))
    flows = (moved == inside) & (np.abs(np.cos(angle)) <= 1 - EPSILON)
    return np.where(flows, (probability - 1) * SCALE * np.sin(moved) / np.sin(angle), 0.0)


def test_the_term_is_the_equations_also_where_a_clamp_stops_the_gradient():
    angle = np.linspace(0.005, np.pi - 0.005, 301)
    stopped = 0
    for quality in (-1.0, -0.6, -0.1, 0.0, 0.3, 1.0):
        found = gradient_term(AdaFace(MARGIN, SCALE), CLASSES, np.degrees(angle), np.array(quality))
        np.testing.assert_allclose(found, closed_form(angle, quality), rtol=1e-6, atol=1e-9)
        stopped += int((found == 0).sum())
        assert found.min() < -10
    assert stopped > 10, "clamps take part"


def test_the_map_spans_the_qualities_and_marks_the_partition():
    found = gradient_map(MARGIN, SCALE, CLASSES, QUALITY)
    assert found.values.shape == (240, 200) and found.values.min() >= 0 and np.isfinite(found.values).all()
    z_hat = np.clip((np.clip(found.norms, 1e-3, 100.0) - 20.0) * 0.333 / (3.0 + 1e-3), -1.0, 1.0)
    assert z_hat[0] == -1 and z_hat[-1] == 1
    column = 120
    expected = np.abs(closed_form(np.radians(found.degrees[1:]), z_hat[column]))
    np.testing.assert_allclose(found.values[1:, column], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(QUALITY.u(np.array([found.border])), 0.3, atol=1e-6)
    norm, values = found.slices[0.5]
    np.testing.assert_allclose(QUALITY.u(np.array([norm])), 0.75, atol=1e-6)
    np.testing.assert_allclose(values[1:], np.abs(closed_form(np.radians(found.degrees[1:]), 0.5)), rtol=1e-6, atol=1e-9)


def test_quality_and_its_inverse_are_equation_one():
    norms = np.linspace(0, 130, 400)
    z_hat = np.clip((np.clip(norms, 1e-3, 100.0) - 20.0) / ((3.0 + 1e-3) / 0.333), -1.0, 1.0)
    np.testing.assert_allclose(QUALITY.u(norms), (z_hat + 1) / 2, atol=1e-6)
    qualities = np.array([0.0, 0.2, 0.75])
    np.testing.assert_allclose(QUALITY.u(np.array([QUALITY.norm_of(u) for u in qualities])), qualities, atol=1e-6)
