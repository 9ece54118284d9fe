"""The encoder as others use it: images in, features out, with channel order, normalisation, device and precision settled.

Shapes: n images, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import backbones
from recognition import checkpoint
from recognition.precision import autocast_type
from utils.config import Config
from utils.errors import UserError


def to_input(images_nHWC: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [n, H, W, 3] on the host -> float32 [n, 3, H, W] in [-1, 1] on the device, laid out channels-last.

    Images travel as bytes and become numbers on the device.
    """
    images = images_nHWC.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return images.to(torch.float32).sub_(127.5).div_(127.5)


def build_encoder(config: Config) -> nn.Module:
    """The config's backbone, drawn from its seed alone (the same on all ranks). `initialise` gives it learned weights."""
    options = {"dropout": config.dropout} if config.dropout else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            encoder = backbones.build(config.network, embedding_size=config.embedding_size, **options)
        except (ValueError, TypeError, OSError) as fault:
            raise UserError(f"network={config.network!r}: {fault}") from fault
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return encoder.to(memory_format=layout)  # type: ignore[call-overload]


def initialise(encoder: nn.Module, config: Config) -> str:
    """Loads the weights of `init_from`, a file of released weights or a run or checkpoint folder, into the encoder; returns
    what was done, for people. UserError where they do not fit."""
    path = Path(config.init_from)
    if path.is_dir():
        return _initialise_from_run(encoder, config, path)
    try:
        backbones.load_weights(encoder, path)
    except (ValueError, TypeError, OSError) as fault:
        raise UserError(f"init_from={config.init_from!r}, network={config.network!r}: {fault}") from fault
    return f"encoder: released weights from {path}; classifier, quality statistics and queue are new"


def _initialise_from_run(encoder: nn.Module, config: Config, path: Path) -> str:
    found = checkpoint.find(path)
    before = checkpoint.read_config(found)
    for key in ("network", "embedding_size", "channel_order"):
        if getattr(before, key) != getattr(config, key):
            raise UserError(
                f"init_from={config.init_from!r}: that encoder has {key}={getattr(before, key)!r}, this run has "
                f"{key}={getattr(config, key)!r}; use the same"
            )
    _load_encoder(encoder, found)
    return (
        f"encoder: from {found} ({before.network}, learned on {before.num_classes} classes); the classifier of "
        f"{config.num_classes} classes, quality statistics and queue are new"
    )


def _load_encoder(encoder: nn.Module, folder: Path) -> None:
    tensors = checkpoint.read_tensors(folder, prefix="encoder.")
    try:
        encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in tensors.items()})
    except RuntimeError as fault:
        raise UserError(f"{folder}: its encoder does not fit this version's backbone: {fault}") from fault


class Embedder:
    """uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU, without gradient."""

    def __init__(self, encoder: nn.Module, device: torch.device, channel_order: str, autocast: torch.dtype | None):
        self.encoder, self.device, self.channel_order, self.autocast = encoder, device, channel_order, autocast

    @torch.inference_mode()
    def __call__(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        inputs = to_input(images_nHWC, self.device)
        if self.channel_order == "BGR":
            inputs = inputs.flip(1)
        training = self.encoder.training
        self.encoder.eval()
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            features = self.encoder(inputs)
        self.encoder.train(training)
        return features.float().cpu()


def load_run(path: str | Path, device: torch.device) -> tuple[Embedder, Config]:
    """The encoder of a run folder (its newest complete checkpoint) or of one checkpoint folder, such as RUN/checkpoints/best."""
    found = checkpoint.find(path)
    config = checkpoint.read_config(found)
    encoder = build_encoder(config)
    _load_encoder(encoder, found)
    encoder.to(device).eval()
    return Embedder(encoder, device, config.channel_order, autocast_type(config.precision, device)), config
