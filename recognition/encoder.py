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
    """The config's backbone, drawn from its seed alone (the same on all ranks), with released weights if it names some."""
    options = {"dropout": config.dropout} if config.dropout else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            encoder = backbones.build(config.network, embedding_size=config.embedding_size, **options)
            if config.init_from:
                backbones.load_weights(encoder, config.init_from)
        except (ValueError, TypeError, OSError) as fault:
            raise UserError(f"network={config.network!r}: {fault}") from fault
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return encoder.to(memory_format=layout)  # type: ignore[call-overload]


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
    """The encoder of a run folder (its newest complete checkpoint) or of one checkpoint folder."""
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"{folder}: no such run or checkpoint folder")
    found = folder if checkpoint.is_complete(folder) else checkpoint.newest(folder)
    if found is None:
        raise UserError(f"{folder}: holds no complete checkpoint; give a run's output folder or one of its checkpoints")
    config = checkpoint.read_config(found)
    encoder = build_encoder(config)
    tensors = checkpoint.read_tensors(found, prefix="encoder.")
    encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in tensors.items()})
    encoder.to(device).eval()
    return Embedder(encoder, device, config.channel_order, autocast_type(config.precision, device)), config
