"""The complete state of a run as named tensors and values, and back, for any number of ranks.

Names: `encoder.*`, `momentum_encoder.*`, `ema.*`, `quality.*`, `margin.*`, `classifier.weight`, `queue.*`, and
`optimiser.<parameter>.<quantity>` (momentum and the like). Tensors that are sharded over classes, over the order of the queue, or
with the encoder, are `ShardedRows`. A run with a sharded encoder and one without read each other's checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recognition.checkpoints import store
from recognition.checkpoints.store import Checkpoint, ShardedRows
from recognition.sharding import is_sharded, local, own_rows, with_rows
from recognition.train_state import TrainState
from utils import dist

_CLASSIFIER = "classifier.weight"


def capture(state: TrainState) -> Checkpoint:
    """The complete state as named tensors and values. Collective."""
    joint = state.joint
    for encoder in (state.encoder, *state.followers.values()):
        dist.broadcast_buffers(encoder)
    tensors: dict[str, Any] = {}
    for prefix, module in _modules(state).items():
        tensors |= {prefix + name: value for name, value in module.state_dict().items()}
    tensors[_CLASSIFIER] = joint.classifier.weight.detach()
    for name, parameter in _parameters(state).items():
        quantities = state.optimiser.state[parameter].items()
        tensors |= {f"optimiser.{name}.{quantity}": value for quantity, value in quantities if value is not None}
    totals = _totals(state)
    for name, value in tensors.items():
        if value.dim() > 0 and (total := totals.get(_owner(name))):  # step counts are scalars
            tensors[name] = ShardedRows(local(value), total)
    values = {
        "loss_scale": float(state.loss_scale.value),
        "loss_scale_good_steps": int(state.loss_scale.good_steps),
        "class_samples_drawn": joint.classifier.draws,
    }
    if joint.queue is not None and joint.queue.filled:
        rows = joint.queue.global_rows()
        tensors |= {f"queue.{name}": ShardedRows(value, joint.queue.filled) for name, value in rows.items()}
        values["queue_total"] = joint.queue.total
    return Checkpoint(tensors, values)


@torch.no_grad()
def restore(folder: Path, state: TrainState) -> Mapping[str, Any]:
    """Restore the state in a checkpoint, however many ranks wrote it; return the checkpoint's values. Collective."""
    totals, joint = _totals(state), state.joint
    checkpoint = store.load(folder, lambda name: name.startswith("queue.") or _owner(name) in totals)
    values = checkpoint.values
    tensors = {name: value.rows if isinstance(value, ShardedRows) else value for name, value in checkpoint.tensors.items()}
    for prefix, module in _modules(state).items():
        own = module.state_dict()
        module.load_state_dict({name: with_rows(own.get(name), value) for name, value in _part(tensors, prefix).items()})
    joint.classifier.draws = values["class_samples_drawn"]
    joint.classifier.weight.copy_(tensors[_CLASSIFIER])
    parameters = _parameters(state)
    for name, value in _part(tensors, "optimiser.").items():
        parameter_name, _, quantity = name.rpartition(".")
        parameter = parameters[parameter_name]
        state.optimiser.state[parameter][quantity] = _in_layout_of(parameter, value.to(parameter.device))
    if joint.queue is not None and "queue_total" in values:
        joint.queue.load_global_rows(_part(tensors, "queue."), values["queue_total"])
    state.loss_scale.value.fill_(values["loss_scale"])
    state.loss_scale.good_steps.fill_(values["loss_scale_good_steps"])
    return values


def _modules(state: TrainState) -> dict[str, nn.Module]:
    """Prefix -> the module whose state dict is stored under it."""
    modules: dict[str, nn.Module] = {"encoder.": state.encoder}
    modules |= {f"{name}.": follower.copy for name, follower in state.followers.items()}
    modules["quality."] = state.joint.quality
    if isinstance(state.joint.classifier.margin, nn.Module):
        modules["margin."] = state.joint.classifier.margin
    return modules


def _parameters(state: TrainState) -> dict[str, nn.Parameter]:
    parameters = {f"encoder.{name}": own_rows(parameter) for name, parameter in state.encoder.named_parameters()}
    return {**parameters, _CLASSIFIER: state.joint.classifier.weight}


def _totals(state: TrainState) -> dict[str, int]:
    """Name -> number of rows, over all ranks, of the tensors that this run shards, apart from the queue's."""
    encoders = {prefix: module for prefix, module in _modules(state).items() if is_sharded(module)}
    rows = {prefix + name: len(value) for prefix, module in encoders.items() for name, value in module.named_parameters()}
    return {**rows, _CLASSIFIER: state.joint.classifier.num_classes}


def _owner(name: str) -> str:
    """The parameter that a stored tensor is, or belongs to."""
    return name.removeprefix("optimiser.").rpartition(".")[0] if name.startswith("optimiser.") else name


def _part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _in_layout_of(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The value in its parameter's memory format."""
    if value.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        return value.to(memory_format=torch.channels_last)
    return value.contiguous()
