"""`train.py --plan`: what a run will need, before anything is allocated; and, if there are data, how long it will take.

Sizes are in bytes. Those on the device are what PyTorch's allocator holds: a GPU's context, workspaces and fragmentation come on
top.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from prettytable import PrettyTable

from recognition import build
from recognition.data.batch import BatchSpec
from recognition.data.dataset import FaceDataset
from recognition.data.loader import slot_count
from recognition.data.sets.synthetic import SYNTHETIC
from recognition.encoders.embedder import autocast_type
from recognition.planning.memory import FakeRank
from recognition.planning.probe import TIMED_STEPS, probe
from recognition.schedule import Schedule
from utils.config import Config, learned_views
from utils.dist import World
from utils.errors import UserError
from utils.files import write_file

_RESERVE = 0.2  # part of the memory that the largest batch leaves free
_GPUS = (24, 80)  # GB, for a plan that is made without a GPU


@dataclass(frozen=True)
class Plan:
    """Figures that are not known are None.

    memory: part -> bytes of a rank's device. peak: less than their sum, because not all parts exist at the same time.
    largest_batch: memory -> images per rank, 0 if not even two fit. loader: shared memory of a rank. flops_per_image: of the
    encoder, all views. flops_per_step, checkpoint: of all ranks. hours: without verification and checkpoints. host: most memory
    of a rank's process, which it needs to save a checkpoint or, on a CPU, to train.
    """

    ranks: int
    batch_size: int
    parameters: dict[str, int]
    flops_per_image: float
    flops_per_step: float
    memory: dict[str, int]
    peak: int
    available: int
    largest_batch: dict[str, int]
    loader: int
    checkpoint: int
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    seconds_per_step: float | None = None
    hours: float | None = None
    host: int | None = None


def available_memory(device: torch.device, ranks: int) -> int:
    """Bytes for one rank: all of its GPU, or its part of what this machine's memory has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return 1024 * int(free.split()[1]) // ranks


def make_plan(config: Config, world: World, ranks: int, visits: int | None = None) -> Plan:
    """The plan of a configuration that is resolved for `ranks` ranks, without what needs real steps. visits: images per epoch;
    None: each of them once."""
    rank, batch = FakeRank(config, world, ranks), config.batch_size
    losses, images, available = rank.losses(batch), batch * ranks, available_memory(world.device, ranks)
    memory = {
        **rank.static,
        "activations": rank.activations(batch)[0],
        "classifier: gradients": losses.gradients,
        "losses: chunks": losses.classes + losses.contrast,
    }
    passes = learned_views(config) * (3 + config.gradient_checkpointing + (config.queue == "momentum"))
    flops_per_image = 2.0 * rank.multiply_adds * passes
    sizes = {"here": available, **({} if world.device.type == "cuda" else {f"{size} GB": size * 10**9 for size in _GPUS})}
    spec = BatchSpec.of(config, world=ranks)
    batches = (visits or config.num_image) // (images - spec.unlabelled_images)
    schedule = Schedule(config, batches, rank.joint.partition) if config.num_image else None
    return Plan(
        ranks=ranks,
        batch_size=batch,
        parameters={
            "encoder": rank.encoder_parameters,
            "classifier": config.num_classes * config.embedding_size,
            "classifier, per rank": rank.joint.classifier.weight.numel(),
        },
        flops_per_image=flops_per_image,
        flops_per_step=config.gradient_acc * (flops_per_image * images + losses.flops * ranks),
        memory=memory,
        peak=rank.peak(batch),
        available=available,
        largest_batch={name: rank.largest_batch((1 - _RESERVE) * size) for name, size in sizes.items()},
        loader=slot_count(config.num_workers) * math.prod(spec.image_shape),
        checkpoint=_checkpoint(rank),
        steps_per_epoch=schedule.steps_per_epoch if schedule else None,
        total_steps=schedule.total_steps if schedule else None,
    )


def _checkpoint(rank: FakeRank) -> int:
    """Bytes on disk, of all ranks, with a full queue."""
    config, static, head, queue = rank.config, rank.static, rank.joint.classifier, rank.joint.queue
    size = sum(static[f"encoder: {part}"] for part in ("weights", "optimiser", "momentum copy", "EMA"))
    size *= rank.ranks if config.encoder_sharding == "fsdp" else 1
    size += (static["classifier: weights"] + static["classifier: optimiser"]) * config.num_classes // head.shard.size
    if queue is not None:
        entries = config.views * config.batch_size * rank.ranks if config.queue == "batch" else config.queue_size
        size += entries * (4 * queue.dim * (1 + queue.compensate) + 8)
    return size


def why_not_probed(plan: Plan, config: Config, dataset: FaceDataset | None, world: World) -> str:
    """Why no real steps can be made here; "" if they can."""
    if dataset is None:
        return f"there are no data at rec={config.rec!r}"
    peak = plan.peak if plan.ranks == world.size else FakeRank(config, world, world.size).peak(config.batch_size)
    free = available_memory(world.device, world.size)
    return f"the steps need {_size(peak)}; {_size(free)} are free" if peak > free else ""


