"""The model card: everything about an encoder that its weights do not tell, so that its users need not guess.

Exported files carry it as text under these names (safetensors' metadata, ONNX's metadata_props):

    format version network embedding_size channel_order input_size mean std
    quality_mean quality_std quality_concentration quality_threshold    (if the run has them)
    network_options    (JSON, if the network has any)
    map_norm    ("1" if features have the norm of the last feature map)
    thresholds    (JSON, the default first: name, cosine, fmr, fnmr, sets; if a run has measured them)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

import backbones
from losses.quality import QualityStatistics
from recognition import __version__
from recognition.encoders import thresholds
from recognition.encoders.thresholds import Threshold
from utils.errors import UserError
from utils.images import FACE_SIZE, ChannelOrder

FORMAT = "qgface-encoder-1"
MODEL = "model.safetensors"  # in a published folder
MEAN = STD = 127.5
_QUALITY = ("quality_mean", "quality_std", "quality_concentration")


@dataclass(frozen=True)
class QualityScale:
    """Maps feature norms to qualities u in [0, 1] (QGFace, eq. 1), with the statistics at the end of a run.

    threshold: b; a face with u <= b is of low quality. None: the run did not partition by quality.
    """

    mean: float
    std: float
    concentration: float
    threshold: float | None

    def __post_init__(self) -> None:
        numbers = (self.mean, self.std, self.concentration, self.threshold or 0.0)
        if not np.isfinite(numbers).all():
            raise ValueError(f"quality statistics {numbers} are not finite")

    def u(self, norms_N: np.ndarray) -> np.ndarray:
        """Norms of raw features, float [N], each of one image (no mirror image added) -> qualities, float32 [N]."""
        return (self._statistics.normalise(torch.as_tensor(norms_N, dtype=torch.float32)).numpy() + 1) / 2

    def norm_of(self, u: float) -> float:
        """The norm at which the quality is `u`."""
        return self._statistics.norm_of(2 * u - 1)

    @property
    def _statistics(self) -> QualityStatistics:
        return QualityStatistics(self.concentration, rate=0.0, initial_mean=self.mean, initial_std=self.std)


@dataclass(frozen=True)
class EncoderCard:
    """What an encoder is and what it expects of its input, (pixel - mean) / std in `channel_order`.

    network: a name in backbones/, or "" if it is unknown. network_options: for its constructor.
    """

    network: str
    embedding_size: int
    channel_order: ChannelOrder
    input_size: int = FACE_SIZE
    mean: float = MEAN
    std: float = STD
    quality: QualityScale | None = None
    map_norm: bool = False
    network_options: Mapping[str, Any] = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()

    @property
    def input(self) -> str:
        """What the encoder expects of its input, for messages."""
        return f"{self.channel_order} {self.input_size}x{self.input_size}, (pixel - {self.mean:g}) / {self.std:g}"

    def to_metadata(self) -> dict[str, str]:
        """The card as text; floats keep every bit."""
        plain = {
            "format": FORMAT,
            "version": __version__,
            "network": self.network,
            "embedding_size": str(self.embedding_size),
            "channel_order": self.channel_order,
            "input_size": str(self.input_size),
            "mean": repr(self.mean),
            "std": repr(self.std),
        }
        if self.map_norm:
            plain["map_norm"] = "1"
        if self.network_options:
            plain["network_options"] = json.dumps(self.network_options)
        if self.thresholds:
            plain["thresholds"] = thresholds.to_text(self.thresholds)
        if self.quality is not None:
            numbers = (self.quality.mean, self.quality.std, self.quality.concentration)
            plain |= {name: repr(value) for name, value in zip(_QUALITY, numbers, strict=True)}
            if self.quality.threshold is not None:
                plain["quality_threshold"] = repr(self.quality.threshold)
        return plain

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> EncoderCard | None:
        """The card in a file's metadata; None if the file was not exported by this project.

        Raises UserError, beginning with `where`, if the format has another version, or an entry is missing or makes no sense.
        """
        if not metadata.get("format", "").startswith(FORMAT.rstrip("0123456789")):
            return None
        if metadata["format"] != FORMAT:
            raise UserError(f"{where}: format {metadata['format']!r}, this version reads {FORMAT!r}")
        try:
            card = cls(
                metadata["network"],
                int(metadata["embedding_size"]),
                _channel_order(metadata["channel_order"]),
                int(metadata["input_size"]),
                float(metadata["mean"]),
                float(metadata["std"]),
                _quality(metadata),
                _switch(metadata, "map_norm"),
                _options(metadata),
                thresholds.from_text(metadata.get("thresholds", "[]")),
            )
        except KeyError as fault:
            raise UserError(f"{where}: its metadata has no {fault}; export the encoder again") from fault
        except ValueError as fault:
            raise UserError(f"{where}: its metadata cannot be read ({fault}); export the encoder again") from fault
        if not (np.isfinite([card.mean, card.std]).all() and card.std > 0 and card.embedding_size > 0):
            raise UserError(f"{where}: its metadata makes no sense (mean {card.mean}, std {card.std}); export the encoder again")
        if card.input_size != FACE_SIZE:
            raise UserError(
                f"{where}: takes images of {card.input_size}x{card.input_size}; faces here are {FACE_SIZE}x{FACE_SIZE}"
            )
        return card


def _quality(metadata: Mapping[str, str]) -> QualityScale | None:
    if _QUALITY[0] not in metadata:
        return None
    mean, std, concentration = (float(metadata[name]) for name in _QUALITY)
    threshold = metadata.get("quality_threshold")
    return QualityScale(mean, std, concentration, None if threshold is None else float(threshold))


def _options(metadata: Mapping[str, str]) -> dict[str, Any]:
    options = json.loads(metadata.get("network_options", "{}"))
    if not isinstance(options, dict):
        raise ValueError(f"network_options is {options!r}")
    return options


def card_of_weights(path: Path) -> EncoderCard | None:
    """The card in a weight file's metadata; None if it has none.

    Raises UserError as `from_metadata` does, and if the normalisation is not this project's.
    """
    card = EncoderCard.from_metadata(backbones.read_metadata(path), str(path))
    if card is not None and (card.mean, card.std) != (MEAN, STD):
        raise UserError(
            f"{path}: expects (pixel - {card.mean:g}) / {card.std:g}; encoders here take (pixel - {MEAN}) / {STD}; use an .onnx"
        )
    return card


def order_of_family(network: str) -> ChannelOrder:
    """The channel order of released weights that do not state it: AdaFace's (ir_*) expect BGR, arcface_torch's RGB."""
    return "BGR" if network.startswith("ir_") else "RGB"


def _switch(metadata: Mapping[str, str], name: str) -> bool:
    """Whether an entry is "1" (True) or absent (False). Raises ValueError if it is anything else."""
    if (text := metadata.get(name)) not in (None, "1"):
        raise ValueError(f"{name} is {text!r}, not '1'")
    return text is not None


def _channel_order(text: str) -> ChannelOrder:
    if text not in get_args(ChannelOrder):
        raise ValueError(f"channel_order is {text!r}, not RGB or BGR")
    return cast(ChannelOrder, text)
