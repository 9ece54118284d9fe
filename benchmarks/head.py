"""Time and memory of the sharded classifier, compared with arcface_torch's PartialFC_V2 and with the matrix products alone.

    python benchmarks/head.py                    # about six minutes on two free cores
    python benchmarks/head.py --quick            # about a minute: fewer repetitions
    python benchmarks/head.py --json figures.json
    python benchmarks/head.py --scaling          # instead: memory compared with docs/SCALING.md's formulas
    python benchmarks/head.py --model            # instead: time compared with docs/SCALING.md's model
    python benchmarks/head.py --gpu              # instead: on one GPU with 256 images; no bars

Two ranks (gloo, one thread each) with 128 images each, one view: 256 gathered features of 512 numbers, all classified. A step is
forward, backward and one SGD step with momentum and weight decay, with 8,631, 100,000 and 500,000 classes. `ours` is
`losses.sharded_softmax` with ArcFace's margin and the default products: bfloat16 if the hardware supports it. All else is
float32. `peer` repeats the operations of PartialFC_V2 with ArcFace: normalised rows, all G x C/W logits at once, acos and cos
of all of them, softmax, autograd; it uses the same fused SGD, so only the head differs. `floor` is the three matrix products
alone (logits, gradient of the features, gradient of the weight). For information: `2 views` is `ours` with 512 features, `fp32`
with float32 products, `rate` with sampled classes.

Each measurement uses a pair of fresh processes; ours, peer and floor take turns, round after round. Time is the fastest step of
the slower rank: wall-clock time, or with --cpu-time processor time, which other work on the machine disturbs less. Extra memory
is the kernel's peak over the steps, minus what the process held before the first step (libraries included, which a small head
loads), minus gradient and momentum. Then the
whole joint step without the encoder, with a full queue, is compared with an iresnet34 step (both views) at 8,631 classes: forward
and backward of a few images, scaled to the batch. Exits with 0 only if every bar holds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the packages are in the folder above this script's

from benchmarks.head_ways import DIM, ENCODER_IMAGES, IMAGES, RANKS, WAYS, Step  # noqa: E402
from losses.visits import ChunkPlan  # noqa: E402
from recognition.planning.probe import Timer  # noqa: E402
from utils import dist  # noqa: E402

SIZES = (8_631, 100_000, 500_000)
BARS = {  # time of this project: (at most this much of the floor's, of the peer's)
    8_631: (1.35, 0.8),
    100_000: (1.25, 0.5),
    500_000: (1.25, 0.5),
}
MEMORY_BAR = 0.1  # extra memory of this project, of the peer's
JOINT_BAR = 0.10
SCALING_SLACK = 128 << 20  # what does not grow: libraries loaded on first use, the products' buffers, one chunk


# ---------------------------------------------------------------------------------------------------- measuring


def _resident(name: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS now, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not report {name}")


def measure(way: str, classes: int, repetitions: int) -> None:
    """One rank's measurement, printed as JSON."""
    torch.set_num_threads(1)
    dist.start()
    if way != "encoder":
        WAYS[way](8 * RANKS)[0]()  # loads the libraries, which belong to no way
    before = _resident("VmRSS")
    step, weight = WAYS[way](classes)
    dist.barrier()
    held = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    walls, processors = [], []
    for _ in range(repetitions + 1):  # the first step is a warm-up, and creates the momentum
        dist.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        step()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    peak = _resident("VmHWM")
    extra = max(peak - held - 2 * weight.nbytes, 0)
    print(json.dumps({"wall": min(walls[1:]), "cpu": min(processors[1:]), "extra": extra, "grown": peak - before}))
    dist.stop()


