"""The encoder as others use it: images in, features out, with channel order, normalisation, device and precision settled.

Shapes: n images, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import backbones
from recognition.checkpoints import checkpoint
from recognition.encoders.card import ChannelOrder, EncoderCard, QualityScale
from recognition.encoders.onnx_encoder import OnnxEmbedder
from recognition.encoders.precision import autocast_type
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
    asked = {"dropout": config.dropout, "map_norm": config.map_norm}
    options = {name: value for name, value in asked.items() if value}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            encoder = backbones.build(config.network, embedding_size=config.embedding_size, **options)
        except TypeError as fault:
            raise UserError(f"network={config.network!r}: does not know all of {', '.join(options)}; leave them out") from fault
        except (ValueError, OSError) as fault:
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
    return _embedder_of(found, config, device), config


def _embedder_of(found: Path, config: Config, device: torch.device, precision: str | None = None) -> Embedder:
    encoder = build_encoder(config)
    _load_encoder(encoder, found)
    encoder.to(device).eval()
    return Embedder(encoder, device, config.channel_order, autocast_type(precision or config.precision, device))


# ------------------------------------------------------------------------------------------------ encoders from anywhere

_RELEASED_AS_BGR = "ir_"  # AdaFace's networks; arcface_torch's see RGB


@dataclass(frozen=True)
class LoadedEncoder:
    """embed: uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU, whatever order the encoder sees."""

    embed: Callable[[torch.Tensor], torch.Tensor]
    card: EncoderCard
    module: nn.Module | None  # None for .onnx

    @property
    def precision(self) -> str:
        """What it computes in: fp32, bf16 or fp16; of an .onnx, "own"."""
        if not isinstance(self.embed, Embedder):
            return "own"
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.embed.autocast]


def load_encoder(
    path: str | Path,
    device: torch.device,
    channel_order: ChannelOrder | None = None,
    network: str | None = None,
    precision: str | None = None,
) -> LoadedEncoder:
    """The encoder of a run or checkpoint folder, of an exported .safetensors or .onnx, or of released weights (arcface_torch's
    .pt and .pth, which see RGB; AdaFace's .ckpt, which see BGR).

    channel_order, network: for files that do not say. Without `network` the entries' names and shapes tell it; the embedding
    size always comes from the weights. precision: as the configuration's; without it the run's own, of files "auto". Raises
    UserError for a file that cannot be read or fits no backbone, and where `channel_order` or `network` contradicts what the
    file says of itself.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        found = checkpoint.find(path)
        config = checkpoint.read_config(found)
        card = EncoderCard(
            config.network, config.embedding_size, config.channel_order,
            quality=_quality_of(found, config), map_norm=config.map_norm,
        )  # fmt: skip
        _refuse_contradiction(path, card, channel_order, network)
        embed = _embedder_of(found, config, device, precision)
        return LoadedEncoder(embed, card, embed.encoder)
    if path.suffix == ".onnx":
        if precision:
            raise UserError(f"{path}: an .onnx computes as its graph says; leave out --precision {precision}")
        session = OnnxEmbedder(path, device, channel_order)
        _refuse_contradiction(path, session.card, None, network)
        return LoadedEncoder(session, session.card, None)
    return _load_file(path, device, channel_order, network, precision or "auto")


def _load_file(
    path: Path, device: torch.device, order: ChannelOrder | None, network: str | None, precision: str
) -> LoadedEncoder:
    if network and network not in backbones.names():
        raise UserError(f"--network {network}: no such backbone; known are {', '.join(backbones.names())}")
    try:
        metadata = _safetensors_metadata(path) if path.suffix == ".safetensors" else {}
        if "format" in metadata and "network" in metadata:
            card = EncoderCard.from_metadata(metadata, str(path))
            _refuse_contradiction(path, card, order, network)
        else:
            name, size = backbones.identify_weights(path, network or "")
            card = EncoderCard(name, size, order or ("BGR" if name.startswith(_RELEASED_AS_BGR) else "RGB"))
        with torch.random.fork_rng(devices=[]):
            encoder = _build(card, path)
        backbones.load_weights(encoder, path)
    except UserError:
        raise
    except (ValueError, OSError) as fault:
        raise UserError(str(fault)) from fault
    encoder.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    embed = Embedder(encoder, device, card.channel_order, autocast_type(precision, device))
    return LoadedEncoder(embed, card, encoder)


def _build(card: EncoderCard, path: Path) -> nn.Module:
    options = {"map_norm": True} if card.map_norm else {}
    try:
        return backbones.build(card.network, embedding_size=card.embedding_size, **options)
    except TypeError as fault:
        raise UserError(f"{path}: says map_norm, which {card.network!r} does not have; export the encoder again") from fault


def _safetensors_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as fault:
        raise UserError(f"{path}: damaged or not a safetensors file ({fault}); copy it again") from fault


def _quality_of(folder: Path, config: Config) -> QualityScale | None:
    tensors = checkpoint.read_tensors(folder, prefix="quality.")
    if not {"quality.mean", "quality.std"} <= tensors.keys():
        return None
    mean, std = float(tensors["quality.mean"]), float(tensors["quality.std"])
    return QualityScale(mean, std, config.quality_concentration, config.quality_threshold)


def _refuse_contradiction(path: Path, card: EncoderCard, order: str | None, network: str | None) -> None:
    if order not in (None, card.channel_order):
        raise UserError(f"{path}: was made for {card.channel_order} and says so; leave out --channel-order {order}")
    if network not in (None, card.network):
        known = f"holds {card.network!r}" if card.network else "does not say which network it is"
        raise UserError(f"{path}: {known}; leave out --network {network}")
