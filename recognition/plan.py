"""What a run will need, before anything is allocated: parameters, operations, memory, steps, checkpoint size.

The encoder's memory is traced: one forward and one backward pass on PyTorch's fake tensors, which have a shape but no content.
That of classifier and queue follows the formulas of docs/SCALING.md. A GPU's own needs (CUDA context, cuDNN's workspace,
fragmentation) come on top.

Symbols as in docs/SCALING.md. All sizes are in bytes, per rank unless stated otherwise.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from prettytable import PrettyTable
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

import backbones
from losses.joint import JointLoss
from losses.log_sum_exp import ChunkPlan
from recognition import build
from recognition.data.batch import BatchSpec
from recognition.data.loader import slot_count
from recognition.data.synthetic import SYNTHETIC
from recognition.encoders.embedder import autocast_type, to_input
from recognition.fine_tuning import freeze
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import build_optimiser
from recognition.schedule import Schedule
from utils.config import Config
from utils.dist import World
from utils.errors import UserError
from utils.files import write_file
from utils.images import FACE_SIZE


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, of one rank unless stated otherwise. None: not known.

    head_sums: what both losses need between the end of the encoder's forward pass and their own backward pass. peak: of device
    memory. loader: shared memory on the host. available: for a rank on this machine.
    """

    ranks: int
    batch_size: int
    encoder_parameters: int
    classifier_parameters: int  # of all ranks
    classifier_parameters_per_rank: int
    flops_per_image: float  # of the encoder, in training, all views
    flops_per_step: float  # of all ranks, with both losses
    encoder_weights: int
    encoder_gradients: int
    encoder_optimiser: int
    momentum_encoder: int
    classifier_weights: int
    classifier_gradients: int
    classifier_optimiser: int
    queue: int
    activations: int
    head_sums: int
    peak: int
    loader: int
    checkpoint: int  # of all ranks
    available: int
    largest_batch_size: int
    steps_per_epoch: int | None
    total_steps: int | None


# ------------------------------------------------------------------------------------------------ the objects, without contents


class _Rank:
    """The objects of one rank, as build.py makes them, on fake tensors. Enter `fakes` to compute with them."""

    def __init__(self, config: Config, world: World):
        with torch.device("meta"):
            self.encoder = build.build_encoder(config)
            freeze(self.encoder, config.freeze)
            self.momentum = MomentumEncoder(self.encoder, config.queue_momentum) if config.queue == "momentum" else None
            self.joint = build.build_joint_loss(config, replace(world, device=torch.device("meta")))
        modules = [module for module in (self.encoder, self.momentum, self.joint) if module is not None]
        states = {module: module.state_dict() for module in modules}
        self.config, self.device, self.fakes = config, world.device, FakeTensorMode()
        with self.fakes:
            for module, state in states.items():
                module.load_state_dict({name: self._fake(value) for name, value in state.items()}, assign=True)
            self.multiply_adds = backbones.multiply_adds(self.encoder)
            self.optimiser = build_optimiser(config, self.encoder, self.joint.classifier)
            self.trained = [p for p in self.encoder.parameters() if p.requires_grad]
            for parameter in [*self.trained, self.joint.classifier.weight]:
                parameter.grad = torch.zeros_like(parameter)
            self.optimiser.step()
            self.encoder_bytes = _bytes(self.encoder.state_dict().values())
            for module in modules[:-1]:
                _as_buffers(module)

    def _fake(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=self.device)

    def optimiser_bytes(self, parameters: Iterable[nn.Parameter]) -> int:
        return sum(_bytes(self.optimiser.state[parameter].values()) for parameter in parameters)

    def trace(self, batch_size: int) -> tuple[int, int]:
        """What a batch adds: after the encoder's forward pass, and at most until its backward pass ends."""
        tracker, autocast = MemTracker(), autocast_type(self.config.precision, self.device)
        encoders = [self.encoder] if self.momentum is None else [self.encoder, self.momentum]

        def now(moment: str) -> int:
            return tracker.get_tracker_snapshot(moment).get(self.device, {}).get("Total", 0)

        with self.fakes, tracker:
            tracker.track_external(*encoders, self.optimiser)
            before = now("current")
            images = torch.zeros(self.config.views * batch_size, FACE_SIZE, FACE_SIZE, 3, dtype=torch.uint8)
            features = []
            for encoder in encoders:
                encoder.train()
                inputs = to_input(images, self.device)
                with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
                    features.append(encoder(inputs).float())
                del inputs
            after = now("current")
            features[0].sum().backward()
            return after - before, now("peak") - before


def _as_buffers(encoder: nn.Module) -> None:
    """Turn the parameters that are not trained into buffers: MemTracker expects all parameters to have gradients."""
    for module in encoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def _bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


# ------------------------------------------------------------------------------------------------ what they need