def in_fresh_processes(way: str, classes: int, repetitions: int, count: int = RANKS) -> dict[str, float]:
    """Measure in fresh processes; returns the largest of the ranks' figures."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--measure", way, "--classes", str(classes), "--repetitions", str(repetitions)]
    ranks = []
    for rank in range(count):
        place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        environment = {**os.environ, **{k: str(v) for k, v in place.items()}, "MASTER_ADDR": "127.0.0.1"}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT))
    outputs = [process.communicate(timeout=600)[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"the measurement of {way} at {classes} classes failed")
    figures = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {key: max(figure[key] for figure in figures) for key in figures[0]}


def compare(classes: int, ways: list[str], repetitions: int, clock: str, rounds: int = 1) -> dict[str, dict[str, float]]:
    """Each way's smallest figures over the rounds."""
    figures: dict[str, dict[str, float]] = {}
    for way in ways * rounds:
        new = in_fresh_processes(way, classes, repetitions)
        figures[way] = {key: min(value, figures.get(way, new)[key]) for key, value in new.items()}
    for way, figure in figures.items():
        extra = figure["extra"] / 2**20
        print(f"{classes:>8,} classes  {way:<9} {1e3 * figure[clock]:9.1f} ms   {extra:8.1f} MiB extra", flush=True)
    return figures


