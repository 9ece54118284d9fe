"""What a run tells: lines on the console, OUTPUT/metrics.jsonl, TensorBoard. Rank 0 only; the step itself prints nothing."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.errors import UserError
from utils.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Progress:
    """Writes measurements of steps and of verifications. On ranks other than 0 it does nothing."""

    def __init__(self, output: Path, active: bool, total_steps: int, first_step: int):
        self.active, self.total_steps = active, total_steps
        self._last_time, self._last_step = time.perf_counter(), first_step
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and of no use to other ranks

        path = output / "metrics.jsonl"
        _forget_after(path, first_step)
        try:
            self._lines = open(path, "a", buffering=1)  # noqa: SIM115 - closed in __exit__
        except OSError as fault:
            raise UserError(f"{path}: cannot be written ({fault.strerror}); set output= to a writable folder") from fault
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.active:
            self._lines.close()
            self._board.close()

    def say(self, text: str) -> None:
        """A line on the console."""
        if self.active:
            print(text, flush=True)

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time that passes within does not count as training time: neither for the speed nor for what is left."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._last_time += time.perf_counter() - begin

    def steps(self, step: int, epoch: float, images_per_step: int, values: dict[str, float]) -> None:
        """Measurements after `step` steps: `values` are those of the last step; the speed is that since the last call."""
        if not self.active:
            return
        now = time.perf_counter()
        seconds = max(now - self._last_time, 1e-9)
        steps = max(step - self._last_step, 1)
        self._last_time, self._last_step = now, step
        values = {**values, "images_per_second": images_per_step * steps / seconds, "epoch": epoch}
        left = timedelta(seconds=round(seconds / steps * (self.total_steps - step)))
        print(
            f"step {step:>6}/{self.total_steps}  epoch {epoch:6.2f}  loss {values['loss']:8.4f}"
            f"  cls {values['loss_classification']:8.4f}  con {values['loss_contrastive']:8.4f}"
            f"  HQ {values['high_quality_share']:6.1%}  LQ pairs {values['low_quality_pair_share']:6.1%}"
            f"  norm {values['norm_mean']:6.2f}  lr {values['lr']:.2e}  {values['images_per_second']:7.0f} img/s  left {left}",
            flush=True,
        )
        self._record(step, "train", values)

    def verification(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Verification figures after `step` steps."""
        if not self.active:
            return
        for name, metrics in results.items():
            self._record(step, f"verification/{name}", metrics)

    def measurements(self, step: int, group: str, values: dict[str, float]) -> None:
        """Further figures after `step` steps: a line of metrics.jsonl, its keys `group/key`, and as many curves."""
        if self.active:
            self._record(step, group, values)

    def on_board(self, step: int, group: str, values: dict[str, float], samples: dict[str, torch.Tensor] | None = None) -> None:
        """Curves and histograms for TensorBoard alone."""
        if self.active:
            for key, value in values.items():
                self._board.add_scalar(f"{group}/{key}", value, step)
            for key, numbers in (samples or {}).items():
                self._board.add_histogram(f"{group}/{key}", numbers, step)

    def picture(self, step: int, name: str, picture: np.ndarray | Figure) -> None:
        """A picture for TensorBoard alone: uint8 RGB [height, width, 3], or a figure of matplotlib."""
        if not self.active:
            return
        if isinstance(picture, np.ndarray):
            self._board.add_image(name, picture, step, dataformats="HWC")
        else:
            self._board.add_figure(name, picture, step)

    def event(self, step: int, **what: object) -> None:
        """Something that happened: a skipped step, a resumption."""
        if self.active:
            self._lines.write(json.dumps({"step": step, **what}) + "\n")

    def _record(self, step: int, group: str, values: dict[str, float]) -> None:
        flat = values if group == "train" else {f"{group}/{key}": value for key, value in values.items()}
        self._lines.write(json.dumps({"step": step, **flat}) + "\n")
        for key, value in values.items():
            self._board.add_scalar(f"{group}/{key}", value, step)


def _forget_after(path: Path, step: int) -> None:
    """Drops the lines that a killed run wrote after the checkpoint it now goes on from, and a last line cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_file(path, "".join(f"{line}\n" for line in kept))
