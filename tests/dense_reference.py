"""The method in one process, directly from the paper's equations: float64 autograd over full matrices.

Slow and short on purpose. It imports nothing from the packages that it checks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


class DenseReference:
    """State and loss of the joint method; call `step` with the features of all ranks."""

    def __init__(
        self,
        weight_CD,
        queue_size=None,
        threshold=0.2,
        margin=0.4,
        scale=64.0,
        concentration=0.333,
        rate=0.01,
        denominator="paper",
        contrastive_weight=1.0,
        compensate=True,
        initial_std=100.0,
        stop_gradient=True,
        average="all",
        by_views=False,
        warm_up=False,
        related_CC=None,
        target="original",
    ):
        self.weight = weight_CD.double().clone().requires_grad_()
        self.norm_mean, self.norm_std = 20.0, initial_std
        self.queue: list[tuple] = []  # (feature, label, proxy then), oldest first
        self.queue_size, self.threshold, self.margin, self.scale = queue_size, threshold, margin, scale
        self.concentration, self.rate, self.denominator = concentration, rate, denominator
        self.contrastive_weight, self.compensate = contrastive_weight, compensate
        self.stop_gradient, self.average, self.by_views, self.warm_up = stop_gradient, average, by_views, warm_up
        self.target = target
        # bool [C, C]: classes that are no negatives for each other
        self.related = torch.zeros(len(weight_CD), len(weight_CD), dtype=torch.bool) if related_CC is None else related_CC

    def mean(self, losses_N, selected_N):
        return (losses_N * selected_N).sum() / (len(losses_N) if self.average == "all" else max(int(selected_N.sum()), 1))

    def quality(self, feature_ND):  # eq. 1
        z = feature_ND.detach().norm(dim=1).clip(1e-3, 100)
        self.norm_mean = self.rate * z.mean().item() + (1 - self.rate) * self.norm_mean
        self.norm_std = self.rate * z.std().item() + (1 - self.rate) * self.norm_std
        return ((z - self.norm_mean) / ((self.norm_std + 1e-3) / self.concentration)).clip(-1, 1)

    def classification(self, feature_ND, label_N, z_hat_N, selected_N):  # eqs. 6-10
        cosine = (F.normalize(feature_ND) @ F.normalize(self.weight).T).clamp(-1 + 1e-3, 1 - 1e-3)
        own = F.one_hot(label_N, len(self.weight)).bool()
        theta = cosine.acos() + torch.where(own, -self.margin * z_hat_N[:, None], 0.0)
        shifted = theta.clamp(1e-3, math.pi - 1e-3).cos() - torch.where(own, (self.margin * z_hat_N + self.margin)[:, None], 0.0)
        logits = self.scale * torch.where(own, shifted, cosine)
        logits = logits.masked_fill(self.related[label_N], -torch.inf)
        losses = F.cross_entropy(logits, label_N, reduction="none")
        return self.mean(losses, selected_N)

    def enqueue(self, feature_ND, label_N):
        for feature, label in zip(feature_ND.detach(), label_N.tolist(), strict=True):
            self.queue.append((feature, label, self.weight.detach()[label].clone() if label >= 0 else torch.zeros_like(feature)))
        self.queue = self.queue[-self.queue_size :]

    def contrast(self, view_VGD, key_VGD, label_G, selected_G):
        """The contrastive loss of pairs, view 0 augmented and view 1 original. key_VGD: the same from the encoder of the keys."""
        if self.target == "symmetric":
            self.stop_gradient = False
            return sum(self.contrastive(view_VGD[i], key_VGD[1 - i], label_G, selected_G) for i in range(2))
        if self.target == "better":
            better_G = (view_VGD[1].norm(dim=1) >= view_VGD[0].norm(dim=1)).long()
            images = torch.arange(len(better_G))
            return self.contrastive(view_VGD[1 - better_G, images], key_VGD[better_G, images], label_G, selected_G)
        return self.contrastive(view_VGD[0], key_VGD[1], label_G, selected_G)

    def contrastive(self, query_GD, key_GD, label_G, selected_G):  # eqs. 13-14
        losses = [query_GD.sum() * 0] * len(label_G)
        for i, (query, key, label, selected) in enumerate(
            zip(query_GD, key_GD, label_G.tolist(), selected_G.tolist(), strict=True)
        ):
            if not selected:
                continue
            query, key = F.normalize(query, dim=0), F.normalize(key.detach() if self.stop_gradient else key, dim=0)
            negatives = []
            for feature, entry_label, then in self.queue:
                if entry_label == label or (min(label, entry_label) >= 0 and self.related[label, entry_label]):
                    continue
                if self.compensate and entry_label >= 0:
                    now = self.weight.detach()[entry_label]
                    feature = feature + feature.norm() / then.norm() * (now - then)
                negatives.append(self.scale * (query @ F.normalize(feature, dim=0)))
            if not negatives:
                continue
            positive = self.scale * (query @ key)
            terms = torch.stack([*negatives, positive] if self.denominator == "infonce" else negatives)
            losses[i] = terms.logsumexp(0) - positive
        return self.mean(torch.stack(losses), selected_G)

    def step(self, feature_VGD, label_G, momentum_VGD=None, teacher_1GD=None, grade_G=None):
        """Losses of one step (classification, contrastive, joint) for features [V, G, D] in float64. momentum_VGD: a momentum
        encoder's features, which then fill the queue and are the positive keys; if it has one view, the augmented, the encoder
        learns from the original alone. Negative labels: images without a label. teacher_1GD: a teacher's features, towards which
        those of all views turn, with weight 1. grade_G: by which the partition divides."""
        views, images = feature_VGD.shape[:2]
        only_original = momentum_VGD is not None and len(momentum_VGD) == 1
        if only_original:
            feature_VGD = torch.stack([momentum_VGD[0], feature_VGD[1]])
        has_label_G = label_G >= 0
        feature_MD, label_M = feature_VGD[:, has_label_G].flatten(0, 1), label_G[has_label_G].repeat(views)
        z_hat = self.quality(feature_MD)
        u = (z_hat + 1) / 2
        if grade_G is not None:
            u = torch.cat([grade_G[has_label_G], torch.ones(len(u) - int(has_label_G.sum()))])
        everything = self.threshold is None
        selected_M = torch.ones_like(u) if everything else (u > self.threshold).double()
        selected_G = torch.ones(images, dtype=torch.bool)
        if not (everything or self.by_views):
            selected_G[has_label_G] = u.view(views, -1).amin(0) <= self.threshold
        if self.by_views:  # view 0 is augmented, view 1 original
            selected_M = torch.arange(2).repeat_interleave(len(u) // 2)
        if self.warm_up:
            selected_M, selected_G = torch.ones_like(u), torch.zeros(images)
        learned = slice(len(label_M) // 2 if only_original else 0, None)
        classification = self.classification(feature_MD[learned], label_M[learned], z_hat[learned], selected_M[learned])
        contrastive = classification * 0
        if self.queue_size and views == 2:
            keys_VGD = feature_VGD if momentum_VGD is None else momentum_VGD
            self.enqueue(keys_VGD.flatten(0, 1), label_G.repeat(len(keys_VGD)))
            if only_original:
                contrastive = self.contrastive(feature_VGD[1], keys_VGD[0], label_G, selected_G)
            else:
                contrastive = self.contrast(feature_VGD, keys_VGD, label_G, selected_G)
        loss = classification + self.contrastive_weight * contrastive
        if teacher_1GD is not None:
            taught_VGD = feature_VGD[only_original:]
            loss = loss + (F.normalize(taught_VGD, dim=2) - F.normalize(teacher_1GD, dim=2)).square().sum(2).mean() / 2
        return classification, contrastive, loss
