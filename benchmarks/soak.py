"""Train for a long time while ranks, loader workers and the launcher are killed at random; then check the result.

    python benchmarks/soak.py                              # 30 minutes with kills, then the same steps without
    python benchmarks/soak.py --minutes 5 --every 30
    python benchmarks/soak.py --rec /data/faces --json soak.json network=r18 global_batch_size=64

First, a run under `torchrun --max-restarts` is disturbed: about every --every seconds a process is killed with SIGKILL, mostly a
rank (the launcher then restarts all), sometimes a loader worker, sometimes everything at once (this script then starts it again).
After --minutes, SIGTERM ends it. Then an undisturbed run makes the same number of steps. Bars:

    the checkpoints of both runs are equal to the last bit, and so are all reported losses
    memory of the undisturbed ranks grows by at most 5 % from the second to the last quarter; their open files do not grow
    no process of a killed run is left

Data: ../shared/faces/lfw_train unless --rec names another set; procedural faces if there is neither.
Exits 0 only if all bars hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FACES = ROOT.parent / "shared" / "faces" / "lfw_train"
MOST_GROWTH = 1.05
_MARK = "SOAK_RUN"  # in the environment of all processes of a run, to find those left behind
_SETTINGS = (
    "network=tiny",
    "embedding_size=128",
    "global_batch_size=32",
    "num_epoch=1000",
    "save_every=5",
    "frequent=1",
    "queue_size=400",
    "num_workers=2",
    "seed=11",
    "dropout=0.1",
    "val_targets=[]",
)


def processes(mark: str) -> dict[int, str]:
    """Process id -> command line of all processes with a mark in their environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            marked = f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if marked and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":  # Z: has ended, not yet reaped
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@dataclass
class Samples:
    """Process id of a rank -> its resident memory (KB) and open files over time."""

    memory: dict[int, list[int]] = field(default_factory=dict)
    files: dict[int, list[int]] = field(default_factory=dict)

    def take(self, ranks: list[int]) -> None:
        for rank in ranks:
            try:
                pages = int(Path(f"/proc/{rank}/statm").read_text().split()[1])
                files = len(os.listdir(f"/proc/{rank}/fd"))
            except OSError:
                continue
            self.memory.setdefault(rank, []).append(pages * os.sysconf("SC_PAGE_SIZE") // 1024)
            self.files.setdefault(rank, []).append(files)

    @staticmethod
    def quarters(values: list[int]) -> tuple[float, float]:
        """Medians of the second and of the last quarter."""
        n = len(values)
        return statistics.median(values[n // 4 : n // 2] or values), statistics.median(values[3 * n // 4 :])


class Run:
    """train.py under torchrun, with its own output folder."""

    def __init__(self, arguments: argparse.Namespace, output: Path, *more: str):
        self.arguments, self.output, self.more = arguments, output, more
        self.mark = f"{os.getpid()}-{output.name}"
        self.starts = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.arguments.ranks}"]
        command += ["--max-restarts=100000", "train.py", self.arguments.config, f"rec={self.arguments.rec}"]
        command += [f"output={self.output}", *_SETTINGS, *self.arguments.overrides, *self.more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", _MARK: self.mark}
        with open(self.output.with_suffix(".log"), "ab") as log:
            self.launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.starts += 1

    @property
    def ranks(self) -> list[int]:
        return [pid for pid, line in processes(self.mark).items() if _parent(pid) == self.launcher.pid and "train.py" in line]

    @property
    def workers(self) -> list[int]:
        ranks = self.ranks
        return [pid for pid in processes(self.mark) if _parent(pid) in ranks]

    @property
    def step(self) -> int:
        try:
            lines = (self.output / "metrics.jsonl").read_bytes()[-4000:].splitlines()
            return json.loads(lines[-1])["step"]
        except (OSError, IndexError, ValueError, KeyError):
            return 0

    def tail(self) -> str:
        return self.output.with_suffix(".log").read_text(errors="replace")[-3000:]


def disturb(run: Run, minutes: float, every: float, generator: random.Random) -> dict[str, int]:
    """Train for `minutes` with kills, then save and stop; returns the number of kills by kind."""
    kills = {"rank": 0, "worker": 0, "everything": 0}
    run.start()
    end = time.monotonic() + 60 * minutes
    step = 0
    while time.monotonic() < end:
        _wait_for_progress(run, step)
        pause = min(generator.uniform(0.1, 2) * every, end - time.monotonic())
        time.sleep(max(0.0, pause))
        step = run.step
        kind = generator.choices(list(kills), (7, 2, 1))[0]
        victims = {"rank": run.ranks, "worker": run.workers, "everything": list(processes(run.mark))}[kind]
        for victim in victims if kind == "everything" else generator.sample(victims, min(1, len(victims))):
            os.kill(victim, signal.SIGKILL)
        kills[kind] += bool(victims)
        print(f"  step {step:>6}: {kind} killed", flush=True)
        if kind == "everything":
            run.launcher.wait()
            run.start()
    _wait_for_progress(run, step)
    for rank in run.ranks:
        os.kill(rank, signal.SIGTERM)
    code = run.launcher.wait(300)
    assert code == 0, f"after SIGTERM the launcher ended with {code}:\n{run.tail()}"
    return kills


def _wait_for_progress(run: Run, step: int, seconds: float = 300) -> None:
    """Wait until the run has reported another step since the call; `step`: its last one, for errors."""
    give_up = time.monotonic() + seconds
    size = run.output.with_suffix(".log").stat().st_size
    while not _has_stepped_since(run, size):
        assert run.launcher.poll() is None, f"the launcher has ended:\n{run.tail()}"
        assert time.monotonic() < give_up, f"no step in {seconds:.0f} s after step {step}:\n{run.tail()}"
        time.sleep(0.2)


def _has_stepped_since(run: Run, size: int) -> bool:
    with open(run.output.with_suffix(".log"), "rb") as log:
        log.seek(size)
        return b"img/s" in log.read()


def train_undisturbed(run: Run) -> Samples:
    samples = Samples()
    run.start()
    while run.launcher.poll() is None:
        if run.step > 5:
            samples.take(run.ranks)
        time.sleep(1)
    assert run.launcher.returncode == 0, run.tail()
    return samples


def differences(one: Path, two: Path, step: int) -> list[str]:
    """Names of the tensors and losses that are not equal to the last bit."""
    import torch
    from safetensors.torch import load_file

    found = []
    folders = [run / "checkpoints" / f"step-{step:08d}" for run in (one, two)]
    names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in folders]
    if names[0] != names[1] or not names[0]:
        return [f"files {names}"]
    for name in names[0]:
        left, right = (load_file(folder / name) for folder in folders)
        found += list(left.keys() ^ right.keys())
        found += [key for key in left.keys() & right.keys() if not torch.equal(left[key], right[key])]
    losses = []
    for run in (one, two):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "loss" in line])
    return found + ["reported losses"] * (losses[0] != losses[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--quick", action="store_true", help="one minute, one kill per 15 seconds")
    parser.add_argument("--every", type=float, default=60, help="seconds between two kills, on average")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rec", default="")
    parser.add_argument("--config", default="configs/lfw_qg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="keep the runs here")
    parser.add_argument("--json", type=Path)
    arguments, arguments.overrides = parser.parse_known_args()
    if arguments.quick:
        arguments.minutes, arguments.every = 1, 15
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.output or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        arguments.rec = arguments.rec or _faces(folder)
        report = soak(arguments, folder)
    print("\n".join(f"{key:32} {value}" for key, value in report.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["passed"] else 1


def _faces(folder: Path) -> str:
    if FACES.is_dir():
        return str(FACES)
    from recognition.data.demo_faces import make_demo_set

    make_demo_set(folder / "set", identities=40, images_per_identity=20, unseen=4, pairs=20, workers=2)
    return str(folder / "set")


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    disturbed = Run(arguments, folder / "disturbed")
    print(f"disturbed for {arguments.minutes:g} minutes, data {arguments.rec}", flush=True)
    began = time.monotonic()
    kills = disturb(disturbed, arguments.minutes, arguments.every, random.Random(arguments.seed))
    disturbed_seconds = time.monotonic() - began
    time.sleep(2)
    left = processes(disturbed.mark)
    step = disturbed.step
    print(f"undisturbed, {step} steps", flush=True)
    began = time.monotonic()
    undisturbed = Run(arguments, folder / "undisturbed", f"max_steps={step}")
    samples = train_undisturbed(undisturbed)
    wrong = differences(folder / "disturbed", folder / "undisturbed", step)
    memory = [Samples.quarters(values) for values in samples.memory.values()]
    files = [Samples.quarters(values) for values in samples.files.values()]
    growth = max((last / second for second, last in memory), default=float("inf"))
    more_files = max((last - second for second, last in files), default=float("inf"))
    return {
        "steps": step,
        "minutes disturbed": round(disturbed_seconds / 60, 1),
        "minutes undisturbed": round((time.monotonic() - began) / 60, 1),
        "kills": kills,
        "launches": disturbed.starts,
        "tensors or losses that differ": wrong,
        "processes left": len(left),
        "memory of ranks, MB": [[round(value / 1024) for value in pair] for pair in memory],
        "memory, last / second quarter": round(growth, 4),
        "more open files": more_files,
        "passed": not wrong and not left and growth <= MOST_GROWTH and more_files <= 0 and sum(kills.values()) > 0,
    }


if __name__ == "__main__":
    sys.exit(main())
