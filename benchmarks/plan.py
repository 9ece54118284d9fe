"""The plan of a run (`train.py --plan`), compared with the run: peak memory and time.

    python -m benchmarks.plan                     # some minutes on two cores
    python -m benchmarks.plan --quick             # two of the six settings, once each
    python -m benchmarks.plan --json figures.json

For each setting, in fresh processes: a run of three steps, whose peak memory is the most that PyTorch's allocator held from start
to end (on the CPU by its profiler, on a GPU by its own count); then plans and runs of twelve steps in turn, whose time is the
median of the seconds per step, without the first two. Random images. `resident` is the growth of the process from just before the
run until its peak, with libraries, workspaces and fragmentation, for information.

The bars: planned / measured memory within 10 %, planned / measured time within 20 %. Exits with 0 if all hold.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from prettytable import PrettyTable

from recognition.trainer import Trainer
from utils import config, dist
from utils.errors import exit_on_user_error

MEMORY_BAR, TIME_BAR = 0.10, 0.20
BASE = "rec=synthetic num_image=5000 batch_size=16 num_workers=1 quality_mean=3.0 quality_std=1.0 lr=0.001"
SETTINGS = [
    "network=tiny batch_size=64 num_classes=50000",
    "network=vit_t batch_size=32 num_classes=100000 views=1 queue=none optimizer=adamw sample_rate=0.3",
    "network=r18 batch_size=8 num_classes=8631 precision=fp32",
    "network=r34 batch_size=8 num_classes=8631 queue=momentum",
    "network=mbf num_classes=100000 queue_size=20000 gradient_acc=2",
    "network=r50 num_classes=10000 views=1 queue=none gradient_checkpointing=True",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two settings, once each")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument("--measure", nargs="+", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_memory(arguments.measure, arguments.resident)))
        return
    results = {}
    for setting in SETTINGS[:2] if arguments.quick else SETTINGS:
        results[setting] = compare(setting, repetitions=1 if arguments.quick else 3)
        print(f"{setting}: {results[setting]}", flush=True)
    columns = ["planned MB", "measured MB", "ratio", "resident MB", "planned s", "measured s", "ratio "]
    table = PrettyTable(["setting", *columns], align="r")
    table.align["setting"] = "l"
    for setting, figures in results.items():
        table.add_row([setting, *(f"{figure:.3g}" if figure < 100 else f"{figure:,.0f}" for figure in figures.values())])
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    holds = all(
        abs(figures["memory ratio"] - 1) <= MEMORY_BAR and abs(figures["time ratio"] - 1) <= TIME_BAR
        for figures in results.values()
    )
    print("all bars hold" if holds else "bar MISSED")
    raise SystemExit(not holds)


def compare(setting: str, repetitions: int) -> dict[str, float]:
    """Planned and measured figures, in MB and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [*BASE.split(), *setting.split()]
        measured = json.loads(_run("-m", "benchmarks.plan", "--measure", *keys, f"output={folder}/profiled").splitlines()[-1])
        resident = json.loads(
            _run("-m", "benchmarks.plan", "--resident", "--measure", *keys, f"output={folder}/resident").splitlines()[-1]
        )
        plans, times = [], []
        for number in range(repetitions):
            plan, output = Path(folder) / "plan.json", Path(folder) / str(number)
            _run("train.py", "--plan", "--json", str(plan), "configs/base", *keys)
            plans.append(json.loads(plan.read_text()))
            _run("train.py", "configs/base", *keys, "max_steps=12", "frequent=2", f"output={output}")
            times += _seconds(output / "metrics.jsonl", plans[-1]["batch_size"])
    peak, seconds = plans[0]["peak"] / 1e6, statistics.median(plan["seconds_per_step"] for plan in plans)
    return {
        "planned MB": peak,
        "measured MB": measured,
        "memory ratio": peak / measured,
        "resident MB": resident,
        "planned s": seconds,
        "measured s": statistics.median(times),
        "time ratio": seconds / statistics.median(times),
    }


def _run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _seconds(metrics: Path, images: int) -> list[float]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    accumulated = json.loads((metrics.parent / "config.json").read_text())["gradient_acc"]
    return [accumulated * images / line["images_per_second"] for line in lines if "loss" in line and line["step"] > 2]


def measure_memory(keys: list[str], resident: bool) -> float:
    """Peak memory of a run of three steps in MB: of PyTorch's allocator, or growth of this process."""
    world = dist.start()
    settings = config.load("configs/base", [*keys, "max_steps=3"])
    with contextlib.redirect_stdout(sys.stderr):
        if world.device.type == "cuda":
            Trainer(settings, world).run()
            return torch.cuda.max_memory_allocated() / 1e6
        if resident:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = _status("VmRSS")
            Trainer(settings, world).run()
            return (_status("VmHWM") - before) / 1e6
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            Trainer(settings, world).run()
    events = _flat(profiler.profiler.kineto_results.experimental_event_tree())
    return max(event.extra_fields.total_allocated for event in events if event.name == "[memory]") / 1e6


def _flat(events: list) -> Iterator:
    for event in events:
        yield event
        yield from _flat(event.children)


def _status(key: str) -> int:
    """A size of this process in bytes, as the kernel counts it."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    exit_on_user_error(main)
