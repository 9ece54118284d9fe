"""The plan of a run (`train.py --plan`), compared with the run: memory and time.

    python -m benchmarks.plan                     # some minutes on two free cores
    python -m benchmarks.plan --only 1 2          # some of the six settings
    python -m benchmarks.plan --json figures.json

For each setting, in fresh processes and twice in turn: the plan, and a run of twelve steps. The time is the mean of the steps
after the first two, in the faster of two plans and in the faster of two runs: other work on the machine only adds to it. Two
kinds of memory are compared: that of the process, at its most, as the kernel counts it, with libraries, workspaces, and what
saving needs; and, in another run of three steps, the most that PyTorch's allocator held (on the CPU by its profiler, on a GPU
by its own count). Random images.

The bars: planned / measured memory within 10 %, planned / measured time within 20 %. Exits with 0 if all hold.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from prettytable import PrettyTable

from recognition.trainer import Trainer
from utils import config, dist
from utils.errors import exit_on_user_error

BARS = {"allocated": 0.10, "process": 0.10, "seconds": 0.20}
BASE = "rec=synthetic num_image=5000 batch_size=16 num_workers=1 quality_mean=3.0 quality_std=1.0 lr=0.001 queue_size=150"
SETTINGS = [
    "network=tiny batch_size=64 num_classes=50000 queue_size=1500",
    "network=vit_t batch_size=32 num_classes=100000 views=1 queue=none optimizer=adamw sample_rate=0.3",
    "network=r18 batch_size=8 num_classes=8631 precision=fp32",
    "network=r34 batch_size=8 num_classes=8631 queue=momentum",
    "network=mbf num_classes=100000 gradient_acc=2",
    "network=r50 num_classes=10000 views=1 queue=none gradient_checkpointing=True",
]  # short queues, because a plan is that of a full one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", type=int, choices=range(1, 7), default=range(1, 7), help="numbers of settings")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument("--measure", nargs="+", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(_measure(arguments.measure)))
        return
    results = {}
    for setting in (SETTINGS[number - 1] for number in arguments.only):
        results[setting] = compare(setting)
        print(f"{setting}: {results[setting]}", flush=True)
    columns = [f"{name}: {which}" for name in BARS for which in ("planned", "measured", "ratio")]
    table = PrettyTable(["setting", *columns], align="r")
    table.align["setting"] = "l"
    for setting, figures in results.items():
        table.add_row([setting, *(f"{figures[column]:.3g}" for column in columns)])
    print(f"memory in GB, time in s; torch {torch.__version__}\n{table}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    holds = all(abs(figures[f"{name}: ratio"] - 1) <= bar for figures in results.values() for name, bar in BARS.items())
    print("all bars hold" if holds else "bar MISSED")
    raise SystemExit(not holds)


def compare(setting: str) -> dict[str, float]:
    """Name: planned, measured, ratio -> GB or seconds."""
    plans, times, processes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        keys = [*BASE.split(), *setting.split()]
        out, _ = _run("-m", "benchmarks.plan", "--measure", *keys, f"output={folder}/allocated")
        for number in range(2):
            plan, output = Path(folder) / "plan.json", Path(folder) / str(number)
            _run("train.py", "--plan", "--json", str(plan), "configs/base", *keys)
            plans.append(json.loads(plan.read_text()))
            processes.append(_run("train.py", "configs/base", *keys, "max_steps=12", "frequent=2", f"output={output}")[1])
            times.append(_seconds(output / "metrics.jsonl", plans[-1]["batch_size"]))
    pairs = {
        "allocated": (plans[0]["peak"] / 1e9, json.loads(out.splitlines()[-1]) / 1e9),
        "process": (statistics.mean(plan["host"] for plan in plans) / 1e9, statistics.mean(processes) / 1e9),
        "seconds": (min(plan["seconds_per_step"] for plan in plans), min(times)),
    }
    return {
        f"{name}: {which}": figure
        for name, (planned, measured) in pairs.items()
        for which, figure in (("planned", planned), ("measured", measured), ("ratio", planned / measured))
    }


def _run(*command: str) -> tuple[str, int]:
    """A command's output, and the most memory of its process in bytes."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)}\n{output.read()}")
        return output.read(), 1024 * usage.ru_maxrss


def _seconds(metrics: Path, images: int) -> float:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    accumulated = json.loads((metrics.parent / "config.json").read_text())["gradient_acc"]
    rates = [line["images_per_second"] for line in lines if "loss" in line and line["step"] > 2]
    return statistics.mean(accumulated * images / rate for rate in rates)


def _measure(keys: list[str]) -> int:
    world = dist.start()
    settings = config.load("configs/base", [*keys, "max_steps=3"])
    with contextlib.redirect_stdout(sys.stderr):
        return allocated(lambda: Trainer(settings, world).run())


def allocated(action: Callable[[], object]) -> int:
    """The most bytes that PyTorch's allocator held at any time during `action`, without those that it held before."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = _flat(profiler.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    memory = sorted((event.start_time_ns, event.extra_fields) for event in events if event.name == "[memory]")
    before = memory[0][1].total_allocated - memory[0][1].alloc_size
    return max(fields.total_allocated for _, fields in memory) - before


def _flat(events: list[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _flat(event.children)


if __name__ == "__main__":
    exit_on_user_error(main)
