"""What a margin is: a change to the logit of each sample's own class. Names of margins, for the configuration.

A new margin is one file in this folder: a subclass of `Margin` and a function, decorated with `register`, that builds it from the
configuration. A margin outside the repository does the same; the configuration file imports it.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from losses.log_sum_exp import NegativeRule
from utils import plugins


class Margin(ABC):
    """Maps the target cosine, and for some margins the feature's quality or norm, to the target logit.

    scale: s; a logit is s times a cosine. epsilon: cosines (the target's and all others) are clamped to +-(1 - epsilon), the
    angle with margin to [epsilon, pi - epsilon]; where a clamp is active the gradient is zero. Angles are in radians.
    touches_negatives: True for margins that also change the logits of other classes.

    Shapes: N samples. Cosines, qualities, norms and logits are float32 [N].
    """

    scale: float
    epsilon: float
    touches_negatives = False

    @property
    def cosine_limit(self) -> float:
        return 1 - self.epsilon

    @abstractmethod
    def target_logit(self, cosine_N: torch.Tensor, quality_N: torch.Tensor, norm_N: torch.Tensor) -> torch.Tensor:
        """The target logits, differentiable with respect to `cosine_N` and `norm_N`.

        cosine_N: target cosines, already clamped. quality_N: z-hat in [-1, 1] (QGFace eq. 1), without gradient. norm_N: norms of
        the raw features.
        """

    def regulariser(self, norm_N: torch.Tensor) -> torch.Tensor | float:
        """A term added to each sample's loss, differentiable with respect to the norms."""
        return 0.0

    def rule_for_negatives(self, cosine_N: torch.Tensor, share_N: torch.Tensor) -> NegativeRule:
        """This step's rule for the logits of other classes. Called once per forward pass, only if `touches_negatives`.

        cosine_N: target cosines, not clamped, without gradient. share_N: weights of the samples in the loss.
        """
        raise NotImplementedError(f"{type(self).__name__} does not change the logits of other classes")

    def cosine_of(self, angle_N: torch.Tensor) -> torch.Tensor:
        """The cosine of an angle with margin, clamped."""
        return angle_N.clamp(self.epsilon, math.pi - self.epsilon).cos()


_BUILDERS: dict[str, Callable[[Any], Margin]] = {}
_DEFAULT_M: dict[str, float] = {}


def register(name: str, m: float = 0.4) -> Callable[[Callable[[Any], Margin]], Callable[[Any], Margin]]:
    """Decorator: `margin=name` in the configuration builds the margin with this function of the configuration.

    m: the margin's default of `margin_m`.
    """

    def keep(builder: Callable[[Any], Margin]) -> Callable[[Any], Margin]:
        _BUILDERS[name], _DEFAULT_M[name] = builder, m
        return builder

    return keep


def names() -> list[str]:
    """Names of all margins."""
    return sorted(_BUILDERS)


def default_m(name: str) -> float:
    """The default of `margin_m` for the margin of that name; a plug-in's is 0.4, or the attribute `m` of what builds it.

    Raises ValueError, with the nearest known name, if the name is unknown.
    """
    if plugins.is_plugin(name):
        return getattr(plugins.load(name, f"margin={name!r}"), "m", 0.4)
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown margin {name!r}: {hint}known names: {', '.join(names())}")
    return _DEFAULT_M[name]


def build(name: str, config: Any) -> Margin:
    """The margin of that name, with the scale and parameters of a configuration whose `margin_m` is not None."""
    if plugins.is_plugin(name):
        return plugins.build(name, f"margin={name!r}", config, **config.margin_options)
    return _BUILDERS[name](config)
