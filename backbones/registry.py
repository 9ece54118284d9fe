"""Names of the encoders. Adding a backbone takes one file in this folder: a module with `BUILDERS`, names -> constructors."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbones.layers import IMAGE_SIZE

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    if _module.name != "registry":
        _BUILDERS |= getattr(importlib.import_module(f"backbones.{_module.name}"), "BUILDERS", {})

# arcface_torch's suffixes: vit_b_dp005_mask_005 is vit_b with drop_path=0.05 and mask_ratio=0.05.
_SUFFIXES = re.compile(r"(?P<network>.+)_dp(?P<drop_path>0\d*)_mask_?(?P<mask_ratio>0\d*)")


def names() -> list[str]:
    """Names of all backbones, family by family, from small to large."""
    return list(_BUILDERS)


def build(name: str, embedding_size: int = 512, **options: Any) -> nn.Module:
    """Build a newly initialised encoder: images [B, 3, 112, 112] in [-1, 1] -> raw features [B, embedding_size], float32.

    name: one of `names()`; arcface_torch's suffixes `_dpNNN_mask_NNN` set `drop_path` and `mask_ratio`: 005 is 0.05.

    options: for the family's constructor: `dropout`; `map_norm=True` (features with the norm of the last map; compact, iresnet,
    ir); `gradient_checkpointing=True` (recompute activations in the backward pass; iresnet, ir, vit); `drop_path` and
    `mask_ratio` (vit). They take precedence over suffixes.

    Raises ValueError for an unknown name, with the nearest known one, and TypeError, naming them, for options that the family
    does not have.

    >>> encoder = build("tiny", embedding_size=64).eval()
    >>> encoder(torch.zeros(2, 3, 112, 112)).shape
    torch.Size([2, 64])
    """
    if name not in _BUILDERS and (suffixed := _SUFFIXES.fullmatch(name)):
        network, *rates = suffixed.groups()
        drop_path, mask_ratio = (float(f"0.{digits[1:]}") for digits in rates)
        return build(network, embedding_size, **{"drop_path": drop_path, "mask_ratio": mask_ratio, **options})
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown backbone {name!r}: {hint}known names: {', '.join(_BUILDERS)}, and vit_*_dpNNN_mask_NNN")
    _refuse_unsupported(_BUILDERS[name], options)
    return _BUILDERS[name](embedding_size=embedding_size, **options)


def _refuse_unsupported(builder: Callable[..., nn.Module], options: Iterable[str]) -> None:
    parameters = inspect.signature(builder).parameters
    unsupported = [option for option in options if option not in parameters]
    if unsupported and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise TypeError(f"does not support {', '.join(unsupported)}")


@torch.no_grad()
def multiply_adds(module: nn.Module) -> int:
    """Count the multiply-adds of one image's forward pass: convolutions, linear layers and attention.

    A multiply-add is two floating-point operations, and a training step costs about three forward passes: a step of B images
    takes about 6 * B * multiply_adds(module) operations. The module runs once on zeros, in evaluation mode, and keeps its state.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    first = next(module.parameters())
    image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=first.device, dtype=first.dtype)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not count fused attention on CPUs
            module.eval()(image)
    finally:
        for layer, training in modes:
            layer.training = training
    return counter.get_total_flops() // 2
