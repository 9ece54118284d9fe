"""The settings of a run: their names, types and ranges."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from configs.base import config as base
from utils.config.rules import RULES, Rule, broken
from utils.config.values import as_type, expand_user
from utils.dialect import Entry
from utils.errors import UserError
from utils.files import write_file

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
    colour_transfer: Annotated[float, (">=", 0), ("<=", 1)]
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
    head_precision: Literal["auto", "fp32", "bf16"]
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


_TYPES = typing.get_type_hints(Config, include_extras=True)
_PATHS = {"rec", "unlabelled", "init_from", "teacher", "output", "val_targets", "val_dir"}  # `~` is expanded


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
    problems += broken(rules, values)
    if problems:
        raise UserError(*problems)
    return values


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
