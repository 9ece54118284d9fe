"""What benchmarks/head.py measures: a step of this project's classifier, of PartialFC_V2's operations, of the products alone, of
the whole loss, and of an encoder. Each way returns a step and the weight that it trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed
import torch.nn.functional as F

import backbones
from losses.contrastive import ContrastiveLoss
from losses.joint import JointLoss
from losses.margins.adaface import AdaFace
from losses.margins.arcface import ArcFace
from losses.proxy_queue import FeatureQueue
from losses.quality import Partition, QualityStatistics
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from recognition.encoders.embedder import product_precision
from recognition.optimiser import RowSGD
from utils import dist
from utils.images import FACE_SIZE

RANKS, IMAGES, DIM = 2, 128, 512
ENCODER_IMAGES = 8

Step = Callable[[], None]


# ---------------------------------------------------------------------------------------------------- the three ways


def _features(views: int = 1) -> torch.Tensor:
    """This rank's normalised features, a leaf."""
    generator = torch.Generator().manual_seed(dist.rank_and_world()[0])
    return F.normalize(torch.randn(views, _images(), DIM, generator=generator), dim=2).to(_device()).requires_grad_()


def _labels(classes: int) -> torch.Tensor:
    """All ranks' labels, on the host."""
    return torch.randint(0, classes, (dist.rank_and_world()[1] * _images(),), generator=torch.Generator().manual_seed(9))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _images() -> int:
    """Per rank: as many as on two ranks, if there is one."""
    return IMAGES * RANKS // dist.rank_and_world()[1]


def _sgd(weight: torch.nn.Parameter) -> torch.optim.Optimizer:
    weight.grad = None
    return RowSGD([weight], lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)


def ours(classes: int, views: int = 1, options: HeadOptions | None = None) -> tuple[Step, torch.nn.Parameter]:
    options = options or HeadOptions(precision=product_precision("auto", "auto", _device()))
    head = ShardedSoftmax(classes, DIM, ArcFace(0.5, 64.0), options=options).to(_device())
    features_VBD, host_labels_N = _features(views), _labels(classes).repeat(views)
    count, labels_N = len(host_labels_N), host_labels_N.to(_device())
    quality_N, share_N = torch.zeros(count, device=_device()), torch.full((count,), 1 / count, device=_device())
    optimiser = _sgd(head.weight)

    def step() -> None:
        unit_ND = dist.gather_rows(features_VBD).flatten(0, 1)
        head(unit_ND, labels_N, quality_N, share_N, host_label_N=host_labels_N).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step, head.weight


class _CrossEntropy(torch.autograd.Function):
    """Softmax cross-entropy of logits whose columns are spread over the ranks. Keeps the probabilities of all columns."""

    @staticmethod
    def forward(ctx, logits_NK, target_N1):
        maximum_N1 = logits_NK.max(dim=1, keepdim=True).values
        torch.distributed.all_reduce(maximum_N1, torch.distributed.ReduceOp.MAX)
        probability_NK = logits_NK.sub_(maximum_N1).exp_()
        total_N1 = probability_NK.sum(dim=1, keepdim=True)
        torch.distributed.all_reduce(total_N1)
        probability_NK.div_(total_N1)
        held = (target_N1[:, 0] >= 0).nonzero().flatten()
        own_N1 = torch.zeros_like(total_N1)
        own_N1[held] = probability_NK[held].gather(1, target_N1[held])
        torch.distributed.all_reduce(own_N1)
        ctx.save_for_backward(held, probability_NK, target_N1)
        return -own_N1.clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx, grad):
        held, probability_NK, target_N1 = ctx.saved_tensors
        one_hot = probability_NK.new_zeros(len(held), probability_NK.shape[1])
        one_hot.scatter_(1, target_N1[held], 1)
        probability_NK[held] -= one_hot
        return probability_NK.div_(len(target_N1)) * grad.item(), None


