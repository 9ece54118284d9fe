"""What a run will need, before anything is allocated: parameters, operations, memory, steps, checkpoint size; and, if there are
data, how long it will take, from a few real steps.

The encoder's memory is traced: one forward and one backward pass on PyTorch's fake tensors, which have a shape but no content.
That of classifier and queue follows docs/SCALING.md, which also explains the symbols. Sizes are in bytes, per rank unless stated
otherwise. What PyTorch's allocator does not hold is not counted: libraries, a GPU's context, workspaces, fragmentation.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from prettytable import PrettyTable
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

import backbones
from losses.log_sum_exp import ChunkPlan
from recognition import build
from recognition.data.batch import BatchSpec
from recognition.data.dataset import FaceDataset
from recognition.data.loader import slot_count
from recognition.data.prefetch import DeviceBatch, Prefetcher
from recognition.data.synthetic import SYNTHETIC
from recognition.encoders.embedder import autocast_type, to_input
from recognition.fine_tuning import freeze
from recognition.momentum_encoder import MomentumEncoder
from recognition.optimiser import build_optimiser
from recognition.schedule import Schedule
from recognition.step import TrainStep
from utils.config import Config
from utils.dist import World
from utils.errors import UserError
from utils.files import write_file
from utils.images import FACE_SIZE

_RESERVE = 0.2  # part of the memory that the largest batch leaves for what is not counted (docs/RESULTS.md)
_WARM_UP = 12  # steps on a GPU: DDP measures its first ten, and waits for them
_TIMED_STEPS = 5


@dataclass(frozen=True)
class Plan:
    """Figures that are not known are None.

    memory: part -> bytes of a rank. peak: less than their sum, because not all parts exist at the same time. loader: shared
    memory on the host. flops_per_image: of the encoder, all views. flops_per_step, checkpoint: of all ranks. largest_batch: images
    per rank, 0 if not even two fit. hours: without verification and checkpoints. timing: how it was measured, or why not.
    """

    ranks: int
    batch_size: int
    parameters: dict[str, int]
    flops_per_image: float
    flops_per_step: float
    memory: dict[str, int]
    peak: int
    loader: int
    available: int
    largest_batch: int
    checkpoint: int
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    seconds_per_step: float | None = None
    hours: float | None = None
    timing: str = ""


# ------------------------------------------------------------------------------------------------ memory


class _Rank:
    """One rank's objects, as build.py makes them, on fake tensors. static: part -> bytes that are held all the time."""

    def __init__(self, config: Config, world: World):
        with torch.device("meta"):
            encoder = build.build_encoder(config)
            freeze(encoder, config.freeze)
            momentum = MomentumEncoder(encoder, config.queue_momentum) if config.queue == "momentum" else None
            joint = build.build_joint_loss(config, replace(world, device=torch.device("meta")))
        modules = [module for module in (encoder, momentum, joint) if module is not None]
        states = {module: module.state_dict() for module in modules}
        self.config, self.device, self.joint, self.fakes = config, world.device, joint, FakeTensorMode()
        with self.fakes:
            for module, state in states.items():
                module.load_state_dict({name: self._fake(value) for name, value in state.items()}, assign=True)
            self.multiply_adds = backbones.multiply_adds(encoder)
            optimiser, weight = build_optimiser(config, encoder, joint.classifier), joint.classifier.weight
            trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
            for parameter in [*trained, weight]:
                parameter.grad = torch.zeros_like(parameter)
            optimiser.step()  # makes its state
        self.encoder_size, self.optimiser, queue = _bytes(states[encoder].values()), optimiser, joint.queue
        self.static = {
            "encoder: weights": self.encoder_size,
            "encoder: gradients": _bytes(trained),  # DDP's buckets, which hold them, are never freed
            "encoder: optimiser": sum(_bytes(optimiser.state[parameter].values()) for parameter in trained),
            "encoder: momentum copy": 0 if momentum is None else self.encoder_size,
            "classifier: weights": _bytes([weight]),
            "classifier: optimiser": _bytes(optimiser.state[weight].values()),
            "queue": 0 if queue is None else _bytes([queue._feature, queue._proxy, queue._label]),
        }
        self.encoders = modules[:-1]
        for module in self.encoders:
            _as_buffers(module)

    def _fake(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=self.device)

    def trace(self, batch_size: int) -> tuple[int, int]:
        """Bytes that a batch adds: after the encoder's forward pass, and at most until its backward pass ends."""
        tracker, autocast = MemTracker(), autocast_type(self.config.precision, self.device)

        def total(moment: str) -> int:
            return tracker.get_tracker_snapshot(moment).get(self.device, {}).get("Total", 0)

        with self.fakes, tracker:
            tracker.track_external(*self.encoders, self.optimiser)
            before = total("current")
            images = torch.zeros(self.config.views * batch_size, FACE_SIZE, FACE_SIZE, 3, dtype=torch.uint8)
            features = []
            for encoder in self.encoders:
                encoder.train()
                with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
                    features.append(encoder(to_input(images, self.device)).float())
            after = total("current")
            features[0].sum().backward()
            return after - before, total("peak") - before


