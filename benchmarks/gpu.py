"""Acceptance on a machine with GPUs, as one page: what works there, how fast, and where the time goes.

    ./run.sh gpu                        # all GPUs of this machine; about five minutes; the page is runs/gpu/REPORT.md
    ./run.sh gpu --networks r50 r100 vit_b --classes 1000000 --batch-size 256
    ./run.sh gpu --rehearse             # the same on the CPU with small sizes: tries the command, measures nothing

Checks: the tests that need a GPU; two-view training in bf16 and fp16 with one process per GPU (NCCL) on procedural faces; the
same training, killed and resumed; the loader with page-locked memory. Then benchmarks/step.py measures whole training steps.
Each part writes its log to the folder of the page. Exits with 0 only if every check passed.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from recognition.checkpoints import store
from recognition.data import FaceDataset
from recognition.data.batch import BatchSpec
from recognition.data.demo_faces import make_demo_set
from recognition.data.loader import Loader
from recognition.data.prefetch import Prefetcher
from utils.config import from_base
from utils.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 64
RESUMED_TOLERANCE = 0.01  # of a step's loss: the same weights and images, but GPU kernels add up in varying order


@dataclass(frozen=True)
class Check:
    """One line of the page."""

    name: str
    passed: bool
    finding: str


@dataclass(frozen=True)
class Machine:
    """What the checks run on.

    ranks: processes, one per GPU. network, batch, steps: of the short trainings; batch: images per rank. The killed training is
    killed after half of the steps.
    """

    ranks: int
    network: str
    batch: int
    steps: int
    precisions: tuple[str, ...]
    title: str

    @classmethod
    def here(cls, rehearse: bool) -> Machine:
        if rehearse:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
            return cls(2, "tiny", 8, 40, ("fp32",), "rehearsal on the CPU: the figures mean nothing")
        if not torch.cuda.is_available():
            raise UserError(
                f"torch {torch.__version__} finds no GPU on this machine; `./run.sh gpu --rehearse` tries the command on the CPU"
            )
        count = torch.cuda.device_count()
        title = f"{count} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        return cls(count, "r18", 64, 40, ("bf16", "fp16"), title)


class Acceptance:
    """Runs the checks. Data, logs and runs go to `folder`."""

    def __init__(self, machine: Machine, folder: Path):
        self.machine, self.folder = machine, folder
        self.faces = folder / "faces"
        make_demo_set(self.faces, identities=CLASSES, images_per_identity=16, unseen=6, pairs=20, workers=os.cpu_count() or 1)

    def tests(self) -> Check:
        files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
        code, log = self._run("tests", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files)
        last = log.strip().splitlines()[-1] if log.strip() else "no output"
        return Check("tests on the GPU", code == 0, last.strip("= "))

    def training(self, precision: str) -> Check:
        """A short training learns something, and verifies."""
        name = f"training-{precision}"
        code, _ = self._run(name, *self._training(name, precision))
        if code:
            return Check(name, False, f"exit code {code}; see {name}.log")
        steps, losses, skipped = self.machine.steps, self._losses(name), self._skipped(name)
        quarters = _part(losses, 1, steps // 4), _part(losses, steps - steps // 4 + 1, steps)
        first, last = (sum(part.values()) / len(part) for part in quarters)
        results = json.loads((self.folder / name / "results.json").read_text())
        finding = f"loss {first:.2f} -> {last:.2f} in {steps} steps, {skipped} skipped; {len(results)} sets verified"
        return Check(f"training in {precision}, {self.machine.ranks} rank(s)", last < first and skipped < 5, finding)

    def killed_and_resumed(self) -> Check:
        """A run that is killed without warning, and started again, does the step after its checkpoint as it did before."""
        name, title, saved = "killed", "kill -9 and resume", self.machine.steps // 2
        arguments = self._training(name, self.machine.precisions[0])
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log, env=self._environment)
            limit = time.monotonic() + 300
            while not self._has_passed(name, saved) and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
            for rank in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(rank), signal.SIGKILL)
            process.kill()
            process.wait()
        before = self._losses(name)
        code, _ = self._run("resumed", *arguments)
        if code:
            return Check(title, False, f"exit code {code}; see resumed.log")
        after = self._losses(name)
        deviation = abs(after[saved + 1] / before[saved + 1] - 1)
        finding = f"killed after step {max(before)}; step {saved + 1} again: its loss differs by {100 * deviation:.2g} %"
        return Check(title, max(after) == self.machine.steps and deviation <= RESUMED_TOLERANCE, finding)

    def _has_passed(self, run: str, step: int) -> bool:
        """Whether the run has a complete checkpoint of `step` and has reported the step after it."""
        return store.is_complete(store.folder_of(self.folder / run, step)) and max(self._losses(run), default=0) > step

    def loader(self) -> Check:
        """Image pairs per second from the records to one device."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        workers = max(1, (os.cpu_count() or 1) // self.machine.ranks - 1)
        config = from_base(batch_size=128, num_classes=CLASSES, queue="none", num_workers=workers)
        loader = Loader(FaceDataset(self.faces), BatchSpec.of(config), workers)
        prefetcher = Prefetcher(device, loader.slots)
        pairs, began = 0, 0.0
        for epoch in range(8):
            if epoch == 1:  # the first one starts the workers
                pairs, began = 0, time.perf_counter()
            for batch in prefetcher(loader.epoch(epoch)):
                pairs += len(batch.labels_B)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rate = pairs / (time.perf_counter() - began)
        locked = device.type == "cuda" and all(torch.from_numpy(slot).is_pinned() for slot in loader.slots)
        prefetcher.close()
        loader.close()
        finding = f"{rate:,.0f} image pairs/s with {workers} workers, {'page-locked' if locked else 'ordinary'} memory"
        return Check("loader", locked or device.type == "cpu", finding)

    def steps(self, arguments: argparse.Namespace) -> tuple[Check, dict[str, dict[str, float]]]:
        """benchmarks/step.py on all GPUs: its table."""
        figures = self.folder / "step.json"
        wanted = ["--json", str(figures), "--workers", str(max(1, (os.cpu_count() or 1) // self.machine.ranks - 1))]
        wanted += ["--networks", *(arguments.networks or [self.machine.network])]
        if self.machine.title.startswith("rehearsal"):
            wanted += ["--steps", "1", "--batch-size", "8"]
        else:
            wanted += ["--classes", str(arguments.classes), "--batch-size", str(arguments.batch_size)]
        code, _ = self._run("step", *self._torchrun, "-m", "benchmarks.step", *wanted)
        if code:
            return Check("training steps", False, f"exit code {code}; see step.log"), {}
        rows = json.loads(figures.read_text())
        return Check("training steps", True, f"{len(rows)} network(s) measured"), rows

    # ------------------------------------------------------------------------------------------------ parts

    @property
    def _environment(self) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self.machine.ranks)
        return {"OMP_NUM_THREADS": str(min(threads, 8)), **os.environ}

    @property
    def _torchrun(self) -> list[str]:
        return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.machine.ranks}"]

    def _run(self, name: str, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a Python command; the output also goes to a log."""
        print(f"{name} ...", flush=True)
        path = self.folder / f"{name}.log"
        with path.open("wb") as log:
            done = subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log, env=self._environment, check=False
            )
        return done.returncode, path.read_text(errors="replace")

    def _training(self, name: str, precision: str) -> list[str]:
        ranks, steps = self.machine.ranks, self.machine.steps
        settings = {
            "rec": self.faces, "output": self.folder / name, "network": self.machine.network, "precision": precision,
            "global_batch_size": self.machine.batch * ranks, "num_epoch": 64, "max_steps": steps, "lr": 0.05,
            "save_every": steps // 2, "verbose": steps, "frequent": 1, "diagnose_every": 0,
        }  # fmt: skip
        return [*self._torchrun, "train.py", "configs/demo_qg", *(f"{key}={value}" for key, value in settings.items())]

    def _lines(self, run: str) -> list[dict[str, Any]]:
        path = self.folder / run / "metrics.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last line may be incomplete

    def _losses(self, run: str) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self._lines(run) if "loss" in line}

    def _skipped(self, run: str) -> int:
        return sum("skipped" in line for line in self._lines(run))


def _part(losses: dict[int, float], first: int, last: int) -> dict[int, float]:
    return {step: loss for step, loss in losses.items() if first <= step <= last}


def report(machine: Machine, checks: list[Check], rows: dict[str, dict[str, float]]) -> str:
    """The page, in Markdown."""
    lines = [
        "# Acceptance on GPUs",
        "",
        f"{machine.title}; {os.cpu_count()} CPU cores; torch {torch.__version__}",
        "",
        "| check | result | finding |",
        "|---|---|---|",
        *(f"| {check.name} | {'passed' if check.passed else 'FAILED'} | {check.finding} |" for check in checks),
    ]
    if rows:
        columns = list(next(iter(rows.values())))
        lines += ["", f"| network | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
        lines += [f"| {name} | {' | '.join(f'{row[column]:,.1f}' for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder of the page and the logs (runs/gpu)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="measured networks (default r50 r100)")
    parser.add_argument("--classes", type=int, default=8631, help="identities of the measured head (8631)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per rank in the measured steps (128)")
    arguments = parser.parse_args()
    machine = Machine.here(arguments.rehearse)
    if not arguments.rehearse:
        arguments.networks = arguments.networks or ["r50", "r100"]
    folder = arguments.out.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it, or name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)

    acceptance = Acceptance(machine, folder)
    checks = [acceptance.loader(), acceptance.tests()]
    checks += [acceptance.training(precision) for precision in machine.precisions]
    checks.append(acceptance.killed_and_resumed())
    check, rows = acceptance.steps(arguments)
    checks.append(check)

    page = report(machine, checks, rows)
    (folder / "REPORT.md").write_text(page)
    (folder / "report.json").write_text(
        json.dumps({"machine": asdict(machine), "checks": [asdict(check) for check in checks], "steps": rows}, indent=1) + "\n"
    )
    print(f"\n{page}\nwritten to {folder / 'REPORT.md'}")
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
