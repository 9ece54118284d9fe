"""What settings must satisfy together."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from utils import plugins
from utils.files import is_address

Rule = tuple[Callable[[Any], bool], str]
"""A condition on the settings; the message if it does not hold."""


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
        "head_gradient='streamed' needs optimizer='sgd', sample_rate=1 and gradient_acc=1; here they are {optimizer!r}, "
        "{sample_rate} and {gradient_acc}",
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


def broken(rules: Iterable[Rule], values: Mapping[str, Any]) -> Iterable[str]:
    """Messages of the rules that do not hold. A rule is skipped if one of its keys is missing, which is reported separately."""
    config = types.SimpleNamespace(**values)
    for holds, message in rules:
        with contextlib.suppress(AttributeError):
            if not holds(config):
                yield message.format(**values)
