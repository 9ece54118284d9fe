"""Names of the encoders. Adding a backbone is one new file with its `BUILDERS` and one line in `FAMILIES`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from backbones import compact, ir, iresnet, mobilefacenet, vit

FAMILIES: tuple[Mapping[str, Callable[..., nn.Module]], ...] = (
    compact.BUILDERS,
    iresnet.BUILDERS,
    ir.BUILDERS,
    mobilefacenet.BUILDERS,
    vit.BUILDERS,
)

_BUILDERS: dict[str, Callable[..., nn.Module]] = {name: make for family in FAMILIES for name, make in family.items()}


def names() -> list[str]:
    """Names that `build` knows, family by family, small to large."""
    return list(_BUILDERS)


def build(name: str, embedding_size: int = 512, **options: Any) -> nn.Module:
    """A freshly initialised encoder: images [B, 3, 112, 112] in [-1, 1] -> raw features [B, embedding_size], float32.

    `options` go to the family's constructor: `dropout`; `map_norm=True` (features with the norm of the last map; compact,
    iresnet, ir); `checkpoint=True` (activations recomputed in the backward; iresnet, ir, vit); `drop_path` and
    `mask_ratio` (vit). An option that the family does not have is a TypeError.
    Raises ValueError for an unknown name, and names the nearest known one.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown backbone {name!r}: {hint}known are {', '.join(_BUILDERS)}")
    return _BUILDERS[name](embedding_size=embedding_size, **options)
