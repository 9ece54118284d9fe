"""From a checked configuration to the objects that a run is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from losses.contrastive import ContrastiveLoss
from losses.joint import JointLoss
from losses.margins import AdaFace, ArcFace, Combined, CosFace, CurricularFace, MagFace, Margin
from losses.proxy_queue import FeatureQueue
from losses.quality import Partition, QualityStatistics, ViewPartition
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from recognition.data.dataset import FaceDataset
from recognition.data.loader import BatchSpec, Loader
from recognition.momentum_encoder import MomentumEncoder
from utils.config import Config
from utils.dist import World
from utils.errors import UserError


def _magface(config: Config) -> Margin:
    l_a, u_a, l_m, u_m, lambda_g = config.magface
    return MagFace(l_a, u_a, l_m, u_m, lambda_g, config.scale)


MARGINS: dict[str, Callable[[Config], Margin]] = {
    "adaface": lambda c: AdaFace(c.margin_m, c.scale),
    "arcface": lambda c: ArcFace(c.margin_m, c.scale),
    "cosface": lambda c: CosFace(c.margin_m, c.scale),
    "combined": lambda c: Combined(c.margin_list[0], c.margin_list[1], c.margin_list[2], c.scale),
    "magface": _magface,
    "curricularface": lambda c: CurricularFace(c.margin_m, c.scale),
}


def open_dataset(config: Config) -> FaceDataset:
    """The training set, checked against what the configuration says of it."""
    if not config.rec:
        raise UserError("rec is not set: give the folder with train.rec, such as rec=/data/faces_vgg_112x112")
    dataset = FaceDataset(config.rec, strict=config.on_error == "stop")
    if config.num_image and config.num_image != len(dataset):
        raise UserError(f"{config.rec}: holds {len(dataset)} images, but num_image={config.num_image}")
    dataset.check_labels(config.num_classes or dataset.num_classes)
    return dataset


def classes_without_images(config: Config, dataset: FaceDataset) -> str:
    """For the start of a run: how many of the classes no image belongs to, or nothing. Labels have been checked."""
    labels = dataset.labels()
    empty = np.flatnonzero(np.bincount(labels[labels >= 0], minlength=config.num_classes) == 0)
    if not len(empty):
        return ""
    return (
        f"warning: {len(empty)} of num_classes={config.num_classes} classes have no image in {config.rec} (the first: "
        f"{empty[0]}); their classifier rows are never a target"
    )


def settle(config: Config, dataset: FaceDataset, world: World) -> Config:
    """The configuration with what depends on the data set and the number of ranks filled in."""
    batch_size = config.batch_size
    if config.global_batch_size:
        batch_size, rest = divmod(config.global_batch_size, world.size)
        if rest or not batch_size:
            raise UserError(f"global_batch_size={config.global_batch_size} cannot be divided by {world.size} ranks")
    num_classes = config.num_classes or dataset.num_classes
    return replace(
        config,
        batch_size=batch_size,
        num_classes=num_classes,
        num_image=len(dataset),
        queue_size=config.queue_size or num_classes,
    )


def build_loader(config: Config, dataset: FaceDataset, world: World) -> Loader:
    spec = BatchSpec(
        batch_size=config.batch_size, num_classes=config.num_classes, seed=config.seed, views=config.views,
        augmentation=config.augmentation, shuffle=config.shuffle, channel_order=config.channel_order,
        window=config.shuffle_window, on_error=config.on_error, rank=world.rank, world=world.size,
    )  # fmt: skip
    return Loader(dataset, spec, config.num_workers)


def build_margin(config: Config) -> Margin:
    return MARGINS[config.margin](config)


def build_joint_loss(config: Config, world: World) -> JointLoss:
    """Classifier shard, statistics, partition, queue and contrastive term, on the device."""
    options = HeadOptions(
        config.sample_rate, config.interclass_filtering_threshold, precision=config.head_precision
    )  # fmt: skip
    classifier = ShardedSoftmax(
        config.num_classes, config.embedding_size, build_margin(config), config.seed, options=options
    )  # fmt: skip
    quality = QualityStatistics(
        config.quality_concentration, config.quality_rate, config.quality_mean, config.quality_std
    )  # fmt: skip
    queue = contrastive = None
    if config.queue != "none":
        in_step = config.views * config.batch_size * world.size
        size = in_step if config.queue == "batch" else config.queue_size
        one_step = config.queue == "batch"
        queue = FeatureQueue(size, config.embedding_size, classifier.shard, config.queue == "proxy", one_step)
        contrastive = ContrastiveLoss(
            config.contrastive_scale, config.contrastive_denominator, precision=config.head_precision,
            stop_gradient=config.contrastive_stop_gradient,
        )  # fmt: skip
    partition = ViewPartition() if config.partition == "views" else Partition(config.quality_threshold)
    joint = JointLoss(
        classifier, quality, partition, queue, contrastive, config.contrastive_weight, config.loss_average
    )  # fmt: skip
    return joint.to(world.device)


def build_momentum_encoder(config: Config, encoder: nn.Module) -> MomentumEncoder | None:
    """To be called when the encoder has its initial weights."""
    return MomentumEncoder(encoder, config.queue_momentum) if config.queue == "momentum" else None


def verification_sets(config: Config) -> dict[str, Path]:
    """Name -> path of the .bin sets that the configuration names."""
    sets = {}
    rec = Path(config.rec)
    folder = Path(config.val_dir) if config.val_dir else (rec if rec.is_dir() else rec.parent)
    for target in config.val_targets:
        path = Path(target) if target.endswith(".bin") else folder / f"{target}.bin"
        if not path.is_file():
            raise UserError(f"{path}: no such verification set (val_targets); correct val_targets or val_dir")
        sets[path.stem] = path
    return sets
