"""The share of a run's time that verification takes: which ones are left out, and how long the others will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class VerificationTime:
    """share: of the run's time that verification may take, up to 1."""

    def __init__(self, share: float):
        self.share = share
        self._begin, self._spent, self._last = time.perf_counter(), 0.0, 0.0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the block as a verification."""
        begin = time.perf_counter()
        yield
        self._last = time.perf_counter() - begin
        self._spent += self._last

    def is_affordable(self) -> bool:
        """Whether another verification, as long as the last one, stays within the share. The first one always does."""
        elapsed = time.perf_counter() - self._begin
        return self._spent + self._last <= self.share * (elapsed + self._last)

    def left(self, count: int, training_seconds: float) -> float:
        """Seconds that up to `count` more verifications will take during `training_seconds` of training and after it."""
        if self.share == 1 or count == 0:
            return count * self._last
        return min(count * self._last, self._last + self.share / (1 - self.share) * training_seconds)
