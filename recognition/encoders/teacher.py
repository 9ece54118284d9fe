"""The teacher of feature distillation: an encoder from anywhere that is not trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from recognition.checkpoints import store
from recognition.encoders.load import load_encoder
from utils.config import Config
from utils.errors import UserError


class Teacher:
    """uint8 images [B, 112, 112, 3], in the channel order of the run -> raw features, float32 [B, D] on the device.

    An .onnx teacher runs in onnxruntime: each step waits for it. Raises UserError if the encoder cannot be loaded, or its
    features have another size than the run's.
    """

    def __init__(self, config: Config, device: torch.device):
        with _named(config):
            loaded = load_encoder(config.teacher, device)
        self._embed, self._device, self._is_bgr = loaded.embed, device, config.channel_order == "BGR"
        if loaded.card.embedding_size != config.embedding_size:
            raise UserError(
                f"teacher={config.teacher!r}: its features have size {loaded.card.embedding_size}, those of this run "
                f"embedding_size={config.embedding_size}; use a teacher of the same size"
            )

    def __call__(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        rgb = images_BHWC.flip(-1) if self._is_bgr else images_BHWC
        return self._embed.features(rgb).to(self._device)


def build_teacher(config: Config, device: torch.device) -> Teacher | None:
    """The teacher that the configuration names, if any."""
    return Teacher(config, device) if config.teacher else None


def teacher_bytes(config: Config) -> int:
    """The size of the teacher's weights, 0 without one."""
    if not config.teacher:
        return 0
    path = Path(config.teacher)
    with _named(config):
        if path.is_file():
            return path.stat().st_size
        return sum(tensor.nbytes for tensor in store.read_tensors(store.find(path), "encoder.").values())


@contextlib.contextmanager
def _named(config: Config) -> Iterator[None]:
    """Begin errors with the key."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"teacher={config.teacher!r}: {text}" for text in error.args)) from error
