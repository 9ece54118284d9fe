"""The complete state of a run as named tensors and numbers, and back, for any number of ranks.

Names: `encoder.*`, `momentum_encoder.*`, `classifier.weight`, `margin.*`, `quality.*`, `queue.*`, and
`optimiser.<parameter>.<quantity>` (momentum and the like). What is sharded over classes, or over the queue's order, is marked as
`ShardedRows`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from losses.joint import JointLoss
from recognition.checkpoints.store import Checkpoint, ShardedRows
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import LossScale
from utils import dist

_CLASSIFIER = "classifier.weight"


def _named_parameters(encoder: nn.Module, joint: JointLoss) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in encoder.named_parameters():
        yield f"encoder.{name}", parameter
    yield _CLASSIFIER, joint.classifier.weight


def capture(
    encoder: nn.Module, joint: JointLoss, optimiser: torch.optim.Optimizer, loss_scale: LossScale,
    momentum_encoder: MomentumEncoder | None = None,
) -> Checkpoint:  # fmt: skip
    """All state of the modules. Collective. `encoder` is the bare module, not DDP's wrapper."""
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
    for name, parameter in _named_parameters(encoder, joint):
        for quantity, value in optimiser.state[parameter].items():
            if value is None:
                continue
            sharded = name == _CLASSIFIER and value.dim() > 0  # a number for each row, or one (a step count) for all
            tensors[f"optimiser.{name}.{quantity}"] = ShardedRows(value, classes) if sharded else value
    values = {
        "loss_scale": float(loss_scale.value),
        "loss_scale_good_steps": int(loss_scale.good_steps),
        "class_samples_drawn": joint.classifier.draws,
    }
    if joint.queue is not None and joint.queue.filled:
        rows = joint.queue.global_rows()
        tensors |= {f"queue.{name}": ShardedRows(value, joint.queue.filled) for name, value in rows.items()}
        values["queue_total"] = joint.queue.total
    return Checkpoint(tensors, values)


@torch.no_grad()
def restore(
    checkpoint: Checkpoint, encoder: nn.Module, joint: JointLoss, optimiser: torch.optim.Optimizer, loss_scale: LossScale,
    momentum_encoder: MomentumEncoder | None = None,
) -> None:  # fmt: skip
    """Puts a captured state back, whatever number of ranks captured it. Collective."""
    tensors = checkpoint.tensors
    encoder.load_state_dict(_part(tensors, "encoder."))
    if momentum_encoder is not None:
        momentum_encoder.copy.load_state_dict(_part(tensors, "momentum_encoder."))
    joint.quality.load_state_dict(_part(tensors, "quality."))
    if isinstance(joint.classifier.margin, nn.Module):
        joint.classifier.margin.load_state_dict(_part(tensors, "margin."))
    joint.classifier.draws = checkpoint.values["class_samples_drawn"]
    joint.classifier.weight.copy_(_plain(tensors[_CLASSIFIER]))
    for name, parameter in _named_parameters(encoder, joint):
        for quantity, value in _part(tensors, f"optimiser.{name}.").items():
            if "." not in quantity:
                moved = _plain(value).to(parameter.device)
                optimiser.state[parameter][quantity] = moved.to(memory_format=_layout(parameter, moved))
    if joint.queue is not None and "queue_total" in checkpoint.values:
        rows = {name: _plain(value) for name, value in _part(tensors, "queue.").items()}
        joint.queue.load_global_rows(rows, checkpoint.values["queue_total"])
    loss_scale.value.fill_(checkpoint.values["loss_scale"])
    loss_scale.good_steps.fill_(checkpoint.values["loss_scale_good_steps"])


def _part(tensors, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(value: torch.Tensor | ShardedRows) -> torch.Tensor:
    return value.rows if isinstance(value, ShardedRows) else value


def _layout(parameter: torch.Tensor, value: torch.Tensor) -> torch.memory_format:
    """Momentum has its parameter's memory layout, as if it had never been away."""
    if value.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
