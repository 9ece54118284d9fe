"""Trains and evaluates the runs of a table, several at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.ablation.record import ALL_PAIRS, DATA_ROOT, SETTINGS, add_to_record, read_record, settings_of
from scripts.ablation.rows import Row
from utils.errors import UserError

EVALUATION = "eval.json"


@dataclass(frozen=True)
class Run:
    """A row with a seed, to be trained in `folder` with some processes and evaluated on the benchmarks in `data_root`, and on
    every pair of the labelled sets `all_pairs`."""

    row: Row
    form: str
    seed: int
    settings: tuple[str, ...]
    folder: Path
    data_root: Path
    all_pairs: tuple[str, ...]
    processes: int
    threads: int | None  # CPU threads per process; None: PyTorch's default

    @property
    def arguments(self) -> list[str]:
        """The arguments of train.py, without the output folder."""
        return [*self.row.arguments(self.form), *self.settings, f"seed={self.seed}"]

    def recorded_settings(self) -> dict[str, object]:
        """The settings as RUN/ablation.json records them. Raises UserError if the configuration is invalid."""
        return settings_of(self.row.load(self.form, [*self.settings, f"seed={self.seed}"]), self.processes)

    @property
    def state(self) -> str:
        """What the run's folder holds."""
        files = {EVALUATION: "finished", "results.json": "trained, not evaluated", "checkpoints": "interrupted"}
        return next((state for name, state in files.items() if (self.folder / name).exists()), "to do")

    def execute(self) -> None:
        """Train and evaluate, unless this is done already. What the programs print goes to FOLDER.log."""
        evaluation, record = self.folder / EVALUATION, read_record(self.folder)
        data_root, all_pairs = str(self.data_root.resolve()), [str(Path(path).resolve()) for path in self.all_pairs]
        if evaluation.is_file() and (record.get(DATA_ROOT, data_root), record.get(ALL_PAIRS, [])) == (data_root, all_pairs):
            return
        log = self.folder.with_name(f"{self.folder.name}.log")
        print(f"{self.folder.name}: training, {log}", flush=True)
        add_to_record(self.folder, SETTINGS, self.recorded_settings())
        unfinished = self.folder / "eval.unfinished.json"
        self._call(log, "train.py", *self.arguments, f"output={self.folder}")
        if not (self.folder / "results.json").is_file():  # it saved and ended because of a signal
            raise UserError(f"{self.folder}: the training was stopped; start the table again to continue")
        benchmarks = ["--data-root", str(self.data_root), "--json", str(unfinished)]
        benchmarks += ["--all-pairs", *self.all_pairs] if self.all_pairs else []
        self._call(log, "-m", "eval", "all", "--checkpoint", str(self.folder), *benchmarks)
        add_to_record(self.folder, DATA_ROOT, data_root)
        add_to_record(self.folder, ALL_PAIRS, all_pairs)
        unfinished.rename(evaluation)

    def _call(self, log: Path, *program: str) -> None:
        """Run a Python program, under torchrun if there are several processes. Raises UserError if it fails."""
        launcher = ["-m", "scripts.launch", "--standalone", f"--nproc_per_node={self.processes}"]
        command = [sys.executable, *(launcher if self.processes > 1 else []), *program]
        environment = dict(os.environ)
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with open(log, "a", encoding="utf-8") as sink:
            code = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise UserError(f"{' '.join(command[1:])}: ended with code {code}: {' '.join(last)} (full output: {log})")


def execute_all(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    """Call all tasks, `jobs` at a time. After a failure or an interruption no further task begins; those that run finish."""
    failed = threading.Event()

    def call(task: Callable[[], None]) -> None:
        try:
            if not failed.is_set():
                task()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for finished in [pool.submit(call, task) for task in tasks]:
                finished.result()
        except BaseException:
            failed.set()
            raise
