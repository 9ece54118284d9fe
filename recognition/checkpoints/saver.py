"""When a run saves: every N steps or minutes, at a new best verification, when it is asked to stop, and at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from recognition import signals
from recognition.checkpoints.store import Checkpoint, folder_of, is_complete
from recognition.checkpoints.writer import CheckpointWriter
from utils import dist
from utils.config import Config
from utils.errors import UserError


class Saver:
    """Decides when to save, and keeps track of the best verification.

    capture: returns the complete state; collective. sets: verification sets, name -> names of their metrics.

    Only rank 0 measures time, by a monotonic clock, and requests a save from all ranks.
    """

    def __init__(
        self,
        output: Path,
        config: Config,
        sets: Mapping[str, Collection[str]],
        steps_per_epoch: int,
        capture: Callable[[], Checkpoint],
    ):
        self.output, self.config, self._capture = output, config, capture
        self._writer = CheckpointWriter(output, config)
        by_time_alone = config.save_minutes > 0 and not config.save_every
        self._every = 0 if by_time_alone else config.save_every or steps_per_epoch
        self._is_first = dist.rank_and_world()[0] == 0
        self._last_time = time.monotonic()
        self._last_step = -1
        self.stall = 0.0  # seconds that the last save held up training
        self.best_step, self.best_value = -1, 0.0
        _check_metric(config.keep_best, sets)

    # ---- state

    @property
    def values(self) -> dict[str, Any]:
        """What a checkpoint stores of this object."""
        return {"best_step": self.best_step, "best_value": self.best_value, "keep_best": self.config.keep_best}

    def restore(self, step: int, values: Mapping[str, Any], history: Mapping[int, Mapping[str, Mapping[str, float]]]) -> None:
        """Continue from the checkpoint of `step`.

        values: of the checkpoint; its best value is dropped if it belongs to another metric. history: step -> set -> metric ->
        value, of the run's verifications so far. A checkpoint is older than the verification of its own step.
        """
        self._last_step = step
        if values.get("keep_best") == self.config.keep_best and math.isfinite(values["best_value"]):
            self.best_step, self.best_value = values["best_step"], values["best_value"]
        for done in sorted(history):
            if self.best_step < done <= step and is_complete(folder_of(self.output, done)):
                self._is_better(done, history[done])
        if self.best_step >= 0:
            self._writer.mark_best(self.best_step)

    # ---- when to save

    @property
    def request(self) -> int:
        """This rank's request to all ranks for the next step: bits of `recognition.signals`."""
        bits = signals.WRITING if self._writer.is_writing else 0
        if self.config.save_minutes > 0 and self._is_first:
            bits |= signals.SAVE * (time.monotonic() - self._last_time >= 60 * self.config.save_minutes)
        return bits

    def after_step(self, step: int, requests: int) -> bool:
        """Save if it is time to; returns whether it was. Collective, with the same arguments on all ranks.

        requests: of all ranks together.
        """
        due = bool(requests & signals.SAVE) or bool(self._every and step % self._every == 0)
        if due:
            self.save(step)
        elif self._writer.has_begun and not requests & signals.WRITING:
            self._writer.finish()
        return due

    def after_verification(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Save and mark the checkpoint of `step` if its verification is the best. Collective."""
        if self._is_better(step, results):
            self.save(step, wait=True)
            self._writer.mark_best(step)

    # ---- saving

    def save(self, step: int, wait: bool = False) -> None:
        """Save unless this step is already saved. wait: until the checkpoint is on the disk. Collective."""
        if step != self._last_step:
            began = time.monotonic()
            keep = [self.best_step] if self.best_step >= 0 else []
            self._writer.save(step, self._capture(), keep)
            self._last_step, self._last_time = step, time.monotonic()
            self.stall = self._last_time - began
        if wait:
            self._writer.finish()

    def _is_better(self, step: int, results: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether a verification is the best so far, which is then recorded. NaN and None never are."""
        if not self.config.keep_best:
            return False
        name, metric = self.config.keep_best.split("/")
        value = results.get(name, {}).get(metric, math.nan)
        if value is None or math.isnan(value) or (self.best_step >= 0 and not value > self.best_value):
            return False
        self.best_step, self.best_value = step, value
        return True


def _check_metric(keep_best: str, sets: Mapping[str, Collection[str]]) -> None:
    """Raise UserError unless `keep_best` is empty or names a metric of one of the verification sets."""
    if not keep_best:
        return
    name, _, metric = keep_best.partition("/")
    if not metric or "/" in metric:
        raise UserError(f"keep_best={keep_best!r}: must be a set and its metric, such as lfw/accuracy")
    if name not in sets:
        raise UserError(f"keep_best={keep_best!r}: {name} is not in val_targets ({', '.join(sets) or 'which is empty'})")
    if metric not in sets[name]:
        raise UserError(f"keep_best={keep_best!r}: {name} has no such metric; it has {', '.join(sets[name])}")
