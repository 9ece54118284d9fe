"""The complete state of a run as named tensors and values, and back, for any number of ranks.

Names: `encoder.*`, `momentum_encoder.*`, `ema.*`, `quality.*`, `margin.*`, `classifier.weight`, `queue.*`, and
`optimiser.<parameter>.<quantity>` (momentum and the like). Tensors that are sharded over classes, or over the order of the
queue, are `ShardedRows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recognition.checkpoints.store import Checkpoint, ShardedRows
from recognition.train_state import TrainState
from utils import dist

_CLASSIFIER = "classifier.weight"


def capture(state: TrainState) -> Checkpoint:
    """The complete state as named tensors and values. Collective."""
    joint = state.joint
    for encoder in (state.encoder, *state.followers.values()):
        dist.broadcast_buffers(encoder)
    tensors: dict[str, torch.Tensor | ShardedRows] = {}
    for prefix, module in _modules(state).items():
        tensors |= {prefix + name: value for name, value in module.state_dict().items()}
    classes = joint.classifier.num_classes
    tensors[_CLASSIFIER] = ShardedRows(joint.classifier.weight.detach(), classes)
    for name, parameter in _parameters(state).items():
        for quantity, value in state.optimiser.state[parameter].items():
            if value is None:
                continue
            sharded = name == _CLASSIFIER and value.dim() > 0  # one number per row; step counts are scalars
            tensors[f"optimiser.{name}.{quantity}"] = ShardedRows(value, classes) if sharded else value
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
def restore(checkpoint: Checkpoint, state: TrainState) -> None:
    """Restore a captured state, however many ranks captured it. Collective."""
    values, joint = checkpoint.values, state.joint
    tensors = {name: value.rows if isinstance(value, ShardedRows) else value for name, value in checkpoint.tensors.items()}
    for prefix, module in _modules(state).items():
        module.load_state_dict(_part(tensors, prefix))
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


def _modules(state: TrainState) -> dict[str, nn.Module]:
    """Prefix -> the module whose state dict is stored under it."""
    modules: dict[str, nn.Module] = {"encoder.": state.encoder}
    modules |= {f"{name}.": follower.copy for name, follower in state.followers.items()}
    modules["quality."] = state.joint.quality
    if isinstance(state.joint.classifier.margin, nn.Module):
        modules["margin."] = state.joint.classifier.margin
    return modules


def _parameters(state: TrainState) -> dict[str, nn.Parameter]:
    parameters = {f"encoder.{name}": parameter for name, parameter in state.encoder.named_parameters()}
    return {**parameters, _CLASSIFIER: state.joint.classifier.weight}


def _part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _in_layout_of(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The value in its parameter's memory format."""
    if value.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        return value.to(memory_format=torch.channels_last)
    return value.contiguous()
