"""Configuration: easydict files that people write, one checked and frozen dataclass that the code sees.

`load("configs/vgg2_r34_qg", ["lr=0.1"])` takes the values of `Config` below, then those of the file (a Python file with an
easydict `config`), then the `key=value` overrides. An unknown key, a wrong type or an impossible value is a `UserError` that
names the file or argument and, for a key, the nearest known name.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import runpy
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError


@dataclass(frozen=True)
class Config:
    """Everything that a training run is told. configs/base.py documents each key for those who write configurations."""

    # data
    rec: str = ""
    num_classes: int = 0
    num_image: int = 0
    shuffle: Literal["full", "windowed", "none"] = "full"
    shuffle_window: int = 131072
    on_error: Literal["stop", "skip"] = "stop"
    num_workers: int = 2
    channel_order: Literal["RGB", "BGR"] = "RGB"
    views: int = 2
    augmentation: Literal["none", "qgface", "adaface"] = "qgface"
    # encoder
    network: str = "r34"
    embedding_size: int = 512
    dropout: float = 0.0
    map_norm: bool = False
    init_from: str = ""
    sync_bn: bool = False
    channels_last: bool = True
    compile: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # quality and losses
    quality_concentration: float = 0.333
    quality_rate: float = 0.01
    quality_mean: float = 20.0
    quality_std: float = 100.0
    partition: Literal["norm", "views"] = "norm"
    quality_threshold: float | None = 0.2
    margin: Literal["adaface", "arcface", "cosface", "combined", "magface", "curricularface"] = "adaface"
    margin_m: float = 0.4
    margin_list: tuple[float, ...] = (1.0, 0.5, 0.0)
    magface: tuple[float, ...] = (10.0, 110.0, 0.45, 0.8, 35.0)
    scale: float = 64.0
    head_precision: Literal["fp32", "bf16"] = "fp32"
    sample_rate: float = 1.0
    interclass_filtering_threshold: float = 0.0
    queue: Literal["none", "batch", "momentum", "proxy"] = "proxy"
    queue_size: int = 0
    queue_momentum: float = 0.999
    contrastive_weight: float = 1.0
    contrastive_scale: float = 64.0
    contrastive_denominator: Literal["paper", "infonce"] = "paper"
    contrastive_stop_gradient: bool = True
    loss_average: Literal["all", "selected"] = "all"
    partition_warmup_epoch: float = 0.0
    # optimisation
    batch_size: int = 128
    global_batch_size: int = 0
    gradient_acc: int = 1
    num_epoch: int = 12
    max_steps: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["multistep", "polynomial", "cosine"] = "multistep"
    milestones: tuple[float, ...] = (6, 9)
    warmup_epoch: float = 0.0
    max_grad_norm: float = 0.0
    max_skipped: int = 10
    seed: int = 2048
    # output
    output: str = ""
    val_targets: tuple[str, ...] = ()
    val_dir: str = ""
    val_batch_size: int = 128
    frequent: int = 10
    diagnose_every: int = 100
    verbose: int = 0
    save_every: int = 0
    save_minutes: float = 0.0
    keep_last: int = 3
    keep_best: str = ""
    async_save: bool = False
    resume: bool = True
    timeout_minutes: float = 10.0

    def __post_init__(self) -> None:
        for check, message in _CHECKS:
            if not check(self):
                raise UserError(message.format(**dataclasses.asdict(self)))

    def save(self, path: Path) -> None:
        """Writes the resolved configuration as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


