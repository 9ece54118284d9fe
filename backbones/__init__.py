"""Encoders: face images in, raw (not normalised) features out. Depends on PyTorch only.

net = backbones.build("r50", embedding_size=512)
ignored = backbones.load_weights(net, "backbone.pth")
features_BD = net(images)  # images float [B, 3, 112, 112] in [-1, 1]; features float32 [B, 512]
gigamacs = backbones.multiply_adds(net) / 1e9
"""

from __future__ import annotations

from backbones.registry import build, multiply_adds, names
from backbones.weight_files import WeightsError, read_metadata
from backbones.weights import identify_weights, load_weights, not_finite

__all__ = ["WeightsError", "build", "identify_weights", "load_weights", "multiply_adds", "names", "not_finite", "read_metadata"]
