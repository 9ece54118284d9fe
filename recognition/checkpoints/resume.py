"""Whether a run may resume from, or write to, an output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recognition import __version__
from recognition.checkpoints import store
from recognition.data.fingerprint import difference
from utils.config import Config
from utils.errors import UserError

# What happens if a key has changed when a run resumes. A new key goes into one of the three groups.
REFUSED = {  # another experiment: data, encoder, losses, and what the state is made of
    *("num_classes", "num_image", "rec_proportions", "unlabelled", "unlabelled_share", "channel_order", "views"),
    *("augmentation", "augmentation_options", "colour_transfer", "network_options", "partition_options", "margin_options"),
    *("network", "embedding_size", "dropout", "drop_path", "mask_ratio", "map_norm"),
    *("quality_concentration", "quality_rate", "quality_mean", "quality_std", "partition", "quality_threshold"),
    *("margin", "margin_m", "margin_list", "margin_gradient", "magface", "scale"),
    *("sample_rate", "unsampled_rows", "interclass_filtering_threshold", "filtered_negatives"),
    *("queue", "queue_size", "queue_momentum", "contrastive_weight", "contrastive_scale", "contrastive_denominator"),
    *("momentum_views", "contrastive_target", "contrastive_stop_gradient", "loss_average", "lora_rank", "lora_alpha", "ema"),
    *("gradient_acc", "optimizer", "seed"),
}
REPORTED = {  # optimiser, schedule, order of the images, arithmetic, verification; refused if nothing is left to train
    *("rec_identities", "shuffle", "shuffle_window", "on_error", "init_from", "head_from", "freeze", "sync_bn"),
    *("channels_last", "compile", "encoder_sharding", "precision", "head_precision", "layer_decay"),
    *("teacher", "distillation_weight"),
    *("accumulation", "num_epoch", "max_steps", "lr", "momentum", "weight_decay", "decay_norms", "schedule", "milestones"),
    *("polynomial_power", "warmup_epoch", "partition_warmup_epoch", "max_grad_norm", "clip"),
    *("val_targets", "val_dir", "keep_best"),
}
FREE = {  # paths, processes, logging, when to save: no figure depends on them. Data and images per step are compared below
    *("rec", "output", "hooks", "trackers", "tracker_options", "resume"),
    *("batch_size", "global_batch_size", "num_workers", "val_batch_size", "frequent"),
    *("gradient_checkpointing", "head_gradient"),
    *("diagnose_every", "verbose", "verify_share", "max_skipped", "save_every", "save_minutes", "keep_last", "async_save"),
    *("timeout_minutes",),
}
_UNNAMED = {"output", "resume"}  # differ between starts of one run
_ADVICE = "use the same settings, or another output= (init_from= starts a new run from its encoder)"


def check_changes(folder: Path, config: Config, world_size: int, data: Mapping[str, Any], last_step: int) -> list[str]:
    """Compare a checkpoint's settings and data with those of the run that resumes from it; return notes on what has changed.

    data: the fingerprint of the training set. last_step: the step at which the run ends.
    UserError, naming every change with both values: this is another experiment, or nothing is left to train.
    """
    saved, state = store.read_config(folder), store.read_state(folder)
    before, now = vars(saved), vars(config)
    unnamed = _UNNAMED | ({"queue_size"} if saved.queue == config.queue == "none" else set())
    if saved.unlabelled and config.unlabelled:
        unnamed |= {"unlabelled"}  # a path, as `rec`; the images are compared below
    elif saved.unlabelled == config.unlabelled:
        unnamed |= {"unlabelled_share"}  # not used
    changed = [key for key in now if before[key] != now[key] and key not in unnamed]
    changes = {key: f"{key}={before[key]!r}, now {key}={now[key]!r}" for key in changed}
    refused = [text for key, text in changes.items() if key in REFUSED]
    refused += _changed_batch(state["global_batch"], saved, config, world_size)
    if found := difference(state.get("data", {}), data):
        also = f" with unlabelled={config.unlabelled!r}" if config.unlabelled else ""
        refused.append(f"rec={config.rec!r}{also} holds other data: {found}")
    others = [text for key, text in changes.items() if key not in REFUSED]
    if refused:
        also = f" (also changed: {'; '.join(others)})" if others else ""
        raise UserError(f"{folder}: belongs to another experiment; {_ADVICE}: {'; '.join(refused)}{also}")
    if state["step"] >= last_step and changes.keys() & REPORTED:
        raise UserError(
            f"{folder}: step {state['step']} is done and the last is {last_step}; with nothing left to train, settings may not "
            f"change: {'; '.join(others)}; {_ADVICE}; python -m eval verify computes further figures"
        )
    if (version := state.get("version", __version__)) != __version__:
        others.append(f"version={version!r}, now {__version__!r}")
    return [f"changed since {folder.name}: {text}" for text in others]


def _changed_batch(images: int, saved: Config, config: Config, ranks: int) -> list[str]:
    """What is wrong if the number of images per step has changed, and what to set."""
    images_now = config.batch_size * ranks
    if images_now == images:
        return []
    ranks_before = images // saved.batch_size
    dividing = "" if images % ranks == 0 else " on a number of ranks that divides it"
    return [
        f"this run had {ranks_before} rank(s) x batch_size={saved.batch_size} = {images} images per step; now {ranks} x "
        f"batch_size={config.batch_size} = {images_now}: set global_batch_size={images}{dividing}, or start {ranks_before} "
        f"rank(s) with batch_size={saved.batch_size}"
    ]


def take_output(output: Path, config: Config) -> None:
    """Write the settings that are trained with from now on; keep the results of an earlier end as results.previous.json."""
    config.save(output / store.CONFIG)
    with contextlib.suppress(FileNotFoundError):
        (output / "results.json").replace(output / "results.previous.json")


def refuse_used_output(output: Path) -> None:
    """Raise UserError if a new run would mix with an earlier one, or replace its results."""
    if old := store.complete_checkpoints(output):
        raise UserError(
            f"{output}: holds {old[0].name} of an earlier run, and resume=False would mix the two; set another output=, "
            "or remove the checkpoints"
        )
    if (output / "results.json").exists():
        raise UserError(
            f"{output}: holds the results of an earlier run, but no checkpoint; set another output=, or remove results.json"
        )
