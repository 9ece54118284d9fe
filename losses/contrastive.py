"""Supervised contrastive loss of low-quality faces against their sharp twins (QGFace eqs. 13-14; MoCo's form, He et al.,
CVPR 2020, https://arxiv.org/abs/1911.05722).

    l_i = -log( exp(s cos(q_i, k_i)) / sum_{j: y_j != y_i} exp(s cos(q_i, n_j)) )

q is the augmented view's feature, k the original's with its gradient stopped, n the queue's entries. Entries of the
query's own identity are left out of the sum (-inf, not cosine 0). Eq. 14 as printed has the negatives alone in the
denominator (`paper`, bounded below by -2s only); `infonce` has the positive in it too. A pair without a single negative
contributes nothing.

Shapes: G pairs, K = queue entries of this rank, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from losses.chunked import ChunkPlan, KeyShard, ShardedLogSumExp
from losses.proxy_queue import FeatureQueue
from utils.dist import replicated

DENOMINATORS = ("paper", "infonce")


class _QueueKeys(KeyShard):
    """The queue's entries as keys; entries of the query's own identity are excluded."""

    def __init__(self, queue: FeatureQueue, proxies, label_G: torch.Tensor):
        self.queue, self.proxies, self.label_G = queue, proxies, label_G

    def __len__(self) -> int:
        return len(self.queue)

    def unit_rows(self, start: int, stop: int) -> torch.Tensor:
        return F.normalize(self.queue.features(start, stop, self.proxies))

    def exclude_(self, logits_NC: torch.Tensor, start: int, stop: int) -> None:
        logits_NC.masked_fill_(self.label_G[:, None] == self.queue.labels(start, stop)[None, :], -torch.inf)


class ContrastiveLoss(nn.Module):
    """`forward` -> the loss of the whole batch, equal on all ranks. Scale s = 64 as in the paper."""

    def __init__(self, scale: float = 64.0, denominator: str = "paper", plan: ChunkPlan | None = None):
        super().__init__()
        if denominator not in DENOMINATORS:
            raise ValueError(f"denominator must be one of {DENOMINATORS}, not {denominator!r}")
        self.scale, self.positive_in_denominator = scale, denominator == "infonce"
        self.plan = plan or ChunkPlan()

    def forward(
        self,
        query_GD: torch.Tensor,
        key_GD: torch.Tensor,
        label_G: torch.Tensor,
        share_G: torch.Tensor,
        queue: FeatureQueue,
        proxies,
    ) -> torch.Tensor:
        """query_GD, key_GD: normalised gathered features of the two views (the key's gradient is stopped here).
        share_G: weight of each pair in the sum (0 where it is not contrasted). proxies: the classifier's current rows of
        labels this rank owns (`ShardedSoftmax.rows_of`), for the queue's drift compensation."""
        negatives_G, _ = ShardedLogSumExp.apply(
            query_GD, None, None, _QueueKeys(queue, proxies, label_G), self.scale, torch.inf, self.plan
        )
        has_negative_G = negatives_G.detach() > -torch.inf
        negatives_G = torch.where(has_negative_G, negatives_G, 0.0)
        # The positive's logit is computed in full by every rank, unlike the negatives'.
        positive_G = self.scale * (replicated(query_GD) * key_GD.detach()).sum(dim=1)
        denominator_G = torch.logaddexp(negatives_G, positive_G) if self.positive_in_denominator else negatives_G
        return ((denominator_G - positive_G) * (share_G * has_negative_G)).sum()
