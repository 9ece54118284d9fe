"""Build the objects of a run from a checked configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from losses import margins
from losses.contrastive import ContrastiveLoss
from losses.joint import JointLoss
from losses.possibly_same import PossiblySame
from losses.proxy_queue import FeatureQueue
from losses.quality import AnyPartition, Partition, QualityStatistics, ViewPartition
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from recognition.data.dataset import FaceDataset
from recognition.data.loader import BatchSpec, Loader
from recognition.data.sets.opening import training_set
from recognition.data.sets.synthetic import SYNTHETIC
from recognition.data.sets.unlabelled import open_unlabelled
from recognition.encoders.build import build_encoder
from recognition.encoders.embedder import autocast_type, product_precision
from recognition.encoders.teacher import Teacher
from recognition.encoders.thresholds import EMA_SUFFIX
from recognition.freezing import freeze
from recognition.lora import adapt
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import LossScale, build_optimiser
from recognition.sharding import shard
from recognition.step import TrainStep
from recognition.train_state import TrainState
from utils import plugins
from utils.config import Config
from utils.dist import World
from utils.errors import UserError
from utils.sync_bn import convert_sync_batchnorm

# ------------------------------------------------------------------------------------------------ data


def open_dataset(config: Config) -> FaceDataset:
    """The training set. Raises UserError if it contradicts the configuration."""
    if not config.rec:
        raise UserError("rec is not set: give the folder with train.rec, such as rec=/data/faces_vgg_112x112")
    dataset = training_set(config)
    if config.num_image and config.num_image != len(dataset):
        raise UserError(f"{config.rec}: holds {len(dataset)} images, but num_image={config.num_image}")
    dataset.check_training_files()
    dataset.check_labels(config.num_classes or dataset.num_classes)
    labels = dataset.labels()
    people = np.unique(labels[labels >= 0])
    if len(people) == 1:
        raise UserError(f"{config.rec}: all {len(labels)} images have label {people[0]}; training needs at least two identities")
    return dataset


def resolve_config(config: Config, dataset: FaceDataset | None, ranks: int) -> Config:
    """Fill in what depends on the training set (None: num_classes and num_image are those of `config`) and on the ranks."""
    batch_size = config.batch_size
    if config.global_batch_size:
        batch_size, rest = divmod(config.global_batch_size, ranks)
        if rest or not batch_size:
            raise UserError(f"global_batch_size={config.global_batch_size} cannot be divided by {ranks} ranks")
    num_classes = config.num_classes or (0 if dataset is None else dataset.num_classes)
    return replace(
        with_margin(config),
        batch_size=batch_size,
        num_classes=num_classes,
        num_image=config.num_image if dataset is None else len(dataset),
        queue_size=config.queue_size or num_classes,
    )


def data_notes(config: Config, dataset: FaceDataset, unlabelled: FaceDataset | None = None) -> list[str]:
    """Lines about the training set for the start of the log. The labels have been checked."""
    if unlabelled is not None:
        return [*data_notes(config, dataset), f"unlabelled images in {config.unlabelled}: {len(unlabelled):,}"]
    if config.rec == SYNTHETIC:
        return [
            f"warning: rec={SYNTHETIC!r}: images and labels are RANDOM: speed and memory are those of a real run, losses and "
            "accuracies mean nothing"
        ]
    is_file = all(Path(path).is_file() for path in config.data_sets)
    notes = [] if is_file else [f"data files in {dataset.path}: {dataset.describe_files()}"]
    gaps = classes_without_images(config, dataset)
    return [*notes, gaps] if gaps else notes


def classes_without_images(config: Config, dataset: FaceDataset) -> str:
    """A warning if some of the classes have no image, else "". The labels have been checked."""
    labels = dataset.labels()
    empty = np.flatnonzero(np.bincount(labels[labels >= 0], minlength=config.num_classes) == 0)
    if not len(empty):
        return ""
    return (
        f"warning: {len(empty)} of num_classes={config.num_classes} classes have no image in {config.rec} (the first: "
        f"{empty[0]}); their classifier rows are never a target"
    )


def build_loader(config: Config, dataset: FaceDataset, world: World) -> Loader:
    """The loader of labelled and unlabelled images. Forks its workers, so call it before anything starts a thread."""
    unlabelled = open_unlabelled(config.unlabelled, strict=config.on_error == "stop") if config.unlabelled else None
    return Loader(dataset, BatchSpec.of(config, world.rank, world.size), config.num_workers, unlabelled)


def verification_sets(config: Config) -> dict[str, Path]:
    """Name -> path of the .bin files that the configuration names. Raises UserError with one line per problem."""
    sets: dict[str, Path] = {}
    rec = Path(config.data_sets[0])
    folder = Path(config.val_dir) if config.val_dir else (rec if rec.is_dir() else rec.parent)
    candidates = {
        target: [*([Path(target), folder / target] if target.endswith(".bin") else []), folder / f"{target}.bin"]
        for target in config.val_targets
    }
    paths = {target: next((path for path in places if path.is_file()), None) for target, places in candidates.items()}
    there = ",".join(target for target, path in paths.items() if path)
    advice = "correct val_targets or val_dir" + (f", or use those that are there: val_targets={there}" if there else "")
    problems = []
    for target, path in paths.items():
        if path is None:
            looked = " and ".join(dict.fromkeys(map(str, candidates[target])))
            problems.append(f"val_targets: {target!r} not found; looked for {looked}; {advice}")
        elif path.stem in sets:
            problems.append(f"val_targets: {sets[path.stem]} and {path} have the same name; rename one, or leave one out")
        else:
            sets[path.stem] = path
    if config.ema:
        problems += [
            f"val_targets: {name}{EMA_SUFFIX} is the name of the EMA's results on {name}; rename the file"
            for name in sets
            if name + EMA_SUFFIX in sets
        ]
    if problems:
        raise UserError(*problems)
    return sets


# ------------------------------------------------------------------------------------------------ training


def build_train_state(config: Config, world: World, dataset: FaceDataset | None = None) -> TrainState:
    """All that training changes, with initial weights, on the device. dataset: tells which identities may be the same person."""
    encoder = build_encoder(config).to(world.device)
    if config.sync_bn:
        encoder = convert_sync_batchnorm(encoder)
    freeze(encoder, config.freeze)
    if config.lora_rank:
        adapt(encoder, config.lora_rank, config.lora_alpha, config.seed)
    momentum_encoder = build_momentum_encoder(config, encoder)
    ema = MomentumEncoder(encoder, config.ema, with_statistics=True) if config.ema else None
    autocast = autocast_type(config.precision, world.device)
    if config.encoder_sharding == "fsdp":
        shard(encoder, world.device, autocast)
        if momentum_encoder is not None:
            shard(momentum_encoder.copy, world.device, autocast)
    joint = build_joint_loss(config, world, dataset)
    return TrainState(
        encoder,
        joint,
        build_optimiser(config, encoder, joint.classifier),
        LossScale(autocast == torch.float16, world.device),
        momentum_encoder,
        ema,
    )


def build_momentum_encoder(config: Config, encoder: nn.Module) -> MomentumEncoder | None:
    """The momentum encoder, if the queue needs one."""
    if config.queue != "momentum":
        return None
    return MomentumEncoder(encoder, config.queue_momentum, takes_augmented=config.momentum_views == "augmented")


def with_margin(config: Config) -> Config:
    """Fill in the margin's default of `margin_m`. Raises UserError if there is no such margin."""
    try:
        default = margins.default_m(config.margin)
    except ValueError as fault:
        raise UserError(f"margin={config.margin!r}: {fault}") from fault
    return config if config.margin_m is not None else replace(config, margin_m=default)


