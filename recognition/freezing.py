"""Parts of an encoder that are not trained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from utils.errors import UserError


class FrozenBatchNorm:
    """Mixin of a BatchNorm that stays in evaluation mode: it normalises with its running statistics and keeps them."""

    def train(self, mode: bool = True):
        return super().train(False)  # type: ignore[misc]


def freeze(encoder: nn.Module, patterns: Sequence[str]) -> None:
    """Stop the training of the parameters whose names match a shell-style pattern, such as "layer1.*".

    A BatchNorm whose running statistics match (names end in "running_mean") keeps them. Call it before the optimiser, DDP or a
    momentum encoder see the encoder. Raises UserError if a pattern matches no parameter, or nothing is left to train.
    """
    parameters = dict(encoder.named_parameters())
    parts = [f"{name}.*" for name, _ in encoder.named_modules() if name]
    problems = []
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            near = difflib.get_close_matches(pattern, [*parts, *parameters], 1, cutoff=0.0)
            problems.append(f"freeze: {pattern!r} matches no parameter of the encoder; did you mean {near[0]!r}?")
    if problems:
        raise UserError(*problems)
    stop_training(encoder, patterns)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"freeze={','.join(patterns)}: freezes the whole encoder; leave a part of it to train")


def stop_training(encoder: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters and the BatchNorm statistics whose names match a pattern."""
    for name, parameter in encoder.named_parameters():
        if _matches(name, patterns):
            parameter.requires_grad_(False)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _matches(f"{name}.running_mean", patterns):
            kind = type(module)
            module.__class__ = type(f"Frozen{kind.__name__}", (FrozenBatchNorm, kind), {})
            module.eval()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
