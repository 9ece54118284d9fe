"""Supervised contrastive loss of low-quality faces against their sharp twins (QGFace eqs. 13-14; MoCo's form, He et al.,
CVPR 2020, https://arxiv.org/abs/1911.05722).

    l_i = -log( exp(s cos(q_i, k_i)) / sum_{j: y_j != y_i} exp(s cos(q_i, n_j)) )

q is the augmented view's feature, k the original's with its gradient stopped (unless asked otherwise), n the queue's
entries. Entries of the query's own identity are left out of the sum (-inf, not cosine 0). Eq. 14 as printed has the
negatives alone in the
denominator (`paper`, bounded below by -2s only); `infonce` has the positive in it too. A pair without a single negative
contributes nothing.

Shapes: G pairs, K = queue entries of this rank, D embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from losses.log_sum_exp import ChunkPlan, HeadPrecision, KeyShard, LogSumExpOptions, ShardedLogSumExp
from losses.proxy_queue import FeatureQueue
from losses.selection import Selection
from utils.dist import replicated

DENOMINATORS = ("paper", "infonce")


class _QueueKeys(KeyShard):
    """The queue's entries as keys; entries of the query's own identity are excluded."""

    def __init__(self, queue: FeatureQueue, proxies, label_M: torch.Tensor):
        self.queue, self.proxies, self.label_M = queue, proxies, label_M

    def __len__(self) -> int:
        return len(self.queue)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.queue.features(start, stop, self.proxies)

    def exclude_(self, logits_MC: torch.Tensor, start: int, stop: int) -> None:
        logits_MC.masked_fill_(self.label_M[:, None] == self.queue.labels(start, stop)[None, :], -torch.inf)


class ContrastiveLoss(nn.Module):
    """`forward` -> the loss of the whole batch, equal on all ranks."""

    def __init__(
        self,
        scale: float,
        denominator: str,
        stop_gradient: bool,
        plan: ChunkPlan | None = None,
        precision: HeadPrecision = "fp32",
    ):
        super().__init__()
        if denominator not in DENOMINATORS:
            raise ValueError(f"denominator must be one of {DENOMINATORS}, not {denominator!r}")
        self.sum_options = LogSumExpOptions(scale, plan=plan, precision=precision)
        self.positive_in_denominator, self.stop_gradient = denominator == "infonce", stop_gradient

    def forward(
        self,
        query_GD: torch.Tensor,
        key_GD: torch.Tensor,
        label_G: torch.Tensor,
        share_G: torch.Tensor,
        queue: FeatureQueue,
        proxies,
    ) -> torch.Tensor:
        """query_GD, key_GD: normalised gathered features of the two views (the key's gradient is stopped here,
        if it is to be).
        share_G: weight of each pair in the sum (0 where it is not contrasted). proxies: the classifier's current rows of
        labels this rank owns (`ShardedSoftmax.rows_of`), for the queue's drift compensation."""
        # The positive's logit is computed in full by every rank, unlike the negatives'.
        key_GD = key_GD.detach() if self.stop_gradient else replicated(key_GD)
        needed = Selection(share_G, self.sum_options.plan)
        query_MD, replicated_MD, key_MD, label_M, share_M = needed.take(query_GD, replicated(query_GD), key_GD, label_G, share_G)
        negatives_M, _ = ShardedLogSumExp.apply(query_MD, None, _QueueKeys(queue, proxies, label_M), self.sum_options)
        has_negative_M = negatives_M.detach() > -torch.inf
        negatives_M = torch.where(has_negative_M, negatives_M, 0.0)
        positive_M = self.sum_options.scale * (replicated_MD * key_MD).sum(dim=1)
        denominator_M = torch.logaddexp(negatives_M, positive_M) if self.positive_in_denominator else negatives_M
        return needed.sum((denominator_M - positive_M) * (share_M * has_negative_M))
