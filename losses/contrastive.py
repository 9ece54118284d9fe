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

from losses.log_sum_exp import ChunkPlan, KeyShard, ShardedLogSumExp, Terms
from losses.products import HeadPrecision, Products
from losses.proxy_queue import FeatureQueue
from utils.dist import replicated

DENOMINATORS = ("paper", "infonce")


class _QueueKeys(KeyShard):
    """The queue's entries as keys; entries of the query's own identity are excluded."""

    def __init__(self, queue: FeatureQueue, proxies, label_G: torch.Tensor):
        self.queue, self.proxies, self.label_G = queue, proxies, label_G

    def __len__(self) -> int:
        return len(self.queue)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.queue.features(start, stop, self.proxies)

    def exclude_(self, logits_MC: torch.Tensor, start: int, stop: int, chosen_M: torch.Tensor | None) -> None:
        label_M = self.label_G if chosen_M is None else self.label_G[chosen_M]
        logits_MC.masked_fill_(label_M[:, None] == self.queue.labels(start, stop)[None, :], -torch.inf)


class ContrastiveLoss(nn.Module):
    """`forward` -> the loss of the whole batch, equal on all ranks. Scale s = 64 as in the paper."""

    def __init__(
        self, scale: float = 64.0, denominator: str = "paper", plan: ChunkPlan | None = None, precision: HeadPrecision = "fp32",
        stop_gradient: bool = True,
    ):  # fmt: skip
        super().__init__()
        if denominator not in DENOMINATORS:
            raise ValueError(f"denominator must be one of {DENOMINATORS}, not {denominator!r}")
        self.scale, self.positive_in_denominator = scale, denominator == "infonce"
        self.plan, self.products, self.stop_gradient = plan, Products(precision), stop_gradient

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
        terms = Terms(self.scale, plan=self.plan, products=self.products, needed_N=share_G > 0)
        negatives_G, _ = ShardedLogSumExp.apply(query_GD, None, _QueueKeys(queue, proxies, label_G), terms)
        has_negative_G = negatives_G.detach() > -torch.inf
        negatives_G = torch.where(has_negative_G, negatives_G, 0.0)
        # The positive's logit is computed in full by every rank, unlike the negatives'.
        key_GD = key_GD.detach() if self.stop_gradient else replicated(key_GD)
        positive_G = self.scale * (replicated(query_GD) * key_GD).sum(dim=1)
        denominator_G = torch.logaddexp(negatives_G, positive_G) if self.positive_in_denominator else negatives_G
        return ((denominator_G - positive_G) * (share_G * has_negative_G)).sum()
