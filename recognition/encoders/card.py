"""What has to be known of an encoder besides its weights, so that nobody who uses it has to guess.

Exported files carry it as text under the names below (safetensors' metadata, ONNX's metadata_props):

    format network embedding_size channel_order input_size mean std
    quality_mean quality_std quality_concentration quality_threshold    (of runs that have them)
    map_norm    ("1" where features have the norm of the last map)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch

from losses.quality import QualityStatistics
from utils.errors import UserError
from utils.images import FACE_SIZE

FORMAT = "qgface-encoder-1"
INPUT_SIZE, MEAN, STD = FACE_SIZE, 127.5, 127.5
ChannelOrder = Literal["RGB", "BGR"]
_QUALITY = ("quality_mean", "quality_std", "quality_concentration")


@dataclass(frozen=True)
class QualityScale:
    """From the norm of a feature to its quality u in [0, 1] (QGFace, eq. 1), by the statistics that a run ended with.

    threshold: b, at or below which a face counts as of low quality; None where the run made no such difference.
    """

    mean: float
    std: float
    concentration: float
    threshold: float | None

    def u(self, norms_N: np.ndarray) -> np.ndarray:
        """float [N] norms of raw features (of one image, no mirror image added) -> float32 [N]."""
        statistics = QualityStatistics(self.concentration, initial_mean=self.mean, initial_std=self.std)
        return (statistics.normalise(torch.as_tensor(norms_N, dtype=torch.float32)).numpy() + 1) / 2


@dataclass(frozen=True)
class EncoderCard:
    """network: a name of backbones/, or "" where it is unknown. An input is (pixel - mean) / std in `channel_order`."""

    network: str
    embedding_size: int
    channel_order: ChannelOrder
    input_size: int = INPUT_SIZE
    mean: float = MEAN
    std: float = STD
    quality: QualityScale | None = None
    map_norm: bool = False

    def to_metadata(self) -> dict[str, str]:
        """As text; floats are written so that they are read back to the bit."""
        plain = {
            "format": FORMAT, "network": self.network, "embedding_size": str(self.embedding_size),
            "channel_order": self.channel_order, "input_size": str(self.input_size),
            "mean": repr(self.mean), "std": repr(self.std),
        }  # fmt: skip
        if self.map_norm:
            plain["map_norm"] = "1"
        if self.quality is not None:
            numbers = (self.quality.mean, self.quality.std, self.quality.concentration)
            plain |= {name: repr(value) for name, value in zip(_QUALITY, numbers, strict=True)}
            if self.quality.threshold is not None:
                plain["quality_threshold"] = repr(self.quality.threshold)
        return plain

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> EncoderCard:
        """The card in a file's metadata; UserError, beginning with `where`, for an entry that is missing or makes no sense."""
        try:
            if metadata["format"] != FORMAT:
                raise UserError(f"{where}: format {metadata['format']!r}, this version reads {FORMAT!r}")
            quality = None
            if _QUALITY[0] in metadata:
                threshold = metadata.get("quality_threshold")
                mean, std, concentration = (float(metadata[name]) for name in _QUALITY)
                quality = QualityScale(mean, std, concentration, None if threshold is None else float(threshold))
            card = cls(
                metadata["network"], int(metadata["embedding_size"]), channel_order(metadata["channel_order"], where),
                int(metadata["input_size"]), float(metadata["mean"]), float(metadata["std"]), quality,
                _switch(metadata, "map_norm"),
            )  # fmt: skip
        except KeyError as fault:
            raise UserError(f"{where}: its metadata has no {fault}; export the encoder again") from fault
        except ValueError as fault:
            raise UserError(f"{where}: its metadata cannot be read ({fault}); export the encoder again") from fault
        if not (np.isfinite([card.mean, card.std]).all() and card.std > 0 and card.embedding_size > 0):
            raise UserError(f"{where}: its metadata makes no sense (mean {card.mean}, std {card.std}); export the encoder again")
        if card.input_size != INPUT_SIZE:
            raise UserError(
                f"{where}: takes images of {card.input_size}x{card.input_size}; faces here are {INPUT_SIZE}x{INPUT_SIZE}"
            )
        return card


def _switch(metadata: Mapping[str, str], name: str) -> bool:
    """Whether it is on ("1") or absent; ValueError for anything else."""
    if (text := metadata.get(name)) not in (None, "1"):
        raise ValueError(f"{name} is {text!r}, not '1'")
    return text is not None


def channel_order(text: str, where: str) -> ChannelOrder:
    if text not in get_args(ChannelOrder):
        raise UserError(f"{where}: channel_order {text!r}; RGB and BGR are known")
    return cast(ChannelOrder, text)
