"""What a run prints and records: lines on the console, OUTPUT/metrics.jsonl, TensorBoard. On rank 0 only."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recognition.monitor.environment import timestamp
from utils.errors import discard_output
from utils.files import cannot_write, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _NoBoard:
    """Takes what TensorBoard would record."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


class Progress:
    """A context; its files are open while it is entered. If it is not `active` (ranks other than 0), it does nothing.

    first_step: where the run starts; what was recorded about later steps is dropped. board: write TensorBoard's files.
    """

    def __init__(self, output: Path, active: bool, total_steps: int, first_step: int, board: bool = True):
        self.output, self.active, self.total_steps = output, active, total_steps
        self._last_step, self._has_board = first_step, board

    def __enter__(self) -> Progress:
        self._last_time = time.perf_counter()
        if not self.active:
            return self
        path = self.output / "metrics.jsonl"
        _drop_after(path, self._last_step)
        try:
            self._lines = open(path, "a", buffering=1)
        except OSError as error:
            raise cannot_write(path, error, "set output= to a writable folder") from error
        self._board: Any = _NoBoard()
        if self._has_board:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and other ranks do not need it

            self._board = SummaryWriter(str(self.output / "tensorboard"), purge_step=self._last_step)
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            with self._writing():
                self._lines.close()
                self._board.close()

    def say(self, text: str) -> None:
        """Print a line on the console."""
        if not self.active:
            return
        try:
            print(text, flush=True)
        except OSError:
            if not discard_output():  # a closed terminal, or the end of `| head`, does not end a training
                raise

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Exclude the time spent in the block from the speed and from the estimate of the time left."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._last_time += time.perf_counter() - begin

    def steps(
        self,
        step: int,
        epoch: float,
        images_per_step: int,
        values: dict[str, float],
        further_seconds: Callable[[float], float] = lambda training_seconds: 0.0,
    ) -> None:
        """Print and record the measurements of a step. The speed is the mean since the last call.

        step: steps done. values: of the last one. further_seconds: remaining seconds of training -> seconds for everything else.
        """
        if not self.active:
            return
        now = time.perf_counter()
        seconds = max(now - self._last_time, 1e-9)
        steps = max(step - self._last_step, 1)
        self._last_time, self._last_step = now, step
        values = {**values, "images_per_second": images_per_step * steps / seconds, "epoch": epoch}
        training = seconds / steps * (self.total_steps - step)
        left = timedelta(seconds=round(training + further_seconds(training)))
        self.say(
            f"step {step:>6}/{self.total_steps}  epoch {epoch:6.2f}  loss {values['loss']:8.4f}"
            f"  cls {values['loss_classification']:8.4f}  con {values['loss_contrastive']:8.4f}"
            f"  HQ {values['high_quality_share']:6.1%}  LQ pairs {values['low_quality_pair_share']:6.1%}"
            f"  norm {values['norm_mean']:6.2f}  lr {values['lr']:.2e}  {values['images_per_second']:7.0f} img/s  left {left}"
        )
        self._record(step, "train", values)

    def verification(self, step: int, results: Mapping[str, Mapping[str, float | None]]) -> None:
        """Record verification figures: set -> metric -> value."""
        if not self.active:
            return
        for name, metrics in results.items():
            self._record(step, f"verification/{name}", metrics)

    def measurements(self, step: int, group: str, values: dict[str, float]) -> None:
        """Record further figures: a line of metrics.jsonl with the keys `group/key`, and one TensorBoard curve per key."""
        if self.active:
            self._record(step, group, values)

    def on_board(self, step: int, group: str, values: dict[str, float], samples: dict[str, torch.Tensor] | None = None) -> None:
        """Record curves and histograms, in TensorBoard only."""
        if self.active:
            with self._writing():
                for key, value in values.items():
                    self._board.add_scalar(f"{group}/{key}", value, step)
                for key, numbers in (samples or {}).items():
                    self._board.add_histogram(f"{group}/{key}", numbers, step)

    def picture(self, step: int, name: str, picture: np.ndarray | Figure) -> None:
        """Record a picture, in TensorBoard only: uint8 RGB [height, width, 3], or a matplotlib figure."""
        if not self.active:
            return
        with self._writing():
            if isinstance(picture, np.ndarray):
                self._board.add_image(name, picture, step, dataformats="HWC")
            else:
                self._board.add_figure(name, picture, step)

    def event(self, step: int, **what: object) -> None:
        """Record an event, such as a skipped step or a resumption: a line of metrics.jsonl."""
        if self.active:
            with self._writing():
                self._write_line(step, what)

    def _record(self, step: int, group: str, values: Mapping[str, float | None]) -> None:
        flat = values if group == "train" else {f"{group}/{key}": value for key, value in values.items()}
        # JSON has no NaN.
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in flat.items()}
        with self._writing():
            self._write_line(step, finite)
            for key, value in values.items():
                if value is not None:
                    self._board.add_scalar(f"{group}/{key}", value, step)

    def _write_line(self, step: int, values: Mapping[str, object]) -> None:
        self._lines.write(json.dumps({"step": step, "time": timestamp(), **values}) + "\n")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self.output, error, "the last checkpoint is intact") from error


def verification_history(output: Path) -> dict[int, dict[str, dict[str, float]]]:
    """What a run has recorded of its verifications: step -> set -> metric -> value. Damaged lines are left out."""
    history: dict[int, dict[str, dict[str, float]]] = {}
    path = output / "metrics.jsonl"
    for text in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            line = json.loads(text)
            step = int(line["step"])
            for key, value in line.items():
                group, _, rest = key.partition("/")
                name, _, metric = rest.rpartition("/")
                if group == "verification" and isinstance(value, (int, float)):
                    history.setdefault(step, {}).setdefault(name, {})[metric] = value
    return history


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after the checkpoint from which it now resumes, and an incomplete last line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_file(path, b"".join(line + b"\n" for line in kept))
