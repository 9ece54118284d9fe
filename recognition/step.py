"""One training step, in the order in which the data flows. The config has picked the objects; nothing branches on a
method's name here, and nothing is printed.

Nothing here waits for the device, either. Whether the step's numbers are finite is decided there (recognition/finite.py), and
the host reads it during the step after, when the device has that step's forward pass to do.

Shapes: V views, B images of this rank, G gathered, D embedding, W ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from losses.joint import JointLoss, JointTerms
from losses.quality import QualityStatistics
from recognition.data.prefetch import DeviceBatch
from recognition.encoders.embedder import to_input
from recognition.finite import DeviceState, Refusal, Verdict
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import LossScale, RowOptimiser, coalesce_gradients, global_gradient_norm, scale_gradients
from utils import dist
from utils.images import FACE_SIZE


@dataclass(frozen=True)
class StepResult:
    """What a step did, as far as the host knows; on the device, so that to read a number is to wait for it.

    terms: None where no record of the batch could be read. unreadable: records of the whole world that the step left out
    because they are damaged. requests: what the ranks had asked of each other (recognition/signals.py), joined.
    """

    terms: JointTerms | None
    gradient_norm: torch.Tensor | None
    unreadable: int
    requests: int = 0

    def figures(self, quality: QualityStatistics) -> dict[str, float]:
        """The step in numbers, with the quality statistics after it; only of a step with terms. Waits for the device, once."""
        terms = self.terms
        assert terms is not None and self.gradient_norm is not None
        values = {
            "loss": terms.loss, "loss_classification": terms.classification, "loss_contrastive": terms.contrastive,
            "high_quality_share": terms.high_quality_share, "low_quality_pair_share": terms.low_quality_pair_share,
            "norm_mean": terms.norm_mean, "quality_mean": quality.mean, "quality_std": quality.std,
            "gradient_norm": self.gradient_norm,
        }  # fmt: skip
        numbers = torch.stack([value.detach().double() for value in values.values()]).tolist()
        return dict(zip(values, numbers, strict=True))


class TrainStep:
    """`step(batches, request)` learns from one step's batches (several where gradients are accumulated). `request`: bits
    that this rank sends to all others along with its labels.

    encoder: wrapped by DistributedDataParallel. joint: losses and their state. A step that meets a non-finite feature or
    gradient on any rank leaves everything as it was, on all ranks alike: weights, the optimiser, the statistics of BatchNorm
    and of quality, the queue. `on_verdict` is told of every step whether it was skipped, and why (empty: it was learned from):
    during the step after it, or when `settle` is called. Until then the queue's and the sampler's counters are not final, so
    `settle` comes before anything that looks at the state.
    """

    def __init__(
        self, encoder: nn.parallel.DistributedDataParallel, joint: JointLoss, optimiser: RowOptimiser,
        loss_scale: LossScale, autocast: torch.dtype | None, max_grad_norm: float, device: torch.device,
        on_verdict: Callable[[str], None], momentum_encoder: MomentumEncoder | None = None,
    ):  # fmt: skip
        self.encoder, self.joint, self.optimiser = encoder, joint, optimiser
        self.loss_scale, self.autocast, self.max_grad_norm, self.device = loss_scale, autocast, max_grad_norm, device
        self.momentum_encoder, self._on_verdict = momentum_encoder, on_verdict
        self._state = DeviceState([*_running_statistics(encoder, momentum_encoder), *joint.buffers()])
        self._pending: Verdict | Refusal | None = None
        self._last_verdict = ""

    def __call__(self, batches: Sequence[DeviceBatch], request: int = 0) -> StepResult:
        self._state.remember()
        terms, unreadable, requests = None, 0, 0
        fit_W = torch.ones(dist.rank_and_world()[1], dtype=torch.bool, device=self.device)
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

                # The step before: counters as they are after it, from which this one goes on.
                if number == 0:
                    self.settle()
                    self.joint.begin_step()
                if not bool((host_label_G >= 0).any()):
                    return self._refuse("every record of the batch is damaged", unreadable, requests)
                fit_W &= _finite_by_rank(features_VGD)
                if momentum_VGD is not None:
                    fit_W &= _finite_by_rank(momentum_VGD)

                # Quality, partition, sharded softmax, contrastive term.
                terms = self.joint(features_VGD, host_label_G, momentum_VGD)

                # Backward: reduce-scatter of feature gradients, then DDP's all-reduce in the last pass.
                (terms.loss * (self.loss_scale.value / len(batches))).backward()

        return StepResult(terms, self._optimise(fit_W), unreadable, requests)

    def _optimise(self, fit_W: torch.Tensor) -> torch.Tensor:
        """Agree, clip, optimise: on the device, which does nothing where the verdict is bad. Gives the gradients' norm. fit_W:
        whether each rank's features are finite."""
        coalesce_gradients(self._parameters())
        if self.loss_scale.enabled:
            scale_gradients(self._parameters(), 1 / self.loss_scale.value)
        norm, sound_W = global_gradient_norm(self.encoder, self.joint.classifier)
        verdict = Verdict(fit_W, sound_W)
        self.loss_scale.update(fit_W.all(), sound_W.all())
        if self.max_grad_norm > 0:
            scale_gradients(self._parameters(), (self.max_grad_norm / norm).clamp(max=1.0).float())
        self.optimiser.step_if(verdict.good)
        self.optimiser.zero_grad(set_to_none=True)
        if self.momentum_encoder is not None:
            self.momentum_encoder.follow(self.encoder.module, verdict.good)
        self._state.restore_unless(verdict.good)
        self._pending = verdict
        return norm

    def settle(self) -> str:
        """Waits for the last step if its verdict has not been read, and undoes what the host counted of it if it was skipped.
        Returns why the last step was skipped, or nothing. To be called by all ranks alike."""
        if self._pending is not None:
            verdict, self._pending = self._pending, None
            self._last_verdict = verdict.read()
            if self._last_verdict:
                self.joint.undo_step()
            self._on_verdict(self._last_verdict)
        return self._last_verdict

    def settle_buckets(self, views: int, images: int) -> None:
        """To be called once, before the first step. DDP orders its gradient buckets anew after the first backward pass, and
        so, from three ranks on, the order of summation: without a pass ahead of time, the first step of a resumed run would
        differ in the last bit from the same step of a run that never stopped. Learns nothing and changes no state."""
        self._state.remember()
        grey_VBHWC = torch.full((views, images, FACE_SIZE, FACE_SIZE, 3), 128, dtype=torch.uint8)
        inputs = to_input(grey_VBHWC.flatten(0, 1), self.device)
        self._encode(self.encoder, inputs, views).sum().backward()
        self.optimiser.zero_grad(set_to_none=True)
        self._state.restore_unless(torch.zeros((), dtype=torch.bool, device=self.device))

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

    def _refuse(self, why: str, unreadable: int, requests: int) -> StepResult:
        """Skips the step for a reason that the host knows, the same on all ranks."""
        self.optimiser.zero_grad(set_to_none=True)
        self._pending = Refusal(why, self.device)
        self._state.restore_unless(self._pending.good)
        return StepResult(None, None, unreadable, requests)


def _running_statistics(*encoders: nn.Module | None) -> list[torch.Tensor]:
    modules = [module for encoder in encoders if encoder is not None for module in encoder.modules()]
    return [buffer for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) for buffer in m.buffers()]


def _finite_by_rank(features_VGD: torch.Tensor) -> torch.Tensor:
    """Of each rank, whether all of its features are finite: bool [W], on the device."""
    _, world = dist.rank_and_world()
    return features_VGD.detach().unflatten(1, (world, -1)).isfinite().transpose(0, 1).flatten(1).all(dim=1)
