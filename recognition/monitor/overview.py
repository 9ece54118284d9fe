"""What a run will do, as one table: printed at the start, so that no one has to guess which recipe runs."""

from __future__ import annotations

from prettytable import PrettyTable
from torch import nn

import backbones
from recognition.encoders.embedder import product_precision
from recognition.schedule import Schedule
from utils.config import Config
from utils.dist import World


def overview(config: Config, world: World, encoder: nn.Module, precision: str, schedule: Schedule) -> PrettyTable:
    """Part of the recipe | what it is, from a resolved configuration. precision: of the encoder, such as "bf16"."""
    products = product_precision(config.head_precision, config.precision, world.device)
    table = PrettyTable(["part", "setting"], align="l")
    table.add_rows(
        [
            ["network", f"{config.network}, {_size(encoder, config)}; {precision}, {config.channel_order} input"],
            ["machine", _machine(config, world)],
            ["data", _data(config)],
            *([["unlabelled", f"{config.unlabelled}: {config.unlabelled_share:.1%} of each batch"]] if config.unlabelled else []),
            ["views", f"{config.views} per image; augmentation {config.augmentation}{_colours(config)}"],
            ["margin", f"{_margin(config)}; products in {products}"],
            ["partition", _partition(config)],
            ["queue", _queue(config)],
            *([["teacher", f"{config.teacher}; weight {config.distillation_weight:g}"]] if config.teacher else []),
            ["batch", _batch(config, world)],
            ["optimiser", _optimiser(config)],
            ["schedule", _schedule(config, schedule)],
            ["output", config.output],
        ]
    )
    return table


def _colours(config: Config) -> str:
    return f", {config.colour_transfer:.0%} in other images' colours" if config.colour_transfer else ""


def _machine(config: Config, world: World) -> str:
    ranks = f"{world.size} GPU(s)" if world.device.type == "cuda" else f"CPU (no GPU found), {world.size} rank(s)"
    return ranks if config.encoder_sharding == "none" else f"{ranks}; encoder sharded over them ({config.encoder_sharding})"


def _size(encoder: nn.Module, config: Config) -> str:
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    frozen = sum(p.numel() for p in encoder.parameters() if not p.requires_grad)
    lora = f", LoRA of rank {config.lora_rank}" if config.lora_rank else ""
    also = f" ({frozen / 1e6:.1f} M frozen{lora})" if config.freeze or lora else ""
    return f"{parameters / 1e6:.1f} M parameters{also}, {backbones.multiply_adds(encoder) / 1e9:.2f} GMACs"


def _data(config: Config) -> str:
    sets = list(config.data_sets)
    if len(sets) > 1:
        proportions = config.rec_proportions or (1.0,) * len(sets)
        relations = config.rec_identities or ("separate",)
        relations = relations if len(relations) > 1 else relations * len(sets)
        parts = zip(sets, proportions, relations, strict=True)
        sets = [f"{path} ({'' if visits == 1 else f'x {visits:g}, '}{relation})" for path, visits, relation in parts]
    return f"{' + '.join(sets)}: {config.num_image:,} images, {config.num_classes:,} classes"


def _margin(config: Config) -> str:
    values = {"combined": f"(m1, m2, m3) = {config.margin_list}", "magface": f"{config.magface}"}
    margin = f"{config.margin}, {values.get(config.margin, f'm = {config.margin_m}')}, scale {config.scale:g}"
    gradient = "" if config.margin_gradient == "exact" else f", {config.margin_gradient} gradient"
    sampled = "" if config.sample_rate == 1 else f"; {100 * config.sample_rate:g} % of the classes per step (partial FC)"
    threshold = config.interclass_filtering_threshold
    filtered = f"; negatives above cosine {threshold:g} {config.filtered_negatives}" if threshold else ""
    return f"{margin}{gradient}{sampled}{filtered}"


def _partition(config: Config) -> str:
    if config.partition == "views":
        return "by view: augmented views are of low quality"
    if config.quality_threshold is None:
        return "none: every feature is classified"
    if config.partition == "scale":
        return f"by scale: the {100 * config.quality_threshold:g} % of the augmented views with the smallest are of low quality"
    return f"by norm: low quality below {config.quality_threshold:g}"


def _queue(config: Config) -> str:
    if config.queue == "none":
        return "none: no contrastive loss"
    entries = "" if config.queue == "batch" else f", {config.queue_size:,} entries"
    queue = f"{config.queue} (augmented views)" if config.momentum_views == "augmented" else config.queue
    target = "" if config.contrastive_target == "original" else f", target {config.contrastive_target}"
    weight = f"contrastive weight {config.contrastive_weight:g}, scale {config.contrastive_scale:g}"
    return f"{queue}{entries}; {weight}, {config.contrastive_denominator}{target}"


def _batch(config: Config, world: World) -> str:
    images = config.batch_size * world.size
    accumulated = f", {config.gradient_acc} batches per step ({config.accumulation})" if config.gradient_acc > 1 else ""
    return f"{images:,} images = {world.size} rank(s) x {config.batch_size}{accumulated}"


def _optimiser(config: Config) -> str:
    momentum = f", momentum {config.momentum:g}" if config.optimizer == "sgd" else ""
    clipped = f", gradient norm <= {config.max_grad_norm:g} ({config.clip})" if config.max_grad_norm else ""
    decay = f" (times {config.layer_decay:g} per stage)" if config.layer_decay < 1 else ""
    average = f", EMA {config.ema:g}" if config.ema else ""
    return f"{config.optimizer}, lr {config.lr:g}{decay}{momentum}, weight decay {config.weight_decay:g}{clipped}{average}"


def _schedule(config: Config, schedule: Schedule) -> str:
    shapes = {
        "multistep": f"multistep, lr / 10 from epochs {', '.join(f'{epoch:g}' for epoch in config.milestones)}",
        "polynomial": f"polynomial, power {config.polynomial_power:g}",
    }
    warmup = f", warm-up {config.warmup_epoch:g}" if config.warmup_epoch else ""
    steps = f"{schedule.steps_per_epoch:,} steps per epoch, {schedule.total_steps:,} in all"
    return f"{shapes.get(config.schedule, config.schedule)}; {config.num_epoch} epochs{warmup}; {steps}"
