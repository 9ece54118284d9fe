"""Supervised contrastive loss of low-quality faces against their sharp twins (QGFace eqs. 13-14; in the form of MoCo, He et al.,
CVPR 2020, https://arxiv.org/abs/1911.05722).

    l_i = -log( exp(s cos(q_i, k_i)) / sum_{j: y_j != y_i} exp(s cos(q_i, n_j)) )

q is the feature of the augmented view, k that of the original, n an entry of the queue. Entries of the query's own identity are
left out of the sum. A pair without any negative contributes nothing.

Shapes: G pairs, M of them computed, c keys of a chunk, D embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from losses.log_sum_exp import ChunkPlan, KeyShard, LogSumExpOptions, ShardedLogSumExp
from losses.possibly_same import PossiblySame
from losses.products import HeadPrecision
from losses.proxy_queue import FeatureQueue, Proxies
from losses.selection import Selection
from utils.dist import replicated

DENOMINATORS = ("paper", "infonce")
TARGETS = ("original", "better", "symmetric")


class ContrastiveLoss(nn.Module):
    """The contrastive term of the whole batch.

    scale: s. denominator: `paper` sums over the negatives alone, as eq. 14 is printed (then l_i > -2 s is the only bound);
    `infonce` adds the positive. stop_gradient: no gradient reaches k, as in the paper. plan, precision: see `losses.log_sum_exp`.
    possibly_same: identities whose entries are left out of a query's sum, as those of its own identity are.
    target: which view of a pair is k, see `directions`; with `symmetric`, gradients always reach k.
    Raises ValueError for an unknown denominator, target or precision.

    >>> import torch
    >>> from losses.proxy_queue import FeatureQueue
    >>> from utils import dist
    >>> world = dist.start()
    >>> queue = FeatureQueue(size=4, embedding_size=2, classes=dist.shard_range(3), compensate=False)
    >>> queue.enqueue(torch.tensor([[0.0, 5.0], [5.0, 0.0]]), torch.tensor([1, 2]), proxies=None)
    >>> query, label, share = torch.tensor([[1.0, 0.0]]), torch.tensor([2]), torch.ones(1)
    >>> loss = ContrastiveLoss(scale=2.0, denominator="paper", stop_gradient=True)
    >>> loss(query, query, label, share, queue, proxies=None)  # -log(exp(2) / exp(0)): the entry of class 2 is left out
    tensor(-2.)
    >>> dist.stop()
    """

    def __init__(
        self,
        scale: float,
        denominator: str,
        stop_gradient: bool,
        plan: ChunkPlan | None = None,
        precision: HeadPrecision = "fp32",
        possibly_same: PossiblySame | None = None,
        target: str = "original",
    ):
        super().__init__()
        self.possibly_same = possibly_same
        if target not in TARGETS:
            raise ValueError(f"target must be one of {TARGETS}, not {target!r}")
        self.target = target
        if denominator not in DENOMINATORS:
            raise ValueError(f"denominator must be one of {DENOMINATORS}, not {denominator!r}")
        self.sum_options = LogSumExpOptions(scale, plan=plan, precision=precision)
        self.positive_in_denominator = denominator == "infonce"
        self.stop_gradient = stop_gradient and target != "symmetric"

    def directions(
        self, query_VGD: torch.Tensor, key_VGD: torch.Tensor, norm_VG: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys of all pairs: [G, D] each; [2 G, D] for `symmetric`, where each view is pulled towards the other.

        query_VGD, key_VGD: normalised features, augmented views first; those of a momentum encoder are the keys if there is one.
        norm_VG: norms of the encoder's features. `original`: the original is the key. `better`: the view with the larger norm.
        """
        if self.target == "symmetric":
            return query_VGD.flatten(0, 1), key_VGD.flip(0).flatten(0, 1)
        if self.target == "better":
            swapped_G1 = (norm_VG[0] > norm_VG[1])[:, None]
            return torch.where(swapped_G1, query_VGD[1], query_VGD[0]), torch.where(swapped_G1, key_VGD[0], key_VGD[1])
        return query_VGD[0], key_VGD[-1]

    def forward(
        self,
        query_GD: torch.Tensor,
        key_GD: torch.Tensor,
        label_G: torch.Tensor,
        share_G: torch.Tensor,
        queue: FeatureQueue,
        proxies: Proxies | None,
    ) -> torch.Tensor:
        """The sum of the pairs' losses: a float32 scalar, equal on all ranks.

        query_GD, key_GD: normalised gathered features of the augmented views and of the originals, float32. label_G: int64.
        share_G: float32, each pair's weight in the sum, 0 if it is not contrasted. proxies: current classifier rows of labels
        that this rank owns (`ShardedSoftmax.rows_of`); None for a queue that does not compensate drift.
        """
        # Every rank computes the positives' logits in full, unlike the negatives'.
        key_GD = key_GD.detach() if self.stop_gradient else replicated(key_GD)
        needed = Selection(share_G, self.sum_options.plan)
        query_MD, replicated_MD, key_MD, label_M, share_M = needed.take(query_GD, replicated(query_GD), key_GD, label_G, share_G)
        negatives_M, _ = ShardedLogSumExp.apply(
            query_MD, None, _QueueKeys(queue, proxies, label_M, self.possibly_same), self.sum_options
        )
        has_negative_M = negatives_M.detach() > -torch.inf
        negatives_M = torch.where(has_negative_M, negatives_M, 0.0)
        positive_M = self.sum_options.scale * (replicated_MD * key_MD).sum(dim=1)
        denominator_M = torch.logaddexp(negatives_M, positive_M) if self.positive_in_denominator else negatives_M
        return needed.sum((denominator_M - positive_M) * (share_M * has_negative_M))


class _QueueKeys(KeyShard):
    """The queue's entries as keys; entries of the query's own identity, or of one that may be the same person, are excluded."""

    def __init__(self, queue: FeatureQueue, proxies: Proxies | None, label_M: torch.Tensor, possibly_same: PossiblySame | None):
        self.queue, self.proxies, self.label_M, self.possibly_same = queue, proxies, label_M, possibly_same

    def __len__(self) -> int:
        return len(self.queue)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.queue.features(start, stop, self.proxies)

    def exclude_(self, logits_MC: torch.Tensor, start: int, stop: int) -> None:
        label_C = self.queue.labels(start, stop)
        logits_MC.masked_fill_(self.label_M[:, None] == label_C[None, :], -torch.inf)
        if self.possibly_same is not None:
            logits_MC.masked_fill_(self.possibly_same.excluded(self.label_M, label_C), -torch.inf)
