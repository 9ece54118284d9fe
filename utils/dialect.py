"""arcface_torch's configuration files (https://github.com/deepinsight/insightface): what each of their keys becomes here.

Such a file starts from an empty `edict()` and relies on that repository's own base file and code. `translate` returns settings
that train the same way; docs/MIGRATING.md describes what differs.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prettytable import PrettyTable

from configs.base import config as base

Entry = tuple[str, str, Any]
"""Where a value comes from, for error messages; key; value."""
_Result = tuple[dict[str, Any], str]
"""Settings in our keys; a remark, or ""."""
_Rule = Callable[[str, Mapping[str, Any]], _Result]
"""Key, all values -> what the key becomes. Raises ValueError if the value is not supported."""


@dataclass(frozen=True)
class Row:
    """A key with its value, the settings that it becomes, and a remark. where: its source, for error messages."""

    where: str
    key: str
    value: Any
    settings: Mapping[str, Any]
    remark: str


# Defaults of arcface_torch's base file; those of ignored keys do not matter.
DEFAULTS = {
    "margin_list": (1.0, 0.5, 0.0),
    "network": "r50",
    "embedding_size": 512,
    "sample_rate": 1,
    "interclass_filtering_threshold": 0,
    "fp16": False,
    "batch_size": 128,
    "gradient_acc": 1,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "seed": 2048,
    "verbose": 2000,
    "frequent": 10,
    "num_workers": 2,
}

# What its code does that no key of a file selects.
_CODE = {
    "views": 1,
    "augmentation": "none",
    "quality_threshold": None,
    "queue": "none",
    "scale": 64.0,
    "max_grad_norm": 5.0,
    "clip": "encoder",
}

# ---------------------------------------------------------------------------------------------------- rules for the keys


def _same(remark: str = "", **more: Any) -> _Rule:
    """The key has the same name and meaning here; `more` are the settings that go with it."""
    return lambda key, values: ({key: values[key], **more}, remark)


def _ignored(remark: str) -> _Rule:
    return lambda key, values: ({}, f"ignored: {remark}")


def _margin_list(key: str, values: Mapping[str, Any]) -> _Result:
    if "margin" in values:
        return {key: values[key]} if values["margin"] == "combined" else {}, "replaced by margin"
    if not _is_list(values[key]) or len(values[key]) != 3 or not all(isinstance(m, (int, float)) for m in values[key]):
        raise ValueError("must be a list of 3 numbers")
    m1, m2, m3 = values[key]
    if m3 > 0:
        return {"margin": "cosface", "margin_m": m3}, "" if (m1, m2) == (1, 0) else "warning: m1, m2 ignored, as in arcface_torch"
    if m1 == 1 and m3 == 0:
        return {"margin": "arcface", "margin_m": m2, "margin_gradient": "straight_through"}, ""
    raise ValueError("arcface_torch trains only with m1 = 1 and m3 = 0 (ArcFace), or with m3 > 0 (CosFace)")


def _network(key: str, values: Mapping[str, Any]) -> _Result:
    name = str(values[key])
    recomputes = name == "r2060" or name.startswith(("vit_b", "vit_l", "vit_h"))
    masked = re.search(r"_mask_?0*[1-9]", name)
    settings = {key: values[key], **({"gradient_checkpointing": True} if recomputes else {})}
    if masked:
        return {**settings, "mask_ratio": 0.1}, "any masking is a tenth of the tokens, whatever the name"
    return settings, ""


def _fp16(key: str, values: Mapping[str, Any], gpu: bool | None = None) -> _Result:
    import torch  # here, because it is slow to import

    gpu = torch.cuda.is_available() if gpu is None else gpu
    if not isinstance(values[key], bool):
        raise ValueError("must be True or False")
    if not values[key]:
        return {"precision": "fp32"}, ""
    if not gpu:
        return {"precision": "fp32"}, "warning: no GPU found; autocast to fp16 needs one"
    return {"precision": "fp16"}, "the encoder, with loss scaling; the classifier is fp32 (head_precision)"


def _momentum(key: str, values: Mapping[str, Any]) -> _Result:
    return {key: 0.9}, "" if values[key] == 0.9 else "warning: ignored, as in arcface_torch: SGD's momentum is 0.9"


def _warmup_epoch(key: str, values: Mapping[str, Any]) -> _Result:
    if values[key] == -1:
        return {key: 0.0}, "no warm-up"
    return {key: values[key]}, "starts with a small rate; arcface_torch's very first step has the full one" if values[key] else ""


def _sample_rate(key: str, values: Mapping[str, Any]) -> _Result:
    remark = "" if values[key] in (0, 1) else "share drawn in addition to the batch's classes (arcface_torch: including them)"
    return {key: values[key], "unsampled_rows": "moved"}, remark


def _gradient_acc(key: str, values: Mapping[str, Any]) -> _Result:
    remark = "" if values[key] == 1 else "the rate changes once per update (arcface_torch: once per batch)"
    return {key: values[key], "accumulation": "sum"}, remark


def _num_image(key: str, values: Mapping[str, Any], plan: bool = False) -> _Result:
    rec = values.get("rec")
    if rec == "synthetic" or (plan and not os.path.exists(str(rec))):
        return {key: values[key]}, ""
    return {}, "ignored: the images are counted; the schedule follows their number (arcface_torch: this number)"


def _dali_aug(key: str, values: Mapping[str, Any]) -> _Result:
    return {}, "warning: not applied; augmentation= selects one of this project's" if values[key] else "ignored: not needed"


def _output(key: str, values: Mapping[str, Any]) -> _Result:
    return ({key: values[key]}, "") if values[key] else ({}, "runs/NAME, where NAME is the file's name")


def _val_targets(key: str, values: Mapping[str, Any]) -> _Result:
    targets, folder = values[key], str(values.get("val_dir") or values.get("rec", ""))
    if not _is_list(targets) or not os.path.isdir(folder):
        return {key: targets}, ""
    absent = [target for target in targets if not any(map(os.path.isfile, (f"{folder}/{target}.bin", f"{folder}/{target}")))]
    remark = f"warning: not in {folder}, so not verified, as in arcface_torch: {', '.join(map(str, absent))}" if absent else ""
    return {key: [target for target in targets if target not in absent]}, remark


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _using_wandb(key: str, values: Mapping[str, Any]) -> _Result:
    """The tracker, with the options that arcface_torch passes to `wandb.init`."""
    if not values[key]:
        return {}, "figures go to metrics.jsonl and TensorBoard"
    options = {ours: values[theirs] for theirs, ours in _WANDB.items() if values.get(theirs)}
    settings: dict[str, Any] = {"trackers": ("tensorboard", "wandb")}
    if options:
        settings["tracker_options"] = {"wandb": options}
    return settings, "log in with `wandb login`, or set WANDB_API_KEY"


_WANDB = {"wandb_entity": "entity", "wandb_project": "project", "notes": "notes"}  # -> arguments of wandb.init

_RULES: dict[str, _Rule] = {
    "margin_list": _margin_list,
    "network": _network,
    "embedding_size": _same(),
    "sample_rate": _sample_rate,
    "interclass_filtering_threshold": _same(filtered_negatives="zeroed"),
    "fp16": _fp16,
    "rec": _same(),
    "num_classes": _same(),
    "num_image": _num_image,
    "batch_size": _same("the same, per rank"),
    "gradient_acc": _gradient_acc,
    "num_epoch": _same(),
    "warmup_epoch": _warmup_epoch,
    "optimizer": _same(),
    "lr": _same(schedule="polynomial", polynomial_power=1.0),
    "momentum": _momentum,
    "weight_decay": _same(decay_norms=True),
    "seed": _same("the same, but the random numbers differ"),
    "val_targets": _val_targets,
    "verbose": _same("the same: steps between two verifications; also at the end"),
    "frequent": _same(),
    "num_workers": _same(),
    "output": _output,
    "resume": _ignored("the same command continues an interrupted run, unless resume=False is given as an argument"),
    "save_all_states": _ignored("every checkpoint holds all states"),
    "dali": _ignored("not needed"),
    "dali_aug": _dali_aug,
    "using_wandb": _using_wandb,
    **dict.fromkeys(_WANDB, _ignored("used if using_wandb is set")),
    "wandb_key": _ignored("not read from files: log in with `wandb login`, or set WANDB_API_KEY"),
    "wandb_log_all": _ignored("the first rank records"),
    "wandb_resume": _ignored("a run that is resumed continues in the same place"),
    "suffix_run_name": _ignored("the run has the name of its folder"),
    "save_artifacts": _ignored("checkpoints stay in the run folder"),
    **dict.fromkeys(("total_batch_size", "total_step", "warmup_step"), _ignored("computed from the data")),
}
KEYS = _RULES.keys()

# ---------------------------------------------------------------------------------------------------- files


def is_dialect(values: Mapping[str, Any]) -> bool:
    """Whether a file is arcface_torch's: it has keys that only arcface_torch has, and does not start from configs/base.py."""
    if base.keys() <= values.keys():
        return False
    return bool(values.keys() & _RULES.keys() - base.keys()) or ("margin_list" in values and "margin" not in values)


