"""Notices a rank that no longer takes part, and says which one and where it stands, instead of a silent wait.

Every collective of utils/dist.py counts itself as it is entered; ranks enter the same ones in the same order, so whoever
has counted less than the others is who they wait for. A thread of each rank publishes its count in the store through
which the ranks found each other. A rank that has waited for longer than the limit reads the counts of the others; if one
lags behind, it is named and the run ends, for the launcher to restart. The rank that lags shows where it hangs.

Counting costs an addition. Clocks are monotonic: setting the machine's time changes nothing.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

FAULT = 1
_LONGEST_PERIOD = 5.0  # seconds between two looks
_LONGEST_REQUEST = 60.0  # seconds that the store may take to answer


class Watch:
    """publish(count): tells the store. counts(): all ranks' counts as last published; OSError or RuntimeError where the
    store does not answer. limit: seconds that a rank may wait for others."""

    def __init__(
        self, rank: int, limit: float, publish: Callable[[int], None], counts: Callable[[], list[int]],
        end: Callable[[int], None] = os._exit,
    ):  # fmt: skip
        self.rank, self.limit = rank, limit
        self._publish, self._counts, self._end = publish, counts, end
        self._period = min(_LONGEST_PERIOD, limit / 4)
        self._count, self._since, self._what = 0, time.monotonic(), "the start"
        self._published = -1
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread: one that uses the store while the interpreter shuts down would abort the process."""
        self._stopped.set()
        self._thread.join(_LONGEST_REQUEST)

    def entered(self, what: str) -> None:
        """This rank has come to its next collective."""
        self._count += 1
        self._since, self._what = time.monotonic(), what

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            try:
                self._look()
            except (RuntimeError, OSError) as fault:  # the store has gone with its process: nobody can be asked
                if time.monotonic() - self._since > self.limit:
                    faulthandler.dump_traceback(sys.stderr)
                    self._give_up(
                        f"it has stood in or after {self._what!r} for {self._waited():.0f} s, shown above; the ranks' meeting "
                        f"point has gone ({_line(fault)})"
                    )

    def _look(self) -> None:
        if self._count != self._published:
            self._publish(self._count)
            self._published = self._count
        waited = self._waited()
        if waited <= self.limit:
            return
        counts = self._counts()
        least, most = min(counts), max(counts)
        if least == most:
            return  # all have come as far: nobody is late, or the backend's own time-out will tell
        late = [rank for rank, count in enumerate(counts) if count == least]
        if self.rank not in late:
            names = ", ".join(map(str, late))
            self._give_up(
                f"rank {names} did not arrive within {self.limit:.0f} s (timeout_minutes): rank {self.rank} waits in "
                f"{self._what!r}, collective {most}; rank {names} came to collective {least} and no further"
            )
        if waited > self.limit + 2 * self._period:  # the others have had the time to say so
            faulthandler.dump_traceback(sys.stderr)
            self._give_up(f"this rank has not come past {self._what!r} for {waited:.0f} s; it stands as shown above")

    def _waited(self) -> float:
        return time.monotonic() - self._since

    def _give_up(self, why: str) -> None:
        text = f"error: rank {self.rank}: {why}; the run ends here and goes on from its last checkpoint"
        print(text, file=sys.stderr, flush=True)
        self._end(FAULT)


def _line(fault: BaseException) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:120]