@dataclass(frozen=True)
class _Head:
    """What both losses of a step add, by the formulas of docs/SCALING.md: bytes, and operations of one rank.

    sums: from the forward to the backward pass. kept: the part of it that the classifier's backward pass still needs.
    gradients: of the classifier's rows. update: the most that the optimiser makes of them.
    """

    sums: int
    kept: int
    gradients: int
    update: int
    flops: float

    @classmethod
    def of(cls, joint: JointLoss, config: Config, images: int, device: torch.device) -> _Head:
        """images: G, of all ranks."""
        chunks, head = ChunkPlan.for_device(device), joint.classifier
        rows, dim = head.weight.shape
        features, rate = config.views * images, config.sample_rate
        visited = min(rows, int(rate * rows) + min(images, rows)) if rate < 1 else rows

        def kept(queries: int, keys: int, plain: bool) -> int:
            return min(4 * queries * keys, chunks.keep_bytes) if plain else 0

        def working(queries: int, keys: int, copied_rows: int) -> int:
            return min(keys, chunks.chunk_elements // queries + 1) * (3 * 4 * queries + 4 * dim * copied_rows)

        exponentials = kept(features, visited, head.margin.scale <= 64 and not head.margin.touches_negatives)
        classes = exponentials + working(features, visited, 1 + (rate < 1)) + 8 * 4 * features * dim + 48 * rows * (rate < 1)
        flops = 2 * features * dim * visited * (3 if 4 * features * visited <= exponentials else 4)
        contrast = 0
        if joint.queue is not None and config.views == 2:
            entries = math.ceil(joint.queue.size * head.shard.size / max(head.shard.total, 1))
            exponentials = kept(images, entries, config.contrastive_scale <= 64)
            contrast = exponentials + working(images, entries, 4)
            flops += 2 * images * dim * entries * (2 if 4 * images * entries <= exponentials else 3)
        gradients, moved = 4 * dim * visited, rate < 1 and config.unsampled_rows == "moved"
        return cls(classes + contrast, classes, gradients, gradients + 4 * dim * rows * moved, flops)


def _peak(static: int, traced: tuple[float, float], head: _Head) -> int:
    """The most device memory of a step: in the losses, in either backward pass, or in the optimiser."""
    forward, most = traced
    return int(static + max(forward + head.sums, forward + head.kept + head.gradients, most + head.gradients, head.update))


def _static(rank: _Rank) -> dict[str, int]:
    """What a rank holds all the time, by the names of `Plan`."""
    queue, weight = rank.joint.queue, rank.joint.classifier.weight
    return {
        "encoder_weights": rank.encoder_bytes,
        "encoder_gradients": _bytes(rank.trained),  # DDP's buckets, which hold them, are never freed
        "encoder_optimiser": rank.optimiser_bytes(rank.trained),
        "momentum_encoder": 0 if rank.momentum is None else rank.encoder_bytes,
        "classifier_weights": _bytes([weight]),
        "classifier_optimiser": rank.optimiser_bytes([weight]),
        "queue": 0 if queue is None else _bytes([queue._feature, queue._proxy, queue._label]),
    }


def _largest_batch(rank: _Rank, ranks: int, static: int, available: int, traces: dict[int, tuple[int, int]]) -> int:
    """The most images per rank that fit, 0 if not even two do. traces: of two batch sizes; memory grows linearly."""
    (low, at_low), (high, at_high) = sorted(traces.items())

    def fits(images: int) -> bool:
        share = (images - low) / (high - low)
        traced = tuple(a + share * (b - a) for a, b in zip(at_low, at_high, strict=True))
        head = _Head.of(rank.joint, rank.config, images * ranks, rank.device)
        return _peak(static, (traced[0], traced[1]), head) <= available

    return bisect.bisect_left(range(2, 1 << 20), True, key=lambda images: not fits(images)) + 1


def available_memory(device: torch.device, ranks: int) -> int:
    """Memory for one rank: of its GPU, or its part of what this machine's memory has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return 1024 * int(free.split()[1]) // ranks


def make_plan(config: Config, world: World, ranks: int) -> Plan:
    """The plan of a resolved configuration (`build.resolve_config`) on `ranks` ranks."""
    others = ranks // world.size  # the running process group divides by its own size
    share = replace(config, num_classes=math.ceil(config.num_classes / others), queue_size=math.ceil(config.queue_size / others))
    rank, batch, images = _Rank(share, world), config.batch_size, config.batch_size * ranks
    traces = {size: rank.trace(size) for size in (batch, max(2, batch // 2) if batch > 2 else 4)}
    head, static = _Head.of(rank.joint, share, images, world.device), _static(rank)
    passes = config.views * (4 if config.gradient_checkpointing else 3) + (config.views if rank.momentum is not None else 0)
    flops = 2.0 * rank.multiply_adds * passes
    available = available_memory(world.device, ranks)
    in_all = config.num_classes * config.embedding_size
    per_row = (static["classifier_weights"] + static["classifier_optimiser"]) / rank.joint.classifier.weight.numel()
    queued = 0
    if rank.joint.queue is not None:
        entries = config.queue_size if config.queue != "batch" else config.views * images
        queued = entries * (4 * config.embedding_size * (1 + rank.joint.queue.compensate) + 8)
    spec = BatchSpec.of(config, world=ranks)
    batches = config.num_image // spec.global_batch
    schedule = Schedule(config, batches, rank.joint.partition) if config.num_image else None
    return Plan(
        **static,
        ranks=ranks,
        batch_size=batch,
        encoder_parameters=sum(p.numel() for p in rank.trained),
        classifier_parameters=in_all,
        classifier_parameters_per_rank=rank.joint.classifier.weight.numel(),
        flops_per_image=flops,
        flops_per_step=config.gradient_acc * (flops * images + head.flops * ranks),
        classifier_gradients=head.gradients,
        activations=traces[batch][0],
        head_sums=head.sums,
        peak=_peak(sum(static.values()), traces[batch], head),
        loader=max(1, slot_count(config.num_workers)) * math.prod(spec.image_shape),
        checkpoint=int(
            (1 + (rank.momentum is not None)) * rank.encoder_bytes + static["encoder_optimiser"] + per_row * in_all + queued
        ),
        available=available,
        largest_batch_size=_largest_batch(rank, ranks, sum(static.values()), available, traces),
        steps_per_epoch=schedule.steps_per_epoch if schedule else None,
        total_steps=schedule.total_steps if schedule else None,
    )


# ------------------------------------------------------------------------------------------------ the command


def run(config: Config, world: World, ranks: int | None, file: Path | None) -> None:
    """Print the plan of a configuration, and write it to `file`, if given. Raises UserError if it cannot be planned."""
    ranks = world.size if ranks is None else ranks
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: must be at least 1")
    if ranks % world.size:
        raise UserError(f"--ranks {ranks}: this is a run of {world.size} ranks; leave --ranks out, or start a single process")
    dataset = build.open_dataset(config) if config.rec == SYNTHETIC or Path(config.rec or "/absent").exists() else None
    if dataset is None and not config.num_classes:
        raise UserError(
            f"--plan needs num_classes, or the data: num_classes=0, and there are no data ({config.rec!r}); give "
            "num_classes=… (and num_image=… for the number of steps), or rec=…"
        )
    config = build.resolve_config(config, dataset, ranks)
    if ranks > config.num_classes:
        raise UserError(f"--ranks {ranks}: more than the {config.num_classes} classes, which the ranks divide among themselves")
    plan = make_plan(config, world, ranks)
    if world.is_first:
        print(table(plan, config, world))
        if file is not None:
            write_file(file, json.dumps(asdict(plan), indent=1) + "\n")


def table(plan: Plan, config: Config, world: World) -> PrettyTable:
    """Part of the run | what it needs."""
    precision = str(autocast_type(config.precision, world.device) or torch.float32).removeprefix("torch.")
    device = f"GPU ({torch.cuda.get_device_name(world.device)})" if world.device.type == "cuda" else "CPU (no GPU found)"
    rows = {
        "run": f"{config.network}, {precision}; {plan.ranks} rank(s) x {plan.batch_size} images, {config.views} view(s)",
        "machine": device,
        "encoder": f"{plan.encoder_parameters / 1e6:.1f} M trained parameters",
        "classifier": f"{plan.classifier_parameters / 1e6:.1f} M parameters, "
        f"{plan.classifier_parameters_per_rank / 1e6:.1f} M per rank ({config.num_classes:,} classes)",
        "operations": f"{plan.flops_per_image / 1e9:.1f} GFLOP per image in the encoder, "
        f"{plan.flops_per_step / 1e12:.2f} TFLOP per step in all",
        "memory per rank": _size(plan.peak),
        "  encoder": f"{_size(plan.encoder_weights)} weights, {_size(plan.encoder_gradients)} gradients, "
        f"{_size(plan.encoder_optimiser)} optimiser"
        + (f", {_size(plan.momentum_encoder)} momentum encoder" if plan.momentum_encoder else ""),
        "  activations": _size(plan.activations),
        "  classifier": f"{_size(plan.classifier_weights)} rows, {_size(plan.classifier_gradients)} gradients, "
        f"{_size(plan.classifier_optimiser)} optimiser",
        "  both losses": f"{_size(plan.head_sums)}, before the gradients",
        "  queue": _size(plan.queue),
        "largest batch": f"{plan.largest_batch_size} images per rank in {_size(plan.available)}",
        "loader": f"{_size(plan.loader)} of host memory per rank",
        "checkpoint": f"{_size(plan.checkpoint)} on disk",
        "steps": f"{plan.steps_per_epoch:,} per epoch, {plan.total_steps:,} in all"
        if plan.total_steps
        else f"not known: no data at {config.rec!r}, and num_image is 0",
    }
    result = PrettyTable(["part", "plan"], align="l")
    result.add_rows([list(row) for row in rows.items()])
    return result


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
