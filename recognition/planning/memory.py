"""Memory and operations of a training step on one rank, before anything is allocated.

The encoder is traced: a forward and a backward pass on PyTorch's fake tensors, which have a shape but no content. Classifier and
queue follow docs/SCALING.md, which explains the symbols. Sizes are in bytes, of one rank.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

import backbones
from losses.log_sum_exp import ChunkPlan
from recognition import build
from recognition.encoders.embedder import autocast_type, product_precision, to_input
from recognition.encoders.teacher import teacher_bytes
from recognition.freezing import freeze
from recognition.lora import adapt
from recognition.optimiser import build_optimiser
from recognition.sharding import gathered_bytes
from utils.config import Config, learned_views
from utils.dist import World
from utils.images import FACE_SIZE


@dataclass(frozen=True)
class Losses:
    """What the losses of a batch need.

    classes, contrast: bytes of each loss from its forward to its backward pass, without gradients. gradients: of the classifier's
    rows. update: all that the optimiser makes of these. flops: operations.
    """

    classes: int
    contrast: int
    gradients: int
    update: int
    flops: int


class FakeRank:
    """One rank's objects, as recognition/build.py makes them, on fake tensors.

    config: resolved, for `ranks` ranks. world: the running ones, 1 or `ranks`. static: part -> bytes that are always held.
    """

    def __init__(self, config: Config, world: World, ranks: int):
        # The running process group divides classes and queue among its own ranks.
        classes, entries = (math.ceil(count * world.size / ranks) for count in (config.num_classes, config.queue_size))
        self.config, self.device, self.ranks, self.fakes = config, world.device, ranks, FakeTensorMode()
        share = replace(config, num_classes=classes, queue_size=entries)
        with torch.device("meta"):
            encoder = build.build_encoder(config)
            freeze(encoder, config.freeze)
            if config.lora_rank:
                adapt(encoder, config.lora_rank, config.lora_alpha, config.seed)
            momentum = build.build_momentum_encoder(config, encoder)
            joint = build.build_joint_loss(share, replace(world, device=torch.device("meta")))
        modules: list[nn.Module] = [module for module in (encoder, momentum, joint) if module is not None]
        states = {module: module.state_dict() for module in modules}
        with self.fakes:
            for module, state in states.items():
                module.load_state_dict({name: self._fake(value) for name, value in state.items()}, assign=True)
            self.multiply_adds = backbones.multiply_adds(encoder)
            optimiser, weight = build_optimiser(config, encoder, joint.classifier), joint.classifier.weight
            trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
            for parameter in [*trained, weight]:
                parameter.grad = torch.zeros_like(parameter)
            optimiser.step()  # makes its state
        self.joint, self.optimiser, self.encoders, queue = joint, optimiser, modules[:-1], joint.queue
        self.encoder_parameters = sum(parameter.numel() for parameter in encoder.parameters())
        encoder_size = _bytes(states[encoder].values())
        in_encoder = {
            "encoder: weights": encoder_size,
            "encoder: gradients": _bytes(trained),  # DDP's buckets, which hold them, are never freed
            "encoder: optimiser": sum(_bytes(optimiser.state[parameter].values()) for parameter in trained),
            "encoder: momentum copy": 0 if momentum is None else encoder_size,
            "encoder: EMA": encoder_size if config.ema else 0,
        }
        if config.encoder_sharding == "fsdp":
            in_encoder = {part: math.ceil(size / ranks) for part, size in in_encoder.items()}
            in_encoder["encoder: gathered blocks"] = gathered_bytes(encoder, autocast_type(config.precision, self.device))
        self.static = {
            **in_encoder,
            "teacher: weights": teacher_bytes(config),
            "classifier: weights": _bytes([weight]),
            "classifier: optimiser": _bytes(optimiser.state[weight].values()),
            "queue": 0 if queue is None else _bytes([queue._feature, queue._proxy, queue._label]),
        }
        for module in self.encoders:
            _as_buffers(module)
        batch = config.batch_size
        self._traces = [(images, *self._trace(images)) for images in ((batch // 2, batch) if batch > 3 else (batch, 2 * batch))]

    def _fake(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=self.device)

    # -------------------------------------------------------------------------------------------- one batch

    def activations(self, images: int) -> tuple[int, int]:
        """Bytes that a batch adds: after the encoder's forward pass, and at most until its backward pass ends."""
        (small, *at_small), (large, *at_large) = self._traces
        share = (images - small) / (large - small)  # all tensors of a batch grow linearly
        held, most = (round(a + share * (b - a)) for a, b in zip(at_small, at_large, strict=True))
        return held, most

    def _trace(self, images: int) -> tuple[int, int]:
        tracker, autocast = MemTracker(), autocast_type(self.config.precision, self.device)

        def total(moment: str) -> int:
            return tracker.get_tracker_snapshot(moment).get(self.device, {}).get("Total", 0)

        with self.fakes, tracker:
            tracker.track_external(*self.encoders, self.optimiser)
            before = total("current")
            pixels = torch.zeros(learned_views(self.config) * images, FACE_SIZE, FACE_SIZE, 3, dtype=torch.uint8)
            features = []
            for encoder in self.encoders:
                encoder.train()
                with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
                    features.append(encoder(to_input(pixels, self.device)).float())
            after = total("current")
            features[0].sum().backward()
            return after - before, total("peak") - before

    def losses(self, images: int) -> Losses:
        """What the losses of a batch of `images` on each rank need (docs/SCALING.md)."""
        config, head, queue = self.config, self.joint.classifier, self.joint.queue
        (rows, dim), gathered, sampled = head.weight.shape, images * self.ranks, config.sample_rate < 1
        features, rate = learned_views(config) * gathered, config.sample_rate
        visited = min(rows, math.ceil(rate * rows + (1 - rate) * images))  # those drawn, and a rank's part of the batch's
        is_plain = head.sum_options.is_plain and not head.margin.touches_negatives
        streamed = config.head_gradient == "streamed"
        classes, kept, flops = self._log_sum_exp(
            features, visited, is_plain, copied_rows=1 + sampled, passes=2 + streamed, products=3
        )
        classes += 8 * 4 * features * dim + 48 * rows * sampled
        contrast = 0
        if queue is not None and self.joint.contrastive is not None and config.views == 2:
            entries = math.ceil(queue.size * head.shard.size / max(head.shard.total, 1))
            is_plain = self.joint.contrastive.sum_options.is_plain
            queries = gathered * (1 + (config.contrastive_target == "symmetric"))
            contrast, _, more_flops = self._log_sum_exp(queries, entries, is_plain, copied_rows=4, passes=2, products=2)
            flops += more_flops
        joined = 1 if config.gradient_acc == 1 else 2 * config.gradient_acc if sampled else 2
        gradients = kept if streamed else 4 * dim * visited * joined
        moved = 4 * dim * rows if sampled and config.unsampled_rows == "moved" else 0
        return Losses(classes, contrast, gradients, classes if streamed else gradients + moved, flops)

    def _log_sum_exp(
        self, queries: int, keys: int, is_plain: bool, copied_rows: int, passes: int, products: int
    ) -> tuple[int, int, int]:
        """Bytes, those of them that are kept from pass to pass, and operations of `losses.log_sum_exp`. copied_rows: copies of a
        chunk's keys. passes: visits to the keys. products: with what is kept; each later pass computes the rest again."""
        chunks, dim = ChunkPlan.for_device(self.device), self.config.embedding_size
        products_in = product_precision(self.config.head_precision, self.config.precision, self.device)
        exponentials = (2 if products_in == "bf16" else 4) * queries * keys
        kept = chunks.kept(exponentials) if is_plain else 0
        chunk = min(keys, max(64, chunks.chunk_elements // queries))
        recomputed = (passes - 1) * (kept < exponentials)
        return kept + chunk * (12 * queries + 4 * dim * copied_rows), kept, 2 * queries * dim * keys * (products + recomputed)

    # -------------------------------------------------------------------------------------------- a step

    def peak(self, images: int) -> int:
        """The most memory of a step: in the losses' forward or backward pass, the encoder's backward pass, or the optimiser."""
        losses, (held, most) = self.losses(images), self.activations(images)
        is_reused = self.device.type == "cpu" and self.config.head_gradient == "stored" and self.config.sample_rate == 1
        held_gradients = losses.gradients if is_reused else 0  # `losses.reused_memory` holds them from step to step
        in_losses = held + losses.classes + max(losses.contrast + held_gradients, losses.gradients)
        return sum(self.static.values()) + max(in_losses, most + losses.gradients, losses.update)

    def largest_batch(self, available: float) -> int:
        """The most images per rank whose `peak` fits, 0 if not even two do."""
        largest = 1 + bisect.bisect_left(range(2, 1 << 20), True, key=lambda images: self.peak(images) > available)
        return largest if largest > 1 else 0


def _as_buffers(encoder: nn.Module) -> None:
    """Turn the parameters that are not trained into buffers: MemTracker expects parameters to have gradients."""
    for module in encoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def _bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
