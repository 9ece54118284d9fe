"""Quality-guided joint loss (QGFace, section III, eqs. 1-14): L = L_cls + lambda L_con.

High-quality features learn from their labels (margin softmax), low-quality pairs from their sharp twins (contrastive
loss against the queue). L_cls is the sum over selected features divided by ALL V*G features, L_con the sum over selected
pairs divided by ALL G pairs: those not selected count as zero (`average="selected"`, for comparison, divides by the number
of the selected instead).

Shapes: V views, G gathered images, N = V*G features, D embedding. View 0 is q (augmented), view 1 is k (original).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from losses.contrastive import ContrastiveLoss
from losses.proxy_queue import FeatureQueue
from losses.quality import AnyPartition, QualityStatistics
from losses.sharded_softmax import ShardedSoftmax
from utils.transfer import to_device


@dataclass(frozen=True)
class JointTerms:
    """A step's loss and what to report of it: float32 scalars, equal on all ranks. Only `loss` carries a gradient."""

    loss: torch.Tensor
    classification: torch.Tensor
    contrastive: torch.Tensor
    high_quality_share: torch.Tensor
    low_quality_pair_share: torch.Tensor
    norm_mean: torch.Tensor


class JointLoss(nn.Module):
    """Everything between the gathered features and the loss, and all of its state: classifier shard, quality
    statistics, queue.

    `contrastive=None` or `queue=None` leaves the classification loss alone (baseline; table II, queue "No"); so does a
    step with one view. `partition` may be replaced between steps (a warm-up).
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
    ):
        super().__init__()
        self.average = average
        self.classifier, self.quality, self.partition = classifier, quality, partition
        self.queue, self.contrastive, self.contrastive_weight = queue, contrastive, contrastive_weight
        self._draws_before = 0

    def begin_step(self) -> None:
        """From here on, `undo_step` can take back what the host counts: entries of the queue, draws of classes. What a step
        changes on the device besides (`buffers()`) is for the caller to restore."""
        self._draws_before = self.classifier.draws
        if self.queue is not None:
            self.queue.begin_step()

    def undo_step(self) -> None:
        """The step that began last has not been learned from."""
        self.classifier.draws = self._draws_before
        if self.queue is not None:
            self.queue.undo_step()

    def forward(
        self, features_VGD: torch.Tensor, host_label_G: torch.Tensor, momentum_VGD: torch.Tensor | None = None
    ) -> JointTerms:
        """features_VGD: raw gathered features, float32, equal on all ranks, finite. host_label_G: int64 on the CPU; -1 marks
        the row of a record that could not be read, and the step is that of the smaller batch without such rows. momentum_VGD:
        the same images' features from a momentum encoder, which then fill the queue and give the positive keys.

        Updates the quality statistics and the queue, then computes the loss of the whole batch.
        """
        if momentum_VGD is not None:
            momentum_VGD, _ = _readable(momentum_VGD, host_label_G)
        features_VGD, host_label_G = _readable(features_VGD, host_label_G)
        views, images, _ = features_VGD.shape
        features_ND = features_VGD.flatten(0, 1)
        unit_ND = F.normalize(features_ND)
        host_label_N = host_label_G.repeat(views)
        label_N = to_device(host_label_N, features_ND.device)

        learning_norm_N = features_ND.norm(dim=1)
        norm_N = learning_norm_N.detach()
        self.quality.update(norm_N)
        quality_N = self.quality.normalise(norm_N)
        classified_N = self.partition.high_quality(quality_N)
        contrasted_G = self.partition.low_quality_pairs(quality_N.view(views, images))

        classification = self.classifier(unit_ND, label_N, quality_N, self._shares(classified_N), learning_norm_N, host_label_N)
        contrastive = torch.zeros_like(classification)
        contrasted_share = torch.zeros_like(classification)
        if self.queue is not None and self.contrastive is not None and views == 2:
            query_GD, key_GD = unit_ND.view(views, images, -1)
            queued_ND = features_ND
            if momentum_VGD is not None:
                queued_ND, key_GD = momentum_VGD.flatten(0, 1), F.normalize(momentum_VGD[1])
            self.queue.enqueue(queued_ND, host_label_N, self.classifier.rows_of)
            contrastive = self.contrastive(
                query_GD, key_GD, label_N[:images], self._shares(contrasted_G), self.queue, self.classifier.rows_of
            )
            contrasted_share = contrasted_G.float().mean()
        return JointTerms(
            loss=classification + self.contrastive_weight * contrastive,
            classification=classification.detach(),
            contrastive=contrastive.detach(),
            high_quality_share=classified_N.float().mean(),
            low_quality_pair_share=contrasted_share.detach(),
            norm_mean=norm_N.mean(),
        )

    def _shares(self, selected_N: torch.Tensor) -> torch.Tensor:
        """The weight of each feature (or pair) in the sum: 0 where it is not selected."""
        if self.average == "selected":
            return selected_N / selected_N.sum().clamp_min(1)
        return selected_N / len(selected_N)


def _readable(features_VGD: torch.Tensor, host_label_G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with a label. There is at least one: the step asks for no loss of nothing."""
    readable_G = host_label_G >= 0
    if bool(readable_G.all()):
        return features_VGD, host_label_G
    kept = readable_G.nonzero().flatten()
    assert len(kept), "no row of the batch has a label"
    return features_VGD.index_select(1, to_device(kept, features_VGD.device)), host_label_G[kept]