def with_probe(plan: Plan, config: Config, dataset: FaceDataset, world: World) -> Plan:
    """The plan with what a few real steps show.

    A single process measures one rank's batch with all classes: as many operations as on a rank of a larger run, which compares
    more features with fewer classes.
    """
    seconds, most, resident = probe(config, dataset, world)
    # The storage copies each tensor twice to write it (docs/RESULTS.md); on a GPU, or in the background, it writes a copy.
    copies = 2 + (config.async_save or world.device.type == "cuda")
    hours = seconds * plan.total_steps / 3600 if plan.total_steps else None
    host = max(most, resident + copies * plan.checkpoint // plan.ranks)
    return replace(plan, seconds_per_step=seconds, hours=hours, host=host)


# ------------------------------------------------------------------------------------------------ the command


def run(config: Config, world: World, ranks: int | None, file: Path | None) -> None:
    """Print the plan of a configuration, and write it to `file`, if given. ranks: None for those that are running."""
    ranks = world.size if ranks is None else ranks
    dataset = _dataset(config, world, ranks)
    config = build.resolve_config(config, dataset, ranks)
    if ranks > config.num_classes:
        raise UserError(f"--ranks {ranks}: there are only {config.num_classes} classes to divide among the ranks")
    spec = BatchSpec.of(config, world=ranks)
    if 0 < config.num_image < spec.global_batch - spec.unlabelled_images:
        raise UserError(f"{config.num_image} images are fewer than one batch of {config.batch_size} x {ranks} ranks")
    visits = None if dataset is None or dataset.visits is None else int(dataset.visits.sum())
    plan = make_plan(config, world, ranks, visits)
    if world.is_first:
        print(table(plan, config, world), flush=True)
    reason = why_not_probed(plan, config, dataset, world)
    if dataset is not None and not reason:
        plan = with_probe(plan, config, dataset, world)
    if world.is_first:
        print(f"time: not measured: {reason}" if reason else _measured(plan, world))
        if file is not None:
            write_file(file, json.dumps(asdict(plan), indent=1) + "\n")


def _dataset(config: Config, world: World, ranks: int) -> FaceDataset | None:
    """The training set, if it is on this machine. Raises UserError if there is too little to plan with."""
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: must be at least 1")
    if world.size not in (1, ranks):
        raise UserError(f"--ranks {ranks}: {world.size} ranks are running; leave --ranks out, or plan with a single process")
    if config.rec == SYNTHETIC or all(path and Path(path).exists() for path in config.data_sets):
        return build.open_dataset(config)
    if not config.num_classes:
        raise UserError(
            f"--plan: num_classes is 0 and there are no data at rec={config.rec!r}; set num_classes (and num_image, for the "
            "number of steps), or rec"
        )
    return None


def table(plan: Plan, config: Config, world: World) -> PrettyTable:
    """Part of the run | what it needs."""
    precision = str(autocast_type(config.precision, world.device) or torch.float32).removeprefix("torch.")
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU (no GPU found)"
    largest = ", ".join(f"{images:,} ({name})" for name, images in plan.largest_batch.items())
    steps = f"not known: there are no data at rec={config.rec!r}, and num_image is 0; set it"
    if plan.total_steps is not None:
        steps = f"{plan.steps_per_epoch:,} per epoch, {plan.total_steps:,} in all"
    rows = {
        "run": f"{config.network}, {precision}; {plan.ranks} rank(s) x {plan.batch_size} images, {config.views} view(s)",
        "machine": f"{device}, {_size(plan.available)} free per rank",
        **{f"parameters: {part}": f"{count / 1e6:,.2f} M" for part, count in plan.parameters.items()},
        "operations per image": f"{plan.flops_per_image / 1e9:,.1f} GFLOP in the encoder",
        "operations per step": f"{plan.flops_per_step / 1e12:,.3f} TFLOP, all ranks",
        "memory per rank": f"{_size(plan.peak)} at the peak",
        **{f"  {part}": _size(size) for part, size in plan.memory.items() if size},
        "largest batch per rank": f"{largest} images; {_RESERVE:.0%} of the memory stay free",
        "loader": f"{_size(plan.loader)} of shared memory per rank",
        "checkpoint": f"{_size(plan.checkpoint)} on disk",
        "steps": steps,
    }
    result = PrettyTable(["part", "plan"], align="l")
    result.add_rows([list(row) for row in rows.items()])
    return result


def _measured(plan: Plan, world: World) -> str:
    assert plan.host is not None and plan.hours is not None
    hours = f"{plan.hours:,.1f} hours" if plan.hours >= 1 else f"{60 * plan.hours:.1f} minutes"
    alone = ", one rank alone" if plan.ranks != world.size else ""
    return (
        f"time: {hours} of training at {plan.seconds_per_step:.3f} s per step ({TIMED_STEPS} steps on this "
        f"machine{alone})\nprocess: {_size(plan.host)} of host memory per rank at most, saving included"
    )


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
