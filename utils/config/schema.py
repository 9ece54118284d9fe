"""The settings of a run: their names, types and ranges, and what they must satisfy together."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from configs.base import config as base
from utils import plugins
from utils.config.values import as_type, expand_user
from utils.dialect import Entry
from utils.errors import UserError
from utils.files import is_address, write_file

PositiveInt = Annotated[int, (">", 0)]
NonNegativeInt = Annotated[int, (">=", 0)]
PositiveFloat = Annotated[float, (">", 0)]
NonNegativeFloat = Annotated[float, (">=", 0)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a training run: each key with its type and range. See configs/base.py for defaults and explanations."""

    # data
    rec: str | tuple[str, ...]
    rec_proportions: tuple[PositiveFloat, ...]
    rec_identities: tuple[str, ...]
    num_classes: NonNegativeInt
    num_image: NonNegativeInt
    unlabelled: str
    unlabelled_share: Annotated[float, (">", 0), ("<", 1)]
    shuffle: Literal["full", "windowed", "none"]
    shuffle_window: PositiveInt
    on_error: Literal["stop", "skip"]
    num_workers: NonNegativeInt
    channel_order: Literal["RGB", "BGR"]
    views: Literal[1, 2]
    augmentation: str
    augmentation_options: dict[str, Any]
    # encoder
    network: str
    network_options: dict[str, Any]
    embedding_size: PositiveInt
    dropout: Annotated[float, (">=", 0), ("<", 1)]
    drop_path: Annotated[float, (">=", 0), ("<", 1)] | None
    mask_ratio: Annotated[float, (">=", 0), ("<", 1)] | None
    map_norm: bool
    init_from: str
    head_from: Literal["new", "means", "kept"]
    freeze: tuple[str, ...]
    lora_rank: NonNegativeInt
    lora_alpha: PositiveFloat
    sync_bn: bool
    channels_last: bool
    compile: bool
    gradient_checkpointing: bool
    encoder_sharding: Literal["none", "fsdp"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    # quality and losses
    quality_concentration: PositiveFloat
    quality_rate: Annotated[float, (">=", 0), ("<=", 1)]
    quality_mean: NonNegativeFloat
    quality_std: NonNegativeFloat
    partition: str
    partition_options: dict[str, Any]
    quality_threshold: Annotated[float, (">=", 0), ("<=", 1)] | None
    margin: str
    margin_options: dict[str, Any]
    margin_m: NonNegativeFloat | None
    margin_list: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None
    margin_gradient: Literal["exact", "straight_through"]
    magface: tuple[PositiveFloat, PositiveFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    scale: PositiveFloat
    head_precision: Literal["fp32", "bf16"]
    head_gradient: Literal["stored", "streamed"]
    sample_rate: Annotated[float, (">=", 0), ("<=", 1)]
    unsampled_rows: Literal["kept", "moved"]
    interclass_filtering_threshold: Annotated[float, (">=", 0), ("<", 1)]
    filtered_negatives: Literal["dropped", "zeroed"]
    queue: Literal["none", "batch", "momentum", "proxy"]
    queue_size: NonNegativeInt
    queue_momentum: Annotated[float, (">=", 0), ("<", 1)]
    momentum_views: Literal["both", "augmented"]
    contrastive_weight: NonNegativeFloat
    contrastive_scale: PositiveFloat
    contrastive_denominator: Literal["paper", "infonce"]
    contrastive_target: Literal["original", "better", "symmetric"]
    contrastive_stop_gradient: bool
    loss_average: Literal["all", "selected"]
    teacher: str
    distillation_weight: PositiveFloat
    partition_warmup_epoch: NonNegativeFloat
    # optimisation
    batch_size: PositiveInt
    global_batch_size: NonNegativeInt
    gradient_acc: PositiveInt
    accumulation: Literal["mean", "sum"]
    num_epoch: PositiveInt
    max_steps: NonNegativeInt
    optimizer: Literal["sgd", "adamw"]
    lr: PositiveFloat
    layer_decay: Annotated[float, (">", 0), ("<=", 1)]
    momentum: Annotated[float, (">=", 0), ("<", 1)]
    weight_decay: NonNegativeFloat
    decay_norms: bool
    schedule: Literal["multistep", "polynomial", "cosine"]
    polynomial_power: PositiveFloat
    milestones: tuple[NonNegativeFloat, ...]
    warmup_epoch: NonNegativeFloat
    ema: Annotated[float, (">=", 0), ("<", 1)]
    max_grad_norm: NonNegativeFloat
    clip: Literal["all", "encoder"]
    max_skipped: PositiveInt
    seed: NonNegativeInt
    # output
    output: str
    hooks: tuple[str, ...]
    trackers: tuple[str, ...]
    tracker_options: dict[str, dict[str, Any]]
    val_targets: tuple[str, ...]
    val_dir: str
    val_batch_size: PositiveInt
    frequent: PositiveInt
    diagnose_every: NonNegativeInt
    verbose: NonNegativeInt
    verify_share: Annotated[float, (">", 0), ("<=", 1)]
    save_every: NonNegativeInt
    save_minutes: NonNegativeFloat
    keep_last: PositiveInt
    keep_best: str
    async_save: bool
    resume: bool
    timeout_minutes: Annotated[float, (">", 0), ("<=", 525_600)]

    def __post_init__(self) -> None:
        check(entries_of(vars(self)), RULES)

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The data sets that `rec` names."""
        return (self.rec,) if isinstance(self.rec, str) else self.rec

    def save(self, path: Path) -> None:
        """Write `as_json`. Raises UserError if the file cannot be written."""
        write_file(path, self.as_json())

    def as_json(self) -> str:
        """All keys and values, for `load_json`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def as_file(self, name: str) -> str:
        """The configuration as a file in the style of configs/: what differs from configs/base.py.

        name: of the file it was loaded from. An output folder that only follows from it is left out.
        """
        derived = ("output", f"runs/{name}")
        different = {key: value for key, value in vars(self).items() if value != base[key] and (key, value) != derived}
        changed = "".join(f"    {key}={value!r},\n" for key, value in different.items())
        imports = "from easydict import EasyDict as edict\n\nfrom configs.base import config as base\n"
        return f"{imports}\nconfig = edict(\n    base,\n{changed})\n"


Rule = tuple[Callable[[Any], bool], str]
"""A condition on the settings; the message if it does not hold."""
_TYPES = typing.get_type_hints(Config, include_extras=True)
_PATHS = {"rec", "unlabelled", "init_from", "teacher", "output", "val_targets", "val_dir"}  # `~` is expanded


def _needs_plugin(key: str) -> Callable[[Any], bool]:
    """Whether a key names a plug-in, if there are options for one."""
    return lambda config: not getattr(config, f"{key}_options") or plugins.is_plugin(getattr(config, key))


def learned_views(config: Any) -> int:
    """The number of views of each image from which the encoder learns."""
    return 1 if config.momentum_views == "augmented" else config.views


# Arguments of a network's constructor that are keys of their own, or the builder's.
_SET_ELSEWHERE = {
    *("embedding_size", "dropout", "drop_path", "mask_ratio", "map_norm", "gradient_checkpointing"),
    *("network", "seed", "source"),
}

# What keys must satisfy together.
RULES: list[Rule] = [
    (lambda c: learned_views(c) * c.batch_size > 1, "batch_size={batch_size}: BatchNorm needs at least 2 images per rank"),
    (lambda c: not c.map_norm or c.margin != "magface", "map_norm=True: margin='magface' trains the norm; use another margin"),
    (
        lambda c: not (c.compile and c.gradient_checkpointing),
        "gradient_checkpointing=True: torch.compile does not support it here; set compile=False",
    ),
    (
        lambda c: not c.compile or c.encoder_sharding == "none",
        "encoder_sharding={encoder_sharding!r}: torch.compile does not support it here; set compile=False",
    ),
    (
        lambda c: c.encoder_sharding == "none" or not (c.lora_rank or c.ema or c.teacher),
        "encoder_sharding={encoder_sharding!r}: not supported with lora_rank, ema or teacher; leave those out, or set 'none'",
    ),
    (
        lambda c: (
            c.margin_gradient == "exact"
            or c.margin == "arcface"
            or (c.margin == "combined" and (c.margin_list or (1, 0.5, 0))[::2] == (1, 0))
        ),
        "margin_gradient={margin_gradient!r}: needs margin='arcface', or margin='combined' with m1 = 1 and m3 = 0",
    ),
    (
        lambda c: c.partition in ("norm", "views", "scale") or plugins.is_plugin(c.partition),
        "partition={partition!r}: must be 'norm', 'views', 'scale' or a plug-in, module:name",
    ),
    *[
        (_needs_plugin(key), f"{key}_options={{{key}_options}}: are a plug-in's; {key}={{{key}!r}} has none")
        for key in ("margin", "partition")
    ],
    (
        lambda c: not c.network_options.keys() & _SET_ELSEWHERE,
        "network_options={network_options}: may not contain keys that have a setting of their own, such as dropout; use that",
    ),
    (
        lambda c: c.tracker_options.keys() <= set(c.trackers),
        "tracker_options={tracker_options}: are for trackers that trackers={trackers} does not name",
    ),
    (lambda c: c.partition != "views" or c.views == 2, "partition='views' separates augmented from original views: set views=2"),
    (
        lambda c: c.partition != "scale" or c.augmentation in ("qgface", "chain"),
        "partition='scale' divides by the scale that 'qgface' and 'chain' draw; not with augmentation={augmentation!r}",
    ),
    (lambda c: c.queue == "none" or c.views == 2, "queue={queue!r} needs both views: set views=2, or queue='none'"),
    (
        lambda c: c.momentum_views == "both" or (c.queue == "momentum" and c.contrastive_target == "original"),
        "momentum_views={momentum_views!r}: needs queue='momentum' and, because only originals learn, "
        "contrastive_target='original'",
    ),
    (
        lambda c: not c.unlabelled or c.queue != "none",
        "unlabelled={unlabelled!r}: images without identities are only contrasted, and queue='none' leaves that out: set views=2 "
        "and another queue",
    ),
    (
        lambda c: c.head_gradient == "stored" or (c.optimizer == "sgd" and c.sample_rate == 1 and c.gradient_acc == 1),
        "head_gradient='streamed' needs optimizer='sgd' (not {optimizer!r}), sample_rate=1 (not {sample_rate}) and "
        "gradient_acc=1 (not {gradient_acc})",
    ),
    (lambda c: not 0 < c.sample_rate < 0.01, "sample_rate={sample_rate}: must be 0 (the classes of the batch alone) or >= 0.01"),
    (lambda c: c.magface[0] < c.magface[1], "magface={magface}: must be (l_a, u_a, l_m, u_m, lambda_g) with l_a < u_a"),
    (lambda c: list(c.milestones) == sorted(c.milestones), "milestones={milestones}: must be in increasing order"),
]

# Checked before training only: a run that an earlier version trained otherwise can still be evaluated.
PLAN_RULES: list[Rule] = [
    (lambda c: not is_address(c.output), "output={output!r}: is an address; give a folder on a mounted file system"),
    (
        lambda c: c.margin_list is None or c.margin == "combined",
        "margin_list={margin_list}: margin={margin!r} does not use it; set margin='combined', or leave it out",
    ),
    (
        lambda c: not c.rec_proportions or len(c.rec_proportions) == _sets(c),
        "rec_proportions={rec_proportions}: must have one number for each data set of rec={rec!r}",
    ),
    (
        lambda c: len(c.rec_identities) in (0, _sets(c)) or (len(c.rec_identities) == 1 < _sets(c)),
        "rec_identities={rec_identities}: must have one entry for each data set of rec={rec!r}, or one for all",
    ),
    (
        lambda c: c.shuffle != "windowed" or set(c.rec_proportions) <= {1.0},
        "rec_proportions={rec_proportions}: shuffle='windowed' reads each image once per epoch; set shuffle='full'",
    ),
    (lambda c: c.head_from == "new" or c.init_from, "head_from={head_from!r}: needs init_from, the encoder to start from"),
    (lambda c: not c.lora_rank or c.init_from, "lora_rank={lora_rank}: needs init_from, the encoder to adapt"),
    (lambda c: c.warmup_epoch <= c.num_epoch, "warmup_epoch={warmup_epoch}: must be <= num_epoch={num_epoch}"),
    (
        lambda c: c.partition_warmup_epoch <= c.num_epoch,
        "partition_warmup_epoch={partition_warmup_epoch}: must be <= num_epoch={num_epoch}",
    ),
    (
        lambda c: c.schedule != "multistep" or all(epoch <= c.num_epoch for epoch in c.milestones),
        "milestones={milestones}: must all be <= num_epoch={num_epoch}",
    ),
]


def _sets(config: Any) -> int:
    """The number of data sets that `rec` names; 0 for one, which has no relation to others."""
    return 0 if isinstance(config.rec, str) else len(config.rec)


def entries_of(values: Mapping[str, Any], source: str = "") -> list[Entry]:
    """The entries for keys and values from one source."""
    return [(f"{source}{key}={value!r}", key, value) for key, value in values.items()]


def check(entries: Iterable[Entry], rules: Iterable[Rule], problems: Sequence[str] = ()) -> dict[str, Any]:
    """Key -> value in the key's type; a key's last entry counts. Raises UserError with all problems, the given ones first."""
    values: dict[str, Any] = {}
    problems = list(problems)
    for where, key, value in entries:
        try:
            values.pop(key, None)
            values[key] = _convert(key, value)
        except ValueError as fault:
            problems.append(f"{where}: {fault}")
    problems += _broken(rules, values)
    if problems:
        raise UserError(*problems)
    return values


def _broken(rules: Iterable[Rule], values: Mapping[str, Any]) -> Iterable[str]:
    """Messages of the rules that do not hold. A rule is skipped if one of its keys is missing, which is reported separately."""
    config = types.SimpleNamespace(**values)
    for holds, message in rules:
        with contextlib.suppress(AttributeError):
            if not holds(config):
                yield message.format(**values)


def _convert(key: str, value: Any) -> Any:
    """`value` in the type of its key, without loss. Raises ValueError with what it must be."""
    if key not in _TYPES:
        near = difflib.get_close_matches(key, _TYPES, 1)
        raise ValueError(f"unknown key; did you mean {near[0]!r}?" if near else "unknown key; configs/base.py lists all keys")
    try:
        converted = as_type(value, _TYPES[key])
        if key in _PATHS:
            return expand_user(converted) if isinstance(converted, str) else tuple(map(expand_user, converted))
        return converted
    except ValueError as fault:
        raise ValueError(f"must be {fault}") from None