def build_margin(config: Config) -> margins.Margin:
    """The margin that the configuration names. Raises UserError if there is no such margin."""
    return margins.build(config.margin, with_margin(config))


def build_partition(config: Config) -> AnyPartition:
    """What is classified and what contrasted. Raises UserError if there is no such partition."""
    if plugins.is_plugin(config.partition):
        return plugins.build(config.partition, f"partition={config.partition!r}", config, **config.partition_options)
    return ViewPartition() if config.partition == "views" else Partition(config.quality_threshold)


def build_joint_loss(config: Config, world: World, dataset: FaceDataset | None = None) -> JointLoss:
    """Classifier shard, quality statistics, partition, queue and contrastive term, on the device. dataset: as above."""
    possibly_same = None
    if dataset is not None and dataset.possibly_same is not None:
        possibly_same = PossiblySame(*dataset.possibly_same)
    products = product_precision(config.head_precision, config.precision, world.device)
    options = HeadOptions(
        config.sample_rate,
        config.interclass_filtering_threshold,
        precision=products,
        filtered=config.filtered_negatives,
        gradient=config.head_gradient,
    )
    margin = build_margin(config)
    classifier = ShardedSoftmax(config.num_classes, config.embedding_size, margin, config.seed, options, possibly_same)
    quality = QualityStatistics(config.quality_concentration, config.quality_rate, config.quality_mean, config.quality_std)
    partition = build_partition(config)
    queue = contrastive = None
    if config.queue != "none":
        one_step = config.queue == "batch"
        size = config.views * config.batch_size * world.size if one_step else config.queue_size
        queue = FeatureQueue(size, config.embedding_size, classifier.shard, config.queue == "proxy", one_step)
        contrastive = ContrastiveLoss(
            config.contrastive_scale,
            config.contrastive_denominator,
            config.contrastive_stop_gradient,
            precision=products,
            possibly_same=possibly_same,
            target=config.contrastive_target,
        )
    weights = (config.contrastive_weight, config.loss_average, config.distillation_weight)
    return JointLoss(classifier, quality, partition, queue, contrastive, *weights).to(world.device)


def build_train_step(
    config: Config, world: World, state: TrainState, on_outcome: Callable[[str], None], teacher: Teacher | None = None
) -> TrainStep:
    """The training step over all ranks. Call it when the encoder's weights are loaded: DDP distributes rank 0's."""
    encoder = state.encoder
    if config.encoder_sharding == "none":
        encoder = DistributedDataParallel(
            torch.compile(encoder) if config.compile else encoder,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    return TrainStep(
        state,
        encoder,
        device=world.device,
        autocast=autocast_type(config.precision, world.device),
        max_grad_norm=config.max_grad_norm,
        clip_head=config.clip == "all",
        average_batches=config.accumulation == "mean",
        on_outcome=on_outcome,
        teacher=teacher,
    )