def scaling(clock: str) -> bool:
    """Measure `ours` with 10,000 to 1,000,000 classes on two ranks, and with an eighth of 5,000,000 as one rank's shard.

    Compares the growth of the process with docs/SCALING.md's formula (weight, gradient, momentum, budget); and the time per row.
    """
    good = True
    times = []
    for classes, ranks in ((10_000, 2), (100_000, 2), (1_000_000, 2), (5_000_000 // 8, 1)):
        figure, rows = in_fresh_processes("ours", classes, 1, ranks), classes // ranks
        formula = 3 * 4 * rows * DIM + min(4 * ranks * IMAGES * rows, ChunkPlan().keep_bytes) + SCALING_SLACK
        times.append(1e6 * figure[clock] / rows / (ranks * IMAGES))
        growth, promised = figure["grown"] / 2**20, formula / 2**20
        print(f"{rows:>8,} rows per rank: {growth:8.1f} MiB (formula {promised:8.1f}), {times[-1]:6.3f} us per row and feature")
        good &= figure["grown"] <= formula
    print(f"  memory within the formula: {'holds' if good else 'DOES NOT HOLD'}")
    return good & verdict("time per row: the largest / at 50,000 rows", max(times[2:]) / times[1], 1.5)


def machine() -> None:
    """One rank's rates, while the other rank measures its own, printed as JSON: what `model` multiplies."""
    torch.set_num_threads(1)
    dist.start()
    unit_ND, logits_NC = torch.randn(RANKS * IMAGES, DIM), torch.randn(RANKS * IMAGES, 1024)
    large, other = torch.randn(1 << 25), torch.randn(1 << 25)
    chunks_CD = large.view(-1, 1024, DIM)  # 128 MiB: the products read their rows from memory, as a large head's do

    def fastest(work: Step, repetitions: int) -> float:
        times = []
        for _ in range(repetitions):
            dist.barrier()
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def pointwise() -> None:  # what the two passes do to a chunk of logits
        logits_NC.mul_(0.5).clamp_(-1, 1).exp_().sum(dim=1)
        torch.ops.aten.hardtanh_backward.grad_input(logits_NC, logits_NC, 0.0, 9.0, grad_input=logits_NC).mul_(0.5)

    def products() -> None:
        for rows_CD in chunks_CD:
            torch.mm(unit_ND, rows_CD.T, out=logits_NC)

    figures = {
        "product": fastest(products, 4) / (RANKS * IMAGES * large.numel()),
        "element": fastest(pointwise, 30) / logits_NC.numel(),
        "byte": fastest(lambda: large.add_(other), 6) / (12 * len(large)),
        "new byte": fastest(lambda: torch.empty(1 << 25).zero_(), 6) / (4 << 25),
        "collective": fastest(lambda: dist.gather_rows(unit_ND[None, :IMAGES]), 30) / (4 * DIM * IMAGES),
    }
    print(json.dumps(figures))
    dist.stop()


def model(clock: str) -> bool:
    """docs/SCALING.md's model of the step's time, with this machine's rates, next to measurements."""
    rates, good = in_fresh_processes("machine", 0, 0), True
    print("  ".join(f"{name}: {1e12 * rate:.4g} ps" for name, rate in rates.items()))
    for classes in SIZES:
        rows, features = classes / RANKS, RANKS * IMAGES
        parts = {
            "products": 3 * features * rows * DIM * rates["product"],
            "logits": features * rows * rates["element"],
            "rows": 44 * DIM * rows * rates["byte"],
            "new memory": min(4 * features * rows, ChunkPlan().keep_bytes) * rates["new byte"],
            "collectives": 2 * 4 * DIM * features * (RANKS - 1) / RANKS * rates["collective"],
        }
        measured, total = in_fresh_processes("fp32", classes, 10 if classes == SIZES[0] else 3)[clock], sum(parts.values())
        print(f"{classes:>8,} classes: " + ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in parts.items()) + " ms")
        ratio = max(total / measured, measured / total)
        good &= verdict(f"calculated {1e3 * total:.0f} ms, measured {1e3 * measured:.0f} ms; ratio", ratio, 1.3)
    return good


def on_gpu(path: Path | None) -> None:
    """The comparison on one GPU: median time of a step, and peak memory beyond weight, gradient and momentum."""
    world, document = dist.start(), {}
    for classes in SIZES:
        for way in ("ours", "fp32", "peer", "floor", "streamed"):
            step, weight = WAYS[way](classes)
            step()  # creates the momentum
            torch.cuda.reset_peak_memory_stats()
            held, timed = torch.cuda.memory_allocated(), Timer(world.device, 3)
            milliseconds = 1e3 * statistics.median(timed(step) for _ in range(7))
            extra = (torch.cuda.max_memory_allocated() - held - weight.nbytes) / 2**20
            print(f"{classes:>8,} classes  {way:<9} {milliseconds:9.2f} ms   {extra:8.1f} MiB extra", flush=True)
            document[f"{classes} {way}"] = {"milliseconds": milliseconds, "extra MiB": extra}
            del step, weight
    if path:
        path.write_text(json.dumps(document, indent=1) + "\n")
    dist.stop()


def verdict(name: str, value: float, bar: float) -> bool:
    print(f"  {name:<58} {value:6.3f}   bar {bar:4.2f}   {'holds' if value <= bar else 'DOES NOT HOLD'}", flush=True)
    return value <= bar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures")
    parser.add_argument("--cpu-time", action="store_true", help="compare processor time instead of wall clock")
    parser.add_argument("--scaling", action="store_true", help="memory and time as the number of classes grows")
    parser.add_argument("--model", action="store_true", help="the step's time, calculated from this machine's rates and measured")
    parser.add_argument("--gpu", action="store_true", help="the comparison on one GPU")
    parser.add_argument("--measure", choices=[*WAYS, "machine"], help=argparse.SUPPRESS)
    parser.add_argument("--classes", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, default=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure == "machine":
        return machine()
    if arguments.measure:
        return measure(arguments.measure, arguments.classes, arguments.repetitions)
    clock = "cpu" if arguments.cpu_time else "wall"
    if arguments.scaling:
        sys.exit(0 if scaling(clock) else 1)
    if arguments.model:
        sys.exit(0 if model(clock) else 1)
    if arguments.gpu:
        return on_gpu(arguments.json)
    document: dict[str, object] = {"clock": clock}
    good = True
    for classes in SIZES:
        repetitions, rounds = (10, 3) if classes == SIZES[0] else (3, 3)
        figures = document[str(classes)] = compare(
            classes, ["ours", "peer", "floor"], repetitions, clock, 1 if arguments.quick else rounds
        )
        if not arguments.quick:
            figures |= compare(classes, ["fp32", "streamed", "2 views", "rate 0.3", "rate 0.1"], repetitions, clock)
        for other, bar in zip(("floor", "peer"), BARS[classes], strict=True):
            good &= verdict(f"time, ours / {other} at {classes:,} classes", figures["ours"][clock] / figures[other][clock], bar)
        memory = figures["ours"]["extra"] / figures["peer"]["extra"]
        good &= verdict(f"extra memory, ours / peer at {classes:,} classes", memory, MEMORY_BAR)
    both = document["joint"] = compare(SIZES[0], ["joint", "encoder"], 3, clock)
    share = both["joint"][clock] / (2 * IMAGES / ENCODER_IMAGES * both["encoder"][clock])
    good &= verdict("joint step without the encoder / r34 step, 8,631 classes", share, JOINT_BAR)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
