"""Load an encoder from a run, an exported file or published folder, someone else's ONNX or released weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import backbones
from recognition.checkpoints import store
from recognition.encoders.build import build_backbone, build_encoder, load_from_checkpoint
from recognition.encoders.card import MODEL, EncoderCard, QualityScale, card_of_weights, order_of_family
from recognition.encoders.embedder import Embedder, autocast_type
from recognition.encoders.onnx import OnnxEmbedder
from utils import plugins
from utils.config import Config
from utils.errors import UserError
from utils.images import ChannelOrder

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and where it came from.

    embed: uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU, whatever channel order the
    encoder itself expects. path: the run, checkpoint or file that was opened. weights: of a run, "trained" or "ema".
    """

    embed: Embedder | OnnxEmbedder
    card: EncoderCard
    path: Path
    weights: str = "trained"

    @property
    def module(self) -> nn.Module | None:
        """The encoder as a PyTorch module; None for .onnx."""
        return self.embed.encoder if isinstance(self.embed, Embedder) else None

    @property
    def label(self) -> str:
        """Its name in tables and plots."""
        path = self.path.resolve()
        name = (path.parent.name if path.name == MODEL else path.name) + (" EMA" if self.weights == "ema" else "")
        return f"{name} ({self.card.network})" if self.card.network else name

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16; "own" for .onnx."""
        return self.embed.precision


def load_encoder(
    path: str | Path,
    device: torch.device = _CPU,
    channel_order: ChannelOrder | None = None,
    network: str | None = None,
    precision: str | None = None,
    mean: float | None = None,
    std: float | None = None,
    weights: str = "trained",
) -> LoadedEncoder:
    """The encoder of a run or checkpoint folder, of an exported .safetensors, .onnx or published folder, or of released weights.

    Released weights are arcface_torch's .pt and .pth, which expect RGB, and AdaFace's .ckpt, which expect BGR.

    channel_order, network: for files that do not contain them. Without `network`, the names and shapes of the entries
    identify it; the embedding size always comes from the weights. The code of a plug-in is imported only if `network` names it.
    precision: as in the configuration; default: a run's own, "auto" for files. mean, std: of the input, for .onnx files without
    metadata only. weights: "ema" for the average of a run's weights instead of the trained ones.
    Raises UserError if the file cannot be read or fits no backbone, or an argument contradicts it.
    """
    plugins.trust([network or ""])
    path = Path(path)
    if (path / MODEL).is_file():
        path = path / MODEL
    if path.is_dir() or not path.exists():
        loaded = _load_run(path, device, precision, weights)
    elif weights == "ema":
        raise UserError(f"{path}: is no run, and a file holds one encoder; leave out --weights ema")
    elif path.suffix == ".onnx":
        if precision:
            raise UserError(f"{path}: its graph fixes the precision; leave out --precision {precision}")
        embed = OnnxEmbedder(path, device, channel_order or "RGB", mean, std)
        loaded = LoadedEncoder(embed, embed.card, path)
    else:
        loaded = _load_file(path, device, channel_order, network, precision or "auto")
    _refuse_contradiction(path, loaded.card, channel_order, network, mean, std)
    return loaded


def _load_run(path: Path, device: torch.device, precision: str | None, weights: str) -> LoadedEncoder:
    folder = store.find(path)
    config = store.read_config(folder)
    if weights == "ema" and not config.ema:
        raise UserError(f"{folder}: the run had no EMA (ema=0); leave out --weights ema")
    encoder = build_encoder(config)
    load_from_checkpoint(encoder, folder, "ema." if weights == "ema" else "encoder.")
    encoder.to(device).eval()
    quality = _quality_of(folder, config)
    card = EncoderCard(
        config.network,
        config.embedding_size,
        config.channel_order,
        quality=quality,
        map_norm=config.map_norm,
        network_options=config.network_options,
    )
    autocast = autocast_type(precision or config.precision, device)
    return LoadedEncoder(Embedder(encoder, device, card.channel_order, autocast), card, path, weights)


def _quality_of(folder: Path, config: Config) -> QualityScale | None:
    tensors = store.read_tensors(folder, prefix="quality.")
    if not {"mean", "std"} <= tensors.keys():
        return None
    mean, std = float(tensors["mean"]), float(tensors["std"])
    try:
        return QualityScale(mean, std, config.quality_concentration, config.quality_threshold)
    except ValueError as fault:
        raise UserError(f"{folder}: its {fault}; use an earlier checkpoint") from fault


def _load_file(
    path: Path, device: torch.device, channel_order: ChannelOrder | None, network: str | None, precision: str
) -> LoadedEncoder:
    try:
        card = card_of_weights(path)
        if card is None:
            name, size = backbones.identify_weights(path, network or "")
            card = EncoderCard(name, size, channel_order or order_of_family(name))
        options = {**card.network_options, "map_norm": card.map_norm or None}
        encoder = build_backbone(card.network, card.embedding_size, source=str(path), **options)
        backbones.load_weights(encoder, path)
    except (ValueError, OSError) as fault:
        raise UserError(str(fault)) from fault
    encoder.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    embed = Embedder(encoder, device, card.channel_order, autocast_type(precision, device))
    return LoadedEncoder(embed, card, path)


def _refuse_contradiction(
    path: Path, card: EncoderCard, channel_order: str | None, network: str | None, mean: float | None, std: float | None
) -> None:
    if channel_order not in (None, card.channel_order):
        raise UserError(f"{path}: was made for {card.channel_order}; leave out --channel-order {channel_order}")
    if network not in (None, card.network):
        found = f"holds {card.network!r}" if card.network else "does not name its network"
        raise UserError(f"{path}: {found}; leave out --network {network}")
    if mean not in (None, card.mean) or std not in (None, card.std):
        raise UserError(f"{path}: expects (pixel - {card.mean:g}) / {card.std:g}; leave out --mean and --std")
