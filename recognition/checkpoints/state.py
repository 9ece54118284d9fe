"""The complete state of a run as named tensors and numbers, and back, for any number of ranks.

Names: `encoder.*`, `momentum_encoder.*`, `classifier.weight`, `margin.*`, `quality.*`, `queue.*`, and
`optimiser.<parameter>.<quantity>` (momentum and the like). What is sharded over classes, or over the queue's order, is marked as
`ShardedRows`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from recognition.checkpoints.store import Checkpoint, ShardedRows
from recognition.train_state import TrainState
from utils import dist

_CLASSIFIER = "classifier.weight"


def _named_parameters(state: TrainState) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in state.encoder.named_parameters():
        yield f"encoder.{name}", parameter
    yield _CLASSIFIER, state.joint.classifier.weight


def capture(state: TrainState) -> Checkpoint:
    """The complete state as named tensors and values. Collective."""
    encoder, joint, momentum_encoder = state.encoder, state.joint, state.momentum_encoder
    dist.broadcast_buffers(encoder)
    classes = joint.classifier.num_classes
    tensors: dict[str, torch.Tensor | ShardedRows] = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    if momentum_encoder is not None:
        dist.broadcast_buffers(momentum_encoder)
        tensors |= {f"momentum_encoder.{name}": value for name, value in momentum_encoder.copy.state_dict().items()}
    tensors |= {f"quality.{name}": value for name, value in joint.quality.state_dict().items()}
    if isinstance(joint.classifier.margin, nn.Module):
        tensors |= {f"margin.{name}": value for name, value in joint.classifier.margin.state_dict().items()}
    tensors[_CLASSIFIER] = ShardedRows(joint.classifier.weight.detach(), classes)
    for name, parameter in _named_parameters(state):
        for quantity, value in state.optimiser.state[parameter].items():
            if value is None:
                continue
            sharded = name == _CLASSIFIER and value.dim() > 0  # a number for each row, or one (a step count) for all
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
    """Put a captured state back, whatever number of ranks captured it. Collective."""
    tensors, joint = checkpoint.tensors, state.joint
    state.encoder.load_state_dict(_part(tensors, "encoder."))
    if state.momentum_encoder is not None:
        state.momentum_encoder.copy.load_state_dict(_part(tensors, "momentum_encoder."))
    joint.quality.load_state_dict(_part(tensors, "quality."))
    if isinstance(joint.classifier.margin, nn.Module):
        joint.classifier.margin.load_state_dict(_part(tensors, "margin."))
    joint.classifier.draws = checkpoint.values["class_samples_drawn"]
    joint.classifier.weight.copy_(_plain(tensors[_CLASSIFIER]))
    for name, parameter in _named_parameters(state):
        for quantity, value in _part(tensors, f"optimiser.{name}.").items():
            if "." not in quantity:
                moved = _plain(value).to(parameter.device)
                state.optimiser.state[parameter][quantity] = moved.to(memory_format=_layout(parameter, moved))
    if joint.queue is not None and "queue_total" in checkpoint.values:
        rows = {name: _plain(value) for name, value in _part(tensors, "queue.").items()}
        joint.queue.load_global_rows(rows, checkpoint.values["queue_total"])
    state.loss_scale.value.fill_(checkpoint.values["loss_scale"])
    state.loss_scale.good_steps.fill_(checkpoint.values["loss_scale_good_steps"])


def _part(tensors, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(value: torch.Tensor | ShardedRows) -> torch.Tensor:
    return value.rows if isinstance(value, ShardedRows) else value


def _layout(parameter: torch.Tensor, value: torch.Tensor) -> torch.memory_format:
    """Momentum has its parameter's memory layout, as if it had never been away."""
    if value.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
