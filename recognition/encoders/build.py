"""Build the encoder that a configuration or an exported file describes, and load its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import backbones
from recognition.checkpoints import store
from recognition.encoders.card import EncoderCard, card_of_weights, order_of_family
from recognition.lora import load_base, merged
from utils import plugins
from utils.config import Config
from utils.errors import UserError


def build_encoder(config: Config) -> nn.Module:
    """The configuration's backbone with random weights, which depend on its seed alone (the same on all ranks)."""
    encoder = build_backbone(
        config.network,
        config.embedding_size,
        config.seed,
        **config.network_options,
        dropout=config.dropout or None,
        drop_path=config.drop_path,
        mask_ratio=config.mask_ratio,
        map_norm=config.map_norm or None,
        gradient_checkpointing=config.gradient_checkpointing or None,
    )
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return encoder.to(memory_format=layout)  # type: ignore[call-overload]


def build_backbone(network: str, embedding_size: int, seed: int = 0, source: str = "", **options: Any) -> nn.Module:
    """A backbone with random weights; the global random state stays as it is.

    network: a name of `backbones`; a plug-in, `module:name`, called with `embedding_size` and the options; or `timm:NAME`.
    source: what names the network, for errors. options: passed on unless they are None.
    Raises UserError if the network is unknown or does not support an option.
    """
    where = f"{source}: network={network!r}" if source else f"network={network!r}"
    chosen = {name: value for name, value in options.items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if network.startswith("timm:"):
                return _build_timm(network.removeprefix("timm:"), embedding_size, where, **chosen)
            if plugins.is_plugin(network):
                return plugins.load(network, where, f"add --network {network}")(embedding_size=embedding_size, **chosen)
            return backbones.build(network, embedding_size=embedding_size, **chosen)
        except UserError:
            raise
        except TypeError as fault:
            raise UserError(f"{where} {fault}") from fault
        except (ValueError, OSError) as fault:
            raise UserError(f"{where}: {fault}") from fault


def _build_timm(name: str, embedding_size: int, where: str, **options: Any) -> nn.Module:
    """An encoder of timm (https://github.com/huggingface/pytorch-image-models), whose classifier becomes the embedding."""
    timm = plugins.require("timm", "requirements/timm.txt", where)
    try:
        return timm.create_model(name, num_classes=embedding_size, **options)
    except RuntimeError as fault:  # an unknown name
        raise UserError(f"{where}: {fault}") from fault


def initialise(encoder: nn.Module, config: Config) -> str:
    """Load the weights that `init_from` names: a weight file, or a run or checkpoint folder.

    Returns a line for the user. Raises UserError if they do not fit, or were trained with another channel order or norm.
    """
    if config.lora_rank:
        base = build_encoder(config)
        note = initialise(base, replace(config, lora_rank=0))
        load_base(encoder, base.state_dict())
        return note
    path = Path(config.init_from)
    if path.is_dir():
        return _initialise_from_run(encoder, config, path)
    try:
        card = card_of_weights(path)
        if card is not None:
            _refuse_difference(config, card)
        left_out = backbones.load_weights(encoder, path)
    except UserError:
        raise
    except (ValueError, TypeError, OSError) as fault:
        raise UserError(f"init_from={config.init_from!r}, network={config.network!r}: {fault}") from fault
    about = ""
    if card is None:
        _refuse_other_order(config)
        about = ", by the rule of its family"
        if config.map_norm:
            about += "; its features had their own norm, those of this run have the last map's (map_norm)"
    head = f"; left out: {', '.join(left_out[:3])}{', …' if len(left_out) > 3 else ''}" if left_out else ""
    return f"encoder: released weights from {path} ({config.channel_order}{about}){head}; {_new_parts(config)} are new"


def _refuse_difference(config: Config, trained: Config | EncoderCard) -> None:
    """Raise UserError if the encoder of `init_from` was trained as another network, or with another channel order or norm."""
    for key in ("network", "embedding_size", "channel_order", "map_norm"):
        if getattr(trained, key) != getattr(config, key):
            raise UserError(
                f"init_from={config.init_from!r}: that encoder has {key}={getattr(trained, key)!r}, this run has "
                f"{key}={getattr(config, key)!r}; use the same"
            )


def _refuse_other_order(config: Config) -> None:
    """Raise UserError if `channel_order` differs from the family's; for released weights that do not state theirs."""
    order = order_of_family(config.network)
    if config.channel_order != order:
        file, wanted = config.init_from, config.channel_order
        raise UserError(
            f"init_from={file!r}: does not state its channel order; {config.network} weights expect {order}, this run has "
            f"channel_order={wanted!r}; use the same. If the file is known to expect {wanted}, record that in it: python -m eval "
            f"export --checkpoint {file} --channel-order {wanted} --out {Path(file).with_suffix('')}-{wanted}.safetensors"
        )


def _initialise_from_run(encoder: nn.Module, config: Config, path: Path) -> str:
    folder = store.find(path)
    before = store.read_config(folder)
    _refuse_difference(config, before)
    load_from_checkpoint(encoder, folder)
    return (
        f"encoder: from {folder} ({before.network}, trained on {before.num_classes} classes); "
        f"{_new_parts(config, f'the classifier of {config.num_classes} classes')} are new"
    )


def _new_parts(config: Config, classifier: str = "classifier") -> str:
    return f"{classifier}, quality statistics and queue" if config.head_from == "new" else "quality statistics and queue"


def load_from_checkpoint(encoder: nn.Module, folder: Path, prefix: str = "encoder.") -> None:
    """Load a checkpoint's encoder, strictly, with the updates of LoRA merged into its weights. Raises UserError if it does not
    fit.

    prefix: "ema." for the average of its weights, if the run has one.
    """
    tensors = merged(store.read_tensors(folder, prefix))
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as fault:
        raise UserError(f"{folder}: its encoder does not fit this version's backbone: {fault}") from fault
    if problem := backbones.not_finite(tensors):
        raise UserError(f"{folder}: {problem}; use an earlier checkpoint")
