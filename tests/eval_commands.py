"""Runs commands of `python -m eval` in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from eval.__main__ import build_parser
from recognition.encoders.card import EncoderCard, QualityScale
from recognition.encoders.load import LoadedEncoder
from utils import dist


class Fake:
    """A function in place of an encoder."""

    precision = "fake"

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        self.function = function

    def __call__(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        return self.function(images_nHWC)


def run_eval(embed: Callable[[torch.Tensor], torch.Tensor], *arguments: object, quality: QualityScale | None = None) -> None:
    """Run one command within a process group that exists already. `embed` replaces the encoder that it would load."""
    parsed = build_parser().parse_args([str(argument) for argument in arguments])
    rank, size = dist.rank_and_world()

    def load(path: str, *_: object, **__: object) -> LoadedEncoder:
        return LoadedEncoder(Fake(embed), EncoderCard("", 64, "RGB", quality=quality), Path(path))

    with mock.patch("eval.commands.common.features.load_encoder", load):
        parsed.run(parsed, dist.World(rank, size, rank, size, torch.device("cpu")))