_CHECKS = [
    (lambda c: c.views in (1, 2), "views={views}: must be 1 or 2"),
    (lambda c: c.embedding_size > 0, "embedding_size={embedding_size}: must be positive"),
    (lambda c: c.num_classes >= 0, "num_classes={num_classes}: must be a count, or 0 to take the data set's"),
    (lambda c: c.batch_size > 0 and c.global_batch_size >= 0, "batch_size={batch_size}: must be positive"),
    (lambda c: c.views * c.batch_size > 1, "batch_size={batch_size}: BatchNorm needs at least 2 images a rank"),
    (lambda c: c.gradient_acc > 0, "gradient_acc={gradient_acc}: must be at least 1"),
    (lambda c: c.lr > 0, "lr={lr}: must be positive"),
    (lambda c: c.num_epoch > 0, "num_epoch={num_epoch}: must be at least 1"),
    (lambda c: 0 <= c.dropout < 1, "dropout={dropout}: must lie in [0, 1)"),
    (lambda c: not c.map_norm or c.margin != "magface", "map_norm=True: magface teaches the norm; use another margin"),
    (lambda c: 0 <= c.momentum < 1, "momentum={momentum}: must lie in [0, 1)"),
    (lambda c: c.num_workers >= 0, "num_workers={num_workers}: must be 0 (in the training process) or more"),
    (lambda c: c.shuffle_window > 0, "shuffle_window={shuffle_window}: must be a number of images"),
    (lambda c: c.keep_last > 0, "keep_last={keep_last}: at least one checkpoint is kept"),
    (lambda c: c.save_every >= 0, "save_every={save_every}: must be a number of steps, or 0"),
    (lambda c: c.save_minutes >= 0, "save_minutes={save_minutes}: must be a time, or 0"),
    (lambda c: c.max_skipped > 0, "max_skipped={max_skipped}: must be at least 1 step"),
    (lambda c: c.timeout_minutes > 0, "timeout_minutes={timeout_minutes}: must be positive"),
    (lambda c: c.frequent > 0, "frequent={frequent}: must be at least 1 step"),
    (lambda c: c.diagnose_every >= 0, "diagnose_every={diagnose_every}: must be a number of steps, or 0 for never"),
    (lambda c: c.queue_size >= 0, "queue_size={queue_size}: must be a count, or 0 for num_classes"),
    (lambda c: c.partition == "norm" or c.views == 2, "partition='views' tells augmented from original views: set views=2"),
    (lambda c: 0 <= c.queue_momentum < 1, "queue_momentum={queue_momentum}: must lie in [0, 1)"),
    (lambda c: c.partition_warmup_epoch >= 0, "partition_warmup_epoch={partition_warmup_epoch}: must be a number of epochs"),
    (
        lambda c: c.quality_threshold is None or 0 <= c.quality_threshold <= 1,
        "quality_threshold={quality_threshold}: must lie in [0, 1], or None for no partition",
    ),
    (
        lambda c: c.queue == "none" or c.views == 2,
        "queue='{queue}' needs both views: set views=2, or queue='none' for classification alone",
    ),
    (lambda c: len(c.margin_list) == 3, "margin_list={margin_list}: must be three numbers (m1, m2, m3)"),
    (
        lambda c: 0.1 <= c.sample_rate <= 1,
        "sample_rate={sample_rate}: must lie in [0.1, 1]; 1 compares with all classes",
    ),
    (
        lambda c: 0 <= c.interclass_filtering_threshold < 1,
        "interclass_filtering_threshold={interclass_filtering_threshold}: must be a cosine below 1, or 0 for no filtering",
    ),
    (
        lambda c: len(c.magface) == 5 and 0 < c.magface[0] < c.magface[1],
        "magface={magface}: must be five numbers (l_a, u_a, l_m, u_m, lambda_g) with 0 < l_a < u_a",
    ),
    (
        lambda c: list(c.milestones) == sorted(c.milestones),
        "milestones={milestones}: epochs must be in increasing order",
    ),
]

_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_TYPES = typing.get_type_hints(Config)


def load(path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """The configuration of a file (with or without `.py`) and of `key=value` arguments, checked."""
    file = _find(path)
    values = _from_file(file)
    checked = {key: _convert(key, value, f"{file}") for key, value in values.items()}
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"argument {argument!r}: expected key=value, such as lr=0.1")
        checked[key] = _convert(key, _parse(text), f"argument {argument!r}")
    checked["output"] = checked.get("output") or f"runs/{file.stem}"
    return Config(**checked)


def load_json(path: Path) -> Config:
    """A configuration written by `Config.save`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise UserError(f"{path}: cannot be read as a saved configuration ({fault})") from fault
    if not isinstance(values, dict):
        raise UserError(f"{path}: cannot be read as a saved configuration (it holds {type(values).__name__}, not keys)")
    return Config(**{key: _convert(key, value, str(path)) for key, value in values.items()})


def _find(path: str) -> Path:
    for file in (Path(path), Path(f"{path}.py")):
        if file.is_file():
            return file
    near = difflib.get_close_matches(Path(path).stem, [p.stem for p in Path(path).parent.glob("*.py")], 1)
    hint = f"; did you mean {Path(path).parent / near[0]}?" if near else ""
    raise UserError(f"{path}: no such configuration file{hint}")


def _from_file(file: Path) -> dict[str, Any]:
    try:
        values = runpy.run_path(str(file)).get("config")
    except UserError:
        raise
    except Exception as fault:
        raise UserError(f"{file}: the file does not run: {type(fault).__name__}: {fault}") from fault
    if not isinstance(values, dict):
        raise UserError(f"{file}: must define an easydict `config` (see configs/base.py)")
    return dict(values)


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _convert(key: str, value: Any, where: str) -> Any:
    if key not in _FIELDS:
        near = difflib.get_close_matches(key, _FIELDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; configs/base.py lists all keys"
        raise UserError(f"{where}: unknown configuration key {key!r}{hint}")
    try:
        return _as_type(value, _TYPES[key])
    except TypeError as fault:
        raise UserError(f"{where}: {key} must be {fault}, not {value!r}") from fault


def _as_type(value: Any, wanted: Any) -> Any:
    """`value` as the wanted type, without loss; TypeError(what it must be) where that cannot be."""
    origin = typing.get_origin(wanted)
    if origin is Literal:
        if value not in typing.get_args(wanted):
            raise TypeError("one of " + ", ".join(map(repr, typing.get_args(wanted))))
        return value
    if origin is types.UnionType:
        return None if value is None or value == "none" else _as_type(value, typing.get_args(wanted)[0])
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise TypeError("a list")
        return tuple(_as_type(item, typing.get_args(wanted)[0]) for item in value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TypeError({int: "a whole number", float: "a number", bool: "True or False", str: "a text"}[wanted])
    return value