def translate(
    entries: Sequence[Entry], arguments: Sequence[Entry], gpu: bool | None = None, plan: bool = False
) -> tuple[list[Row], list[str]]:
    """A row for each key and for each default that the file relies on; and a line for each key that cannot be honoured.

    entries: of the file; arguments: of the command line. Keys of this toolkit may be among both, so that a recipe can move from
    one style to the other key by key: they override what arcface_torch's keys imply. An argument of both styles is read as ours.
    gpu: whether the training will run on one; None: as on this machine. plan: without data, num_image is their number.
    """
    theirs: dict[str, tuple[str, Any]] = {key: (f"arcface_torch: {key}={value!r}", value) for key, value in DEFAULTS.items()}
    ours: dict[str, tuple[str, Any]] = {}
    problems = []
    for is_argument, (where, key, value) in [*((False, entry) for entry in entries), *((True, entry) for entry in arguments)]:
        if key in base and key != "margin_list" and (key not in _RULES or is_argument):
            ours[key] = where, value
        elif key in _RULES:
            theirs[key] = where, value
        else:
            near = difflib.get_close_matches(key, [*_RULES, *base], 1, cutoff=0.8)
            hint = f"did you mean {near[0]!r}?" if near else "remove it if the training does not depend on it"
            problems.append(f"{where}: not a key of arcface_torch or of this toolkit; {hint}")
    values = {key: value for key, (_, value) in {**theirs, **ours}.items()}
    if "rec" in values and "num_epoch" not in values:
        problems.append("num_epoch: missing; arcface_torch has no default")
    rows = [Row("", "(code)", None, _without(ours, _CODE), "as in train_v2.py")]
    rules: dict[str, _Rule] = {
        **_RULES,
        "fp16": functools.partial(_fp16, gpu=gpu),
        "num_image": functools.partial(_num_image, plan=plan),
    }
    for key, (where, value) in theirs.items():
        try:
            settings, remark = rules[key](key, values)
            remark = "replaced below" if key in ours else remark
            rows.append(Row(where, key, "..." if key == "wandb_key" else value, _without(ours, settings), remark))
        except ValueError as fault:
            problems.append(f"{where}: {fault}")
    for key, (where, value) in ours.items():
        rows.append(Row(where, key, value, {key: value}, "argument" if key in _RULES else "a key of this toolkit"))
    return rows, problems


def _without(keys: Container[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def table(rows: Sequence[Row]) -> str:
    """What each key became, for people; as wide as the terminal, but at least 80 columns."""
    width = max(80, shutil.get_terminal_size((100, 24)).columns)
    printed = PrettyTable(["arcface_torch", "here"], align="l")
    printed.max_width = {"arcface_torch": 34, "here": width - 41}
    for row in rows:
        here = [", ".join(f"{key}={value!r}" for key, value in row.settings.items()), row.remark]
        if row.settings == {row.key: row.value}:
            here = [row.remark or "the same"]
        printed.add_row([f"{row.key} = {row.value!r}" if row.where else row.key, "\n".join(filter(None, here))])
    return str(printed)
