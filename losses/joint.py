"""The quality-guided joint loss (QGFace, Song & Wang, section III, eqs. 1-14): L = L_cls + lambda L_con.

High-quality features learn from their labels (margin softmax), low-quality pairs from their sharp twins (contrastive loss against
the queue). L_cls is the sum over the selected features divided by ALL V*L features with a label, L_con the sum over the selected
pairs divided by ALL G pairs.

Images without a label (not in the paper) are never classified, and their pairs are contrasted whatever their quality. They do not
move the quality statistics, so that they change neither margin nor partition.

Shapes: V views, G gathered images, L of them labelled (all, unless there are unlabelled images), N = V*G and M = V*L features,
D embedding. View 0 is q (augmented), view 1 is k (original).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from losses.contrastive import ContrastiveLoss
from losses.distillation import distillation_loss
from losses.proxy_queue import FeatureQueue
from losses.quality import AnyPartition, QualityStatistics, graded
from losses.sharded_softmax import ShardedSoftmax
from utils.labels import UNREADABLE
from utils.transfer import to_device


@dataclass(frozen=True)
class JointTerms:
    """A step's loss and figures to report: float32 scalars, equal on all ranks. Only `loss` has a gradient.

    high_quality_share, low_quality_pair_share, norm_mean: of the labelled images. unlabelled_share: of the images, on the host.
    distillation: None without a teacher.
    """

    loss: torch.Tensor
    classification: torch.Tensor
    contrastive: torch.Tensor
    high_quality_share: torch.Tensor
    low_quality_pair_share: torch.Tensor
    norm_mean: torch.Tensor
    unlabelled_share: float
    distillation: torch.Tensor | None = None


class JointLoss(nn.Module):
    """All that lies between the gathered features and the loss, with its state: classifier shard, quality statistics, queue.

    partition: selects features and pairs; may be replaced between steps, for a warm-up. queue, contrastive: None for the
    classification loss alone (baseline; table II, queue "No"), which is also all that a step with one view computes.
    contrastive_weight: lambda. average: `all` as in the paper; `selected` divides by the number of selected features or pairs.
    distillation_weight: of the distillation loss, in steps with a teacher.

    >>> import torch
    >>> from losses.margins.adaface import AdaFace
    >>> from losses.quality import Partition
    >>> from utils import dist
    >>> world = dist.start()
    >>> head = ShardedSoftmax(num_classes=10, embedding_size=4, margin=AdaFace(margin=0.4, scale=64.0))
    >>> quality = QualityStatistics(concentration=0.333, rate=0.01, initial_mean=20.0, initial_std=5.0)
    >>> queue, contrastive = FeatureQueue(10, 4, head.shard), ContrastiveLoss(64.0, "paper", stop_gradient=True)
    >>> joint = JointLoss(head, quality, Partition(0.2), queue, contrastive, contrastive_weight=1.0, average="all")
    >>> features = (20 * torch.rand(2, 3, 4)).requires_grad_()  # two views of three images
    >>> terms = joint(features, torch.tensor([1, 5, 7]))
    >>> terms.loss.backward()
    >>> terms.classification.isfinite(), queue.filled
    (tensor(True), 6)
    >>> dist.stop()
    """

    def __init__(
        self,
        classifier: ShardedSoftmax,
        quality: QualityStatistics,
        partition: AnyPartition,
        queue: FeatureQueue | None,
        contrastive: ContrastiveLoss | None,
        contrastive_weight: float,
        average: Literal["all", "selected"],
        distillation_weight: float = 1.0,
    ):
        super().__init__()
        self.average, self.distillation_weight = average, distillation_weight
        self.classifier, self.quality, self.partition = classifier, quality, partition
        self.queue, self.contrastive, self.contrastive_weight = queue, contrastive, contrastive_weight
        self._draws_before = 0

    def begin_step(self) -> None:
        """Mark the state to which `undo_step` returns: the queue and the number of class samples. The buffers, which a step also
        changes, are the caller's to restore."""
        self._draws_before = self.classifier.draws
        if self.queue is not None:
            self.queue.begin_step()

    def undo_step(self) -> None:
        """Return to the state at `begin_step`."""
        self.classifier.draws = self._draws_before
        if self.queue is not None:
            self.queue.undo_step()

    def forward(
        self,
        features_VGD: torch.Tensor,
        host_label_G: torch.Tensor,
        momentum_VGD: torch.Tensor | None = None,
        teacher_1GD: torch.Tensor | None = None,
        grade_G: torch.Tensor | None = None,
    ) -> JointTerms:
        """Update the quality statistics and the queue, then compute the loss of the whole batch.

        features_VGD: raw gathered features, float32, finite, equal on all ranks. host_label_G: int64 on the CPU. Rows with label
        `UNREADABLE` are removed, and the step is that of the smaller batch; `UNLABELLED` - i is unlabelled image i. At least one
        row needs a class. momentum_VGD: features of the same images from a momentum encoder, which then fill the queue and are
        the positive keys. With one view in each, they are a pair: the original in `features_VGD`, which alone is classified,
        and the augmented view in `momentum_VGD`. grade_G: float32, by which the partition divides instead of the norms, see
        `losses.quality.graded`.
        teacher_1GD: a teacher's features of the original images.
        """
        readable = _Rows(host_label_G != UNREADABLE, features_VGD.device)
        features_VGD, host_label_G = readable.take(features_VGD), host_label_G[readable.mask]
        labelled = _Rows(host_label_G >= 0, features_VGD.device)
        host_label_M = host_label_G[labelled.mask].repeat(len(features_VGD))
        unit_VGD = F.normalize(features_VGD.flatten(0, 1)).view_as(features_VGD)
        queued_VGD, key_VGD, both_VGD = features_VGD, unit_VGD, features_VGD
        if momentum_VGD is not None:
            queued_VGD = readable.take(momentum_VGD)
            key_VGD = F.normalize(queued_VGD, dim=2)
            both_VGD = features_VGD if len(features_VGD) == 2 else torch.cat([queued_VGD, features_VGD])
        learned = slice(-len(features_VGD), None)  # those of both views from which the encoder learns
        raw_norm_VG = both_VGD.flatten(0, 1).norm(dim=1).view(both_VGD.shape[:2])
        raw_norm_VL = labelled.take(raw_norm_VG)

        # Who learns from what.
        norm_VL = raw_norm_VL.detach()
        self.quality.update(norm_VL.flatten())
        quality_VL = self.quality.normalise(norm_VL)
        graded_VL = graded(quality_VL, None if grade_G is None else labelled.take(readable.take(grade_G[None]))[0])
        classified_M = self.partition.high_quality(graded_VL.flatten()).view_as(graded_VL)[learned].flatten()
        contrasted_L = self.partition.low_quality_pairs(graded_VL)

        # High quality: the labels.
        classification = self.classifier(
            labelled.take(unit_VGD).flatten(0, 1),
            to_device(host_label_M, features_VGD.device),
            quality_VL[learned].flatten(),
            self._shares(classified_M),
            raw_norm_VL[learned].flatten(),
            host_label_M,
        )

        # Low quality: the sharp twins.
        contrastive, contrasted_share = torch.zeros_like(classification), torch.zeros_like(classification)
        if self.queue is not None and self.contrastive is not None and len(both_VGD) == 2:
            proxies = self.classifier.rows_of
            self.queue.enqueue(queued_VGD.flatten(0, 1), host_label_G.repeat(len(queued_VGD)), proxies)
            query_ND, key_ND = self.contrastive.directions(unit_VGD, key_VGD, raw_norm_VG.detach())
            label_N = to_device(host_label_G.repeat(len(query_ND) // len(host_label_G)), features_VGD.device)
            share_G = self._shares(labelled.spread(contrasted_L, self.partition.contrasts_unlabelled))
            share_N = share_G.repeat(len(query_ND) // len(share_G))
            contrastive = self.contrastive(query_ND, key_ND, label_N, share_N, self.queue, proxies)
            contrasted_share = contrasted_L.float().mean()

        # All images: the teacher.
        loss, distillation = classification + self.contrastive_weight * contrastive, None
        if teacher_1GD is not None:
            distillation = distillation_loss(features_VGD, readable.take(teacher_1GD))
            loss = loss + self.distillation_weight * distillation

        return JointTerms(
            loss=loss,
            classification=classification.detach(),
            contrastive=contrastive.detach(),
            high_quality_share=classified_M.float().mean(),
            low_quality_pair_share=contrasted_share.detach(),
            norm_mean=norm_VL.mean(),
            unlabelled_share=float((host_label_G < 0).float().mean()),
            distillation=None if distillation is None else distillation.detach(),
        )

    def _shares(self, selected_N: torch.Tensor) -> torch.Tensor:
        """The weight of each feature (or pair) in the sum, 0 if it is not selected: float32 [N]."""
        if self.average == "selected":
            return selected_N / selected_N.sum().clamp_min(1)
        return selected_N / len(selected_N)


class _Rows:
    """Some images of a batch, chosen on the host. mask: boolean [G] on the CPU, true for at least one image."""

    def __init__(self, mask: torch.Tensor, device: torch.device):
        chosen = mask.nonzero().flatten()
        assert len(chosen), "no row of the batch can be used"
        self.mask = mask
        self._chosen = to_device(chosen, device) if len(chosen) < len(mask) else None

    def take(self, value_VG: torch.Tensor) -> torch.Tensor:
        """The chosen images' entries of a tensor [V, G, ...], differentiable."""
        return value_VG if self._chosen is None else value_VG.index_select(1, self._chosen)

    def spread(self, value_L: torch.Tensor, fill: bool) -> torch.Tensor:
        """Values of the chosen images in their places, `fill` in the others: [L] -> [G]."""
        if self._chosen is None:
            return value_L
        return torch.full((len(self.mask),), fill, device=value_L.device).scatter(0, self._chosen, value_L)