def _as_buffers(encoder: nn.Module) -> None:
    """Turn the parameters that are not trained into buffers: MemTracker expects parameters to have gradients."""
    for module in encoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def _bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


class _Losses:
    """What a step's losses add, by the formulas of docs/SCALING.md. images: G, of all ranks.

    classes, contrast: bytes of each loss from its forward to its backward pass, without gradients. gradients: of the classifier's
    rows. update: all that the optimiser makes of these. flops: operations of this rank.
    """

    def __init__(self, rank: _Rank, images: int):
        config, head, queue = rank.config, rank.joint.classifier, rank.joint.queue
        chunks, (rows, dim) = ChunkPlan.for_device(rank.device), head.weight.shape
        features, sampled = config.views * images, config.sample_rate < 1
        visited = min(rows, int(config.sample_rate * rows) + images) if sampled else rows

        def loss(queries: int, keys: int, is_plain: bool, copied_rows: int, products: int) -> tuple[int, float]:
            kept = min(4 * queries * keys, chunks.keep_bytes) if is_plain else 0
            chunk = min(keys, max(64, chunks.chunk_elements // queries))
            recomputed = kept < 4 * queries * keys
            return kept + chunk * (12 * queries + 4 * dim * copied_rows), 2 * queries * dim * keys * (products + recomputed)

        is_plain = head.margin.scale <= 64 and not head.margin.touches_negatives
        self.classes, self.flops = loss(features, visited, is_plain, 1 + sampled, products=3)
        self.classes += 8 * 4 * features * dim + 48 * rows * sampled
        self.contrast = 0
        if queue is not None and config.views == 2:
            entries = math.ceil(queue.size * head.shard.size / max(head.shard.total, 1))
            self.contrast, flops = loss(images, entries, config.contrastive_scale <= 64, 4, products=2)
            self.flops += flops
        joined = 1 if config.gradient_acc == 1 else 2 * config.gradient_acc if sampled else 2
        self.gradients = 4 * dim * visited * joined
        self.update = self.gradients + 4 * dim * rows * (sampled and config.unsampled_rows == "moved")


def _peak(static: int, traced: tuple[float, float], losses: _Losses) -> int:
    """The most memory of a step: in the losses' forward or backward pass, the encoder's backward pass, or the optimiser."""
    forward, most = traced
    in_losses = losses.classes + max(losses.contrast, losses.gradients)
    return int(static + max(forward + in_losses, most + losses.gradients, losses.update))


def _largest_batch(rank: _Rank, ranks: int, traces: dict[int, tuple[int, int]], available: int) -> int:
    """traces: of two batch sizes; the encoder's memory grows linearly."""
    (low, at_low), (high, at_high) = sorted(traces.items())

    def is_too_large(images: int) -> bool:
        forward, most = (a + (b - a) * (images - low) / (high - low) for a, b in zip(at_low, at_high, strict=True))
        losses = _Losses(rank, images * ranks)
        return _peak(sum(rank.static.values()), (forward, most), losses) > (1 - _RESERVE) * available

    largest = 1 + bisect.bisect_left(range(2, 1 << 20), True, key=is_too_large)
    return largest if largest > 1 else 0


def available_memory(device: torch.device, ranks: int) -> int:
    """Bytes for one rank: all of its GPU, or its part of what this machine's memory has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return 1024 * int(free.split()[1]) // ranks


# ------------------------------------------------------------------------------------------------ the plan


def make_plan(config: Config, world: World, ranks: int) -> Plan:
    """The plan of a resolved configuration on `ranks` ranks, without the time."""
    others = ranks // world.size  # the running process group divides classes and queue among its own ranks
    share = replace(config, num_classes=math.ceil(config.num_classes / others), queue_size=math.ceil(config.queue_size / others))
    rank, batch, images = _Rank(share, world), config.batch_size, config.batch_size * ranks
    traces = {size: rank.trace(size) for size in (batch, batch // 2 if batch > 3 else 2 * batch)}
    losses, head, queue = _Losses(rank, images), rank.joint.classifier, rank.joint.queue
    has_momentum = config.queue == "momentum"
    passes = config.views * (3 + config.gradient_checkpointing + has_momentum)
    flops_per_image = 2.0 * rank.multiply_adds * passes
    entries = 0 if queue is None else config.views * images if config.queue == "batch" else config.queue_size
    per_row = (rank.static["classifier: weights"] + rank.static["classifier: optimiser"]) / head.shard.size
    per_entry = 0 if queue is None else 4 * queue.dim * (1 + queue.compensate) + 8
    spec, available = BatchSpec.of(config, world=ranks), available_memory(world.device, ranks)
    schedule = Schedule(config, config.num_image // images, rank.joint.partition) if config.num_image else None
    return Plan(
        ranks=ranks,
        batch_size=batch,
        parameters={
            "encoder": sum(parameter.numel() for parameter in rank.encoders[0].parameters()),
            "classifier": config.num_classes * config.embedding_size,
            "classifier, per rank": head.weight.numel(),
        },
        flops_per_image=flops_per_image,
        flops_per_step=config.gradient_acc * (flops_per_image * images + losses.flops * ranks),
        memory={
            **rank.static,
            "activations": traces[batch][0],
            "classifier: gradients": losses.gradients,
            "losses: chunks": losses.classes + losses.contrast,
        },
        peak=_peak(sum(rank.static.values()), traces[batch], losses),
        loader=max(1, slot_count(config.num_workers)) * math.prod(spec.image_shape),
        available=available,
        largest_batch=_largest_batch(rank, ranks, traces, available),
        checkpoint=int(
            rank.encoder_size * (1 + has_momentum)
            + rank.static["encoder: optimiser"]
            + per_row * config.num_classes
            + per_entry * entries
        ),
        steps_per_epoch=schedule.steps_per_epoch if schedule else None,
        total_steps=schedule.total_steps if schedule else None,
    )


class Timer:
    """Mean seconds of a call, over `calls` calls that are queued without waiting in between, after two to warm up."""

    def __init__(self, device: torch.device, calls: int):
        self.device, self.calls = device, calls

    def __call__(self, action: Callable[[], object]) -> float:
        for _ in range(2):
            action()
        self._wait()
        began = time.perf_counter()
        for _ in range(self.calls):
            action()
        self._wait()
        return (time.perf_counter() - began) / self.calls

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def real_steps(config: Config, dataset: FaceDataset, world: World) -> Iterator[tuple[TrainStep, Iterator[DeviceBatch]]]:
    """The training step and the batches of a run that writes nothing, from a resolved configuration; on a GPU, warmed up."""
    loader = build.build_loader(config, dataset, world)
    prefetcher = Prefetcher(world.device, loader.slots, keep=True)
    state = build.build_train_state(config, world)
    state.encoder.train()
    train = build.build_train_step(config, world, state, on_outcome=lambda skip_reason: None)
    batches = itertools.chain.from_iterable(prefetcher(loader.epoch(epoch)) for epoch in itertools.count())
    for _ in range(_WARM_UP if world.device.type == "cuda" else 0):
        train([next(batches)])
    yield train, batches
    train.finish_step()
    prefetcher.close()
    loader.close()


def with_time(plan: Plan, config: Config, dataset: FaceDataset | None, world: World) -> Plan:
    """The plan with the time of a few real steps, if there are data and memory for them.

    A single process measures one rank's batch against all classes: as many operations as on a rank of a larger run, which
    compares more features with fewer classes.
    """
    if dataset is None or plan.total_steps is None:
        return replace(plan, timing=f"not measured: there are no data at rec={config.rec!r}")
    peak = plan.peak if plan.ranks == world.size else make_plan(config, world, world.size).peak
    if peak > available_memory(world.device, world.size):
        return replace(plan, timing=f"not measured: the steps need {_size(peak)}, more than is free here")
    with real_steps(config, dataset, world) as (train, batches):
        seconds = Timer(world.device, _TIMED_STEPS)(lambda: train([next(batches) for _ in range(config.gradient_acc)]))
    alone = ", of one rank, without communication" if plan.ranks != world.size else ""
    timing = f"{seconds:.3f} s per step ({_TIMED_STEPS} steps on this machine{alone})"
    return replace(plan, seconds_per_step=seconds, hours=seconds * plan.total_steps / 3600, timing=timing)


# ------------------------------------------------------------------------------------------------ the command


def run(config: Config, world: World, ranks: int | None, file: Path | None) -> None:
    """Print the plan of a configuration, and write it to `file`, if given. ranks: None for those that are running."""
    ranks = world.size if ranks is None else ranks
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: must be at least 1")
    if world.size not in (1, ranks):
        raise UserError(f"--ranks {ranks}: {world.size} ranks are running; leave --ranks out, or plan with a single process")
    has_data = config.rec == SYNTHETIC or (config.rec != "" and Path(config.rec).exists())
    if not has_data and not config.num_classes:
        raise UserError(
            f"--plan: num_classes is 0, and there are no data at rec={config.rec!r}; set num_classes (and num_image, for the "
            "number of steps), or rec"
        )
    dataset = build.open_dataset(config) if has_data else None
    config = build.resolve_config(config, dataset, ranks)
    if ranks > config.num_classes:
        raise UserError(f"--ranks {ranks}: there are only {config.num_classes} classes to divide among the ranks")
    plan = with_time(make_plan(config, world, ranks), config, dataset, world)
    if world.is_first:
        print(table(plan, config, world))
        if file is not None:
            write_file(file, json.dumps(asdict(plan), indent=1) + "\n")


def table(plan: Plan, config: Config, world: World) -> PrettyTable:
    """Part of the run | what it needs."""
    precision = str(autocast_type(config.precision, world.device) or torch.float32).removeprefix("torch.")
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU (no GPU found)"
    steps = f"not known: there are no data at rec={config.rec!r}, and num_image is 0"
    if plan.total_steps is not None:
        steps = f"{plan.steps_per_epoch:,} per epoch, {plan.total_steps:,} in all"
    rows = {
        "run": f"{config.network}, {precision}; {plan.ranks} rank(s) x {plan.batch_size} images, {config.views} view(s)",
        "machine": device,
        **{f"parameters: {part}": f"{count / 1e6:,.2f} M" for part, count in plan.parameters.items()},
        "operations per image": f"{plan.flops_per_image / 1e9:,.1f} GFLOP in the encoder",
        "operations per step": f"{plan.flops_per_step / 1e12:,.3f} TFLOP, all ranks",
        "memory per rank": f"{_size(plan.peak)} at the peak, of {_size(plan.available)}",
        **{f"  {part}": _size(size) for part, size in plan.memory.items() if size},
        "largest batch per rank": f"{plan.largest_batch:,} images, if {_RESERVE:.0%} of the memory stay free",
        "loader": f"{_size(plan.loader)} of host memory per rank",
        "checkpoint": f"{_size(plan.checkpoint)} on disk",
        "steps": steps,
        "time": plan.timing if plan.hours is None else f"{plan.hours:,.2f} hours of training: {plan.timing}",
    }
    result = PrettyTable(["part", "plan"], align="l")
    result.add_rows([list(row) for row in rows.items()])
    return result


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
