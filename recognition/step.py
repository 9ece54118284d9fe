"""One training step, in the order in which the data flows. The configuration has chosen the objects (recognition/build.py): no
method's name is compared here, and nothing is printed.

Nothing here waits for the device either. Whether the step's numbers are finite is decided there (recognition/finite.py); the host
reads the decision during the next step, while the device computes that step's forward pass.

Shapes: V views, B images of this rank, G = W*B gathered, D embedding, W ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from losses.joint import JointTerms
from losses.quality import QualityStatistics
from recognition.data.prefetch import DeviceBatch
from recognition.encoders.embedder import to_input
from recognition.finite import FiniteCheck, finite_by_rank
from recognition.optimiser import GradientNorm, coalesce_gradients, scale_gradients
from recognition.sharding import own_rows
from recognition.snapshot import Snapshot, running_statistics
from recognition.train_state import TrainState
from utils import dist
from utils.images import FACE_SIZE
from utils.labels import UNREADABLE
from utils.transfer import to_device

ALL_DAMAGED = "every labelled record of the batch is damaged"


@dataclass(frozen=True)
class StepResult:
    """What the host has of a step right after it. Tensors are on the device: reading one waits for it.

    terms, gradient_norm: None if every labelled record of a batch is damaged. gradient_norm: of the gradients that are clipped,
    before that. contrasted: share of the labelled pairs, summed over the step's batches. damaged_records: left out by the ranks
    together. requests: of all ranks (recognition/signals.py).
    """

    terms: JointTerms | None
    gradient_norm: torch.Tensor | None
    contrasted: torch.Tensor
    damaged_records: int
    requests: int

    def figures(self, quality: QualityStatistics) -> dict[str, float]:
        """The step's measurements and the quality statistics after it; needs `terms`. Waits for the device, once."""
        terms = self.terms
        assert terms is not None and self.gradient_norm is not None
        values = {
            "loss": terms.loss,
            "loss_classification": terms.classification,
            "loss_contrastive": terms.contrastive,
            "high_quality_share": terms.high_quality_share,
            "low_quality_pair_share": terms.low_quality_pair_share,
            "norm_mean": terms.norm_mean,
            "quality_mean": quality.mean,
            "quality_std": quality.std,
            "gradient_norm": self.gradient_norm,
            **({} if terms.distillation is None else {"loss_distillation": terms.distillation}),
        }
        numbers = torch.stack([value.detach().double() for value in values.values()]).tolist()
        unlabelled = {"unlabelled_share": terms.unlabelled_share} if terms.unlabelled_share else {}
        return {**dict(zip(values, numbers, strict=True)), **unlabelled}