def peer(classes: int) -> tuple[Step, torch.nn.Parameter]:
    """The operations of arcface_torch's PartialFC_V2 with its ArcFace, in their order: margin in place, outside autograd."""
    shard = dist.shard_range(classes)
    weight = torch.nn.Parameter(torch.empty(shard.size, DIM, device=_device()).normal_(0, 0.01))
    features_VBD, labels_N = _features(), _labels(classes).to(_device())
    target_N1 = torch.where(shard.owns(labels_N), labels_N - shard.start, -1)[:, None]
    optimiser = _sgd(weight)

    def step() -> None:
        features_ND = dist.gather_rows(features_VBD).flatten(0, 1)
        logits_NK = F.linear(F.normalize(features_ND), F.normalize(weight)).clamp(-1, 1)
        held = (target_N1[:, 0] >= 0).nonzero().flatten()
        own_H = logits_NK[held, target_N1[held, 0]]
        with torch.no_grad():
            own_H.arccos_()
            logits_NK.arccos_()
            logits_NK[held, target_N1[held, 0]] = own_H + 0.5
            logits_NK.cos_()
        _CrossEntropy.apply(logits_NK * 64.0, target_N1).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step, weight


def floor(classes: int) -> tuple[Step, torch.nn.Parameter]:
    shard = dist.shard_range(classes)
    device = _device()
    weight = torch.nn.Parameter(torch.empty(shard.size, DIM, device=device).normal_(0, 0.01))
    unit_ND, chunk = torch.randn(RANKS * IMAGES, DIM, device=device), 2048 if device.type == "cpu" else 1 << 15
    logits_NC, grad_ND = torch.empty(len(unit_ND), chunk, device=device), torch.zeros_like(unit_ND)
    grad_CD = torch.empty(chunk, DIM, device=device)

    @torch.no_grad()
    def step() -> None:
        for start in range(0, shard.size, chunk):
            rows_CD = weight[start : start + chunk]
            out_NC = logits_NC if len(rows_CD) == chunk else None
            part_NC = torch.mm(unit_ND, rows_CD.T, out=out_NC)
            grad_ND.addmm_(part_NC, rows_CD)
            torch.mm(part_NC.T, unit_ND, out=grad_CD if len(rows_CD) == chunk else None)

    return step, weight


# ---------------------------------------------------------------------------------------------------- the joint step


def joint(classes: int) -> tuple[Step, torch.nn.Parameter]:
    """Both views, quality partition, full queue of `classes` entries, contrastive term; a fifth of low quality."""
    head = ShardedSoftmax(classes, DIM, AdaFace(0.4, 64.0))
    queue = FeatureQueue(classes, DIM, head.shard)
    quality, contrastive = QualityStatistics(0.333, 0.01, 20.0, 6.0), ContrastiveLoss(64.0, "paper", True)
    loss = JointLoss(head, quality, Partition(0.2), queue, contrastive, 1.0, "all")
    filling = torch.randn(classes, DIM)
    queue.enqueue(filling, torch.arange(classes), head.rows_of)
    generator = torch.Generator().manual_seed(dist.rank_and_world()[0])
    norm_VB1 = 20 + 6 * torch.randn(2, IMAGES, 1, generator=generator)
    features_VBD = (_features(2).detach() * norm_VB1).requires_grad_()
    labels_G, optimiser = _labels(classes), _sgd(head.weight)

    def step() -> None:
        loss(dist.gather_rows(features_VBD), labels_G).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step, head.weight


def encoder_step(_: int) -> tuple[Step, torch.nn.Parameter]:
    """Forward and backward of an iresnet34 over a few of a rank's images."""
    encoder = backbones.build("r34").train()
    images = torch.randn(ENCODER_IMAGES, 3, FACE_SIZE, FACE_SIZE)

    def step() -> None:
        encoder(images).square().sum().backward()
        for parameter in encoder.parameters():
            parameter.grad = None

    return step, next(encoder.parameters())


WAYS = {
    "ours": ours,
    "peer": peer,
    "floor": floor,
    "streamed": lambda classes: ours(classes, options=HeadOptions(gradient="streamed")),  # in fp32
    "joint": joint,
    "encoder": encoder_step,
    "2 views": lambda classes: ours(classes, 2),
    "fp32": lambda classes: ours(classes, options=HeadOptions(precision="fp32")),
    "rate 0.1": lambda classes: ours(classes, options=HeadOptions(sample_rate=0.1)),
    "rate 0.3": lambda classes: ours(classes, options=HeadOptions(sample_rate=0.3)),
}
