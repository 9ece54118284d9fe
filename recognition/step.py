"""One training step, in the order in which the data flows. The config has picked the objects; nothing branches on a
method's name here, and nothing is printed.

Shapes: V views, B images of this rank, G gathered, D embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from losses.joint import JointLoss, JointTerms
from recognition.data.batch import IMAGE_SIZE
from recognition.data.prefetch import DeviceBatch
from recognition.encoder import to_input
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import LossScale, coalesce_gradients, global_gradient_norm, gradient_values, scale_gradients
from utils import dist


@dataclass(frozen=True)
class StepResult:
    """What a step did. `skipped` is empty, or says on which rank what was not finite; then nothing was learned.
    unreadable: records of the whole world that the step left out because they are damaged. requests: what the ranks had
    asked of each other (recognition/interruption.py), joined."""

    terms: JointTerms | None
    gradient_norm: torch.Tensor | None
    unreadable: int
    skipped: str = ""
    requests: int = 0


class TrainStep:
    """`step(batches, request)` learns from one step's batches (several where gradients are accumulated). `request`: bits
    that this rank sends to all others along with its labels.

    encoder: wrapped by DistributedDataParallel. joint: losses and their state. A step that meets a non-finite feature or
    gradient on any rank leaves the weights, the optimiser, the statistics of BatchNorm and the queue as they were
    (features that were finite may have been enqueued by then), on all ranks alike.
    """

    def __init__(
        self, encoder: nn.parallel.DistributedDataParallel, joint: JointLoss, optimiser: torch.optim.Optimizer,
        loss_scale: LossScale, autocast: torch.dtype | None, max_grad_norm: float, device: torch.device,
        momentum_encoder: MomentumEncoder | None = None,
    ):  # fmt: skip
        self.encoder, self.joint, self.optimiser = encoder, joint, optimiser
        self.loss_scale, self.autocast, self.max_grad_norm, self.device = loss_scale, autocast, max_grad_norm, device
        self.momentum_encoder = momentum_encoder
        self._running = RunningStatistics(encoder)

    def __call__(self, batches: Sequence[DeviceBatch], request: int = 0) -> StepResult:
        self._running.remember()
        terms, unreadable, requests = None, 0, 0
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.encoder.no_sync():
                # Views and encoder: both views in one pass.
                dist.arriving("forward pass")
                inputs = to_input(batch.images_VBHWC.flatten(0, 1), self.device)
                features_VBD = self._encode(self.encoder, inputs, len(batch.images_VBHWC))

                # Gather: the whole world's features and labels, on every rank.
                features_VGD = dist.gather_rows(features_VBD)
                momentum_VGD = self._momentum_features(inputs, len(batch.images_VBHWC))
                host_label_G, asked = dist.gather_labels_and_requests(batch.labels_B, request)
                requests |= asked
                unreadable += int((host_label_G < 0).sum())
                if unreadable and not bool((host_label_G >= 0).any()):
                    return self._skip("every record of the batch is damaged", unreadable, requests)
                if not bool(torch.isfinite(features_VGD).all()):
                    return self._skip(_where_not_finite(features_VGD), unreadable, requests)

                # Quality, partition, sharded softmax, contrastive term.
                terms = self.joint(features_VGD, host_label_G, momentum_VGD)

                # Backward: reduce-scatter of feature gradients, then DDP's all-reduce in the last pass.
                (terms.loss * (self.loss_scale.value / len(batches))).backward()

        # Agree, clip, optimise.
        coalesce_gradients(self._parameters())
        scale_gradients(self._parameters(), 1 / self.loss_scale.value)
        norm = global_gradient_norm(self.encoder, self.joint.classifier)
        finite = bool(norm.isfinite())
        self.loss_scale.update(finite)
        if not finite:
            return self._skip(_where_gradients_are_not_finite(self._parameters()), unreadable, requests)
        if self.max_grad_norm > 0:
            scale_gradients(self._parameters(), (self.max_grad_norm / norm).clamp(max=1.0).float())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.momentum_encoder is not None:
            self.momentum_encoder.follow(self.encoder.module)
        return StepResult(terms, norm, unreadable, requests=requests)

    def settle_buckets(self, views: int, images: int) -> None:
        """To be called once, before the first step. DDP orders its gradient buckets anew after the first backward pass, and
        so, from three ranks on, the order of summation: without a pass ahead of time, the first step of a resumed run would
        differ in the last bit from the same step of a run that never stopped. Learns nothing and changes no state."""
        self._running.remember()
        grey_VBHWC = torch.full((views, images, IMAGE_SIZE, IMAGE_SIZE, 3), 128, dtype=torch.uint8)
        inputs = to_input(grey_VBHWC.flatten(0, 1), self.device)
        self._encode(self.encoder, inputs, views).sum().backward()
        self.optimiser.zero_grad(set_to_none=True)
        self._running.restore()

    def _encode(self, encoder: nn.Module, inputs: torch.Tensor, views: int) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            features = encoder(inputs)
        return features.float().unflatten(0, (views, -1))

    def _momentum_features(self, inputs: torch.Tensor, views: int) -> torch.Tensor | None:
        """What the momentum encoder, if there is one, makes of the whole world's images: float32 [V, G, D]."""
        if self.momentum_encoder is None:
            return None
        with torch.no_grad():
            return dist.gather_rows(self._encode(self.momentum_encoder, inputs, views))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def _skip(self, why: str, unreadable: int, requests: int) -> StepResult:
        self.optimiser.zero_grad(set_to_none=True)
        self._running.restore()
        return StepResult(None, None, unreadable, why, requests)


class RunningStatistics:
    """BatchNorm's running statistics, which a forward pass changes: remembered, to be put back if the step is skipped."""

    def __init__(self, encoder: nn.Module):
        self._buffers = [b for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for b in m.buffers()]
        self._copies = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def remember(self) -> None:
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            buffer.copy_(copy)


def _where_not_finite(features_VGD: torch.Tensor) -> str:
    _, world = dist.rank_and_world()
    rank_features_VWX = features_VGD.unflatten(1, (world, -1)).flatten(2)
    bad = (~rank_features_VWX.isfinite()).any(dim=2).any(dim=0).nonzero().flatten().tolist()
    return f"features of rank {', '.join(map(str, bad))} are not finite"


def _where_gradients_are_not_finite(parameters: Sequence[nn.Parameter]) -> str:
    here = all(bool(gradient_values(p.grad).isfinite().all()) for p in parameters if p.grad is not None)
    votes = dist.gather_stack(torch.tensor([int(here)])).flatten()
    return f"gradients of rank {', '.join(str(r) for r, good in enumerate(votes.tolist()) if not good)} are not finite"
