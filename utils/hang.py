"""Names a rank that no longer takes part, and shows where it hangs, instead of waiting without a word.

Each rank counts the collectives it enters. All ranks enter the same ones in the same order, so the others are waiting for the
rank with the lowest count. A thread of each rank publishes its count in the store through which the ranks found each other. A
rank that has waited longer than the limit reads the other ranks' counts; if one is behind, it is named and the run ends, so
that the launcher can restart it. The rank that is behind prints its stack.

Counting costs one addition per collective. Clocks are monotonic: setting the machine's time changes nothing.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from utils import program
from utils.errors import FAULT, discard_output, record_for_launcher

_LONGEST_PERIOD = 5.0  # seconds between two checks
_LAUNCHER_PERIOD = 0.5
_LONGEST_REQUEST = 60.0  # seconds that the store may take to answer


class Watch:
    """Watches the other ranks in a thread.

    limit: seconds that a rank may wait for others. publish(count): writes this rank's count to the store. counts(): all ranks'
    counts as last published. Both raise OSError or RuntimeError if the store does not answer.
    """

    def __init__(
        self,
        rank: int,
        limit: float,
        publish: Callable[[int], None],
        counts: Callable[[], list[int]],
        end: Callable[[int], None] = os._exit,
    ):
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
        """End the thread: if it used the store while the interpreter shuts down, the process would abort."""
        self._stopped.set()
        self._thread.join(_LONGEST_REQUEST)

    def enter(self, what: str) -> None:
        """Count a collective that this rank is about to enter."""
        self._count += 1
        self._since, self._what = time.monotonic(), what

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            try:
                self._check()
            except (RuntimeError, OSError) as fault:  # the process that holds the store has ended: nothing can be asked
                if time.monotonic() - self._since > self.limit:
                    faulthandler.dump_traceback(sys.stderr)
                    self._give_up(
                        f"no progress since {self._what!r} for {self._waited():.0f} s (stack above), and the store that connects "
                        f"the ranks does not answer ({_first_line(fault)})"
                    )

    def _check(self) -> None:
        if self._count != self._published:
            self._publish(self._count)
            self._published = self._count
        waited = self._waited()
        if waited <= self.limit:
            return
        counts = self._counts()
        least, most = min(counts), max(counts)
        if least == most:
            return  # no rank is behind; if the wait does not end, the backend's own time-out ends the run
        late = [rank for rank, count in enumerate(counts) if count == least]
        if self.rank not in late:
            names = ", ".join(map(str, late))
            self._give_up(
                f"rank {names} did not arrive within {self.limit:.0f} s (timeout_minutes): rank {self.rank} waits in "
                f"{self._what!r}, collective {most}; the last collective of rank {names} is {least}"
            )
        if waited > self.limit + 2 * self._period:  # the other ranks have had time to report this
            faulthandler.dump_traceback(sys.stderr)
            self._give_up(f"no progress since {self._what!r} for {waited:.0f} s (stack above)")

    def _waited(self) -> float:
        return time.monotonic() - self._since

    def _give_up(self, why: str) -> None:
        text = f"error: rank {self.rank}: {why}; the run ends; start it again to continue from its last checkpoint"
        record_for_launcher(text)
        print(text, file=sys.stderr, flush=True)
        self._end(FAULT)


class LauncherWatch:
    """Ends this rank when torchrun, its parent, is gone: `kill -9` leaves torchrun no time to end its ranks.

    At once, without saving: the store that connects the ranks was torchrun's, ranks of other machines may have ended, and what is
    left would occupy the GPUs. Without torchrun nothing is watched: `nohup` and `disown` keep their meaning.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="launcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while os.getppid() == program.PARENT:
            if self._stopped.wait(_LAUNCHER_PERIOD):
                return
        if os.environ.get("LOCAL_RANK") == "0" and not discard_output():
            text = f"error: the launcher (process {program.PARENT}) has ended, and so do its ranks; start the command again\n"
            os.write(2, text.encode())
        os._exit(FAULT)


def _first_line(fault: BaseException) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:120]