class TrainStep:
    """`train_step(batches, request)` learns from one step's batches (several if gradients are accumulated).

    A step with a non-finite feature or gradient on any rank, or with a batch without a readable labelled record, is skipped: it
    leaves all state as it was, on all ranks. Whether it was skipped is known later: the next step, or `finish_step`, calls
    `on_outcome` once with the reason ("" if the step was applied). Until then the counters of the queue and of the class
    sampler are not final: call `finish_step` before reading the state.

    encoder: `state.encoder` in DDP, or itself if it is sharded. autocast: number format of the encoder; None for fp32.
    max_grad_norm: 0 for no clipping.
    clip_head: clip the norm of all gradients together, else that of the encoder's gradients, and leave the classifier's alone.
    average_batches: the step's gradient is the mean of its batches' gradients, else their sum. teacher: uint8 images
    [B, H, W, 3] -> the features [B, D] that the encoder's turn towards.
    """

    def __init__(
        self,
        state: TrainState,
        encoder: nn.Module,
        *,
        device: torch.device,
        autocast: torch.dtype | None,
        max_grad_norm: float,
        clip_head: bool,
        average_batches: bool,
        on_outcome: Callable[[str], None],
        teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.state, self.encoder, self.device, self.autocast = state, encoder, device, autocast
        self.max_grad_norm, self.clip_head, self.average_batches = max_grad_norm, clip_head, average_batches
        self._on_outcome, self._teacher = on_outcome, teacher
        # A sharded encoder reduces the gradients of every batch, and so never holds them in full.
        self._no_sync = encoder.no_sync if isinstance(encoder, nn.parallel.DistributedDataParallel) else contextlib.nullcontext
        self._snapshot = Snapshot([*running_statistics(state.encoder, state.momentum_encoder), *state.joint.buffers()])
        self._pending: FiniteCheck | str | None = None  # the last step's check, or why the host skipped it
        self._skip_reason = ""  # of the last step that is not pending

    def __call__(
        self, batches: Sequence[DeviceBatch], request: int = 0, grades_G: Sequence[torch.Tensor] | None = None
    ) -> StepResult:
        """Train on `batches`. request: bits that this rank sends to all others with its labels. grades_G: of each batch's images
        on all ranks, by which the partition divides instead of the norms: float32, on the host."""
        state = self.state
        self._snapshot.take()
        terms, damaged_records, requests = None, 0, 0
        contrasted = torch.zeros((), device=self.device)
        features_finite_W = torch.ones(dist.rank_and_world()[1], dtype=torch.bool, device=self.device)
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with contextlib.nullcontext() if is_last else self._no_sync():
                # Encode all views in one pass.
                dist.mark_collective("forward pass")
                features_VBD = self.encode(self.encoder, batch.images_VBHWC[state.learned_views])

                # Gather features and labels: from here on, every rank has those of the whole world.
                features_VGD = dist.gather_rows(features_VBD)
                momentum_VGD = self._momentum_features(batch.images_VBHWC)
                teacher_1GD = self._teacher_features(batch.images_VBHWC)
                host_label_G, asked = dist.gather_labels_and_requests(batch.labels_B, request)
                requests |= asked
                damaged_records += int((host_label_G == UNREADABLE).sum())

                # Finish the step before: this one starts from the counters after it.
                if number == 0:
                    self.finish_step()
                    state.joint.begin_step()
                if not bool((host_label_G >= 0).any()):
                    self._skip(ALL_DAMAGED)
                    return StepResult(None, None, torch.zeros_like(contrasted), damaged_records, requests)
                features_finite_W &= finite_by_rank(features_VGD)
                if momentum_VGD is not None:
                    features_finite_W &= finite_by_rank(momentum_VGD)

                # Losses: quality, partition, sharded softmax, contrastive term, distillation.
                grade_G = None if grades_G is None else to_device(grades_G[number], self.device)
                terms = state.joint(features_VGD, host_label_G, momentum_VGD, teacher_1GD, grade_G)
                contrasted += terms.low_quality_pair_share

                # Backward: reduce-scatter of feature gradients; DDP's all-reduce in the last pass, FSDP's in every pass.
                divisor = len(batches) if self.average_batches else 1
                (terms.loss * (state.loss_scale.value / divisor)).backward()

        return StepResult(terms, self._optimise(features_finite_W), contrasted, damaged_records, requests)

    def _optimise(self, features_finite_W: torch.Tensor) -> torch.Tensor:
        """Check, clip, update; without effect, on the device, if the check fails. Return the norm before clipping."""
        state, parameters = self.state, self._parameters()

        # Gradients of the whole step, without the loss scale.
        coalesce_gradients(parameters)
        if state.loss_scale.enabled:
            scale_gradients(parameters, 1 / state.loss_scale.value)

        # All ranks agree whether the step is finite.
        norm = GradientNorm(state.encoder, state.joint.classifier, self.clip_head)
        check = FiniteCheck(features_finite_W, norm.finite_W)
        state.loss_scale.update(features_finite_W.all(), norm.finite_W.all())

        # Clip and update.
        if self.max_grad_norm > 0:
            clipped = parameters if self.clip_head else map(own_rows, state.encoder.parameters())
            scale_gradients(clipped, (self.max_grad_norm / norm.value()).clamp(max=1.0).float())
        state.optimiser.step_if(check.passed)
        norm_before_clipping = norm.value()
        state.optimiser.zero_grad(set_to_none=True)

        # What the forward passes changed is put back if the check fails.
        self._snapshot.restore_unless(check.passed)
        for follower in state.followers.values():
            follower.follow(state.encoder, check.passed)
        self._pending = check
        return norm_before_clipping

    def _skip(self, reason: str) -> None:
        """Skip the step for a reason found on the host, the same on all ranks."""
        self.state.optimiser.zero_grad(set_to_none=True)
        self._snapshot.restore()
        self._pending = reason

    def finish_step(self) -> str:
        """Wait for the last step, and take back what the host counted if it was skipped. Call it on all ranks.

        Return why the step was skipped; "" if it was applied.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._skip_reason = pending if isinstance(pending, str) else pending.skip_reason()
            if self._skip_reason:
                self.state.joint.undo_step()
            self._on_outcome(self._skip_reason)
        return self._skip_reason

    def fix_bucket_order(self, views: int, images: int) -> None:
        """One pass over grey images, before the first step. Learns nothing and changes no state.

        DDP orders its gradient buckets anew after the first backward pass, and with them, from three ranks on, the order of
        summation. Without this pass the first step of a resumed run would differ in the last bit from the same step of a run
        that was never interrupted.
        """
        self._snapshot.take()
        grey_VBHWC = torch.full((views, images, FACE_SIZE, FACE_SIZE, 3), 128, dtype=torch.uint8)
        self.encode(self.encoder, grey_VBHWC).sum().backward()
        self.state.optimiser.zero_grad(set_to_none=True)
        self._snapshot.restore()

    def encode(self, encoder: nn.Module, images_VBHWC: torch.Tensor) -> torch.Tensor:
        """Raw features of uint8 images, all views in one pass: float32 [V, B, D]."""
        inputs = to_input(images_VBHWC.flatten(0, 1), self.device)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            features = encoder(inputs)
        return features.float().unflatten(0, images_VBHWC.shape[:2])

    def _momentum_features(self, images_VBHWC: torch.Tensor) -> torch.Tensor | None:
        """The whole world's features from the momentum encoder, if there is one: float32 [V, G, D], without gradient."""
        momentum_encoder = self.state.momentum_encoder
        if momentum_encoder is None:
            return None
        with torch.no_grad():
            return dist.gather_rows(self.encode(momentum_encoder, images_VBHWC[momentum_encoder.seen]))

    def _teacher_features(self, images_VBHWC: torch.Tensor) -> torch.Tensor | None:
        """The teacher's features of the world's images in their original view, if there is a teacher: float32 [1, G, D]."""
        return None if self._teacher is None else dist.gather_rows(self._teacher(images_VBHWC[-1])[None])

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.state.optimiser.param_groups for p in group["params"]]
