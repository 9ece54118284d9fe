"""The training pipeline: data, step, optimiser, trainer, checkpoints; and the encoders that result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recognition.encoders.load import load_encoder

__all__ = ["__version__", "load_encoder"]

__version__ = "1.0.0"
"""docs/DEPLOYING.md states what changes it. CITATION.cff and CHANGELOG.md have the same."""


def __getattr__(name: str) -> Any:
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recognition.encoders.load import load_encoder  # on first use, so that importing the package is fast

    return load_encoder
