"""How a run holds its output folder, and how it is asked to end.

Ctrl-C, SIGTERM, a closed terminal (SIGHUP, unless `nohup` ignores it), and SIGUSR1 and SIGUSR2, which job schedulers send before
the time limit: the first asks the run to save and end, the second ends it at once. A thread reads the signals from a pipe that
the C-level handler writes to, so it sees them even while the main thread waits in a collective. What a rank was asked for travels
with the next step's labels (`utils.dist`): all ranks act after the same step, without a collective of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from utils.errors import UserError, discard_output
from utils.files import cannot_write

# Requests of one rank to all others: one bit each, joined by OR over the ranks.
SAVE = 1  # save after this step
WRITING = 2  # this rank's part of the last checkpoint is not on disk yet
_BIT_OF_SIGNAL = {signal.SIGINT: 4, signal.SIGTERM: 8, signal.SIGHUP: 16, signal.SIGUSR1: 32, signal.SIGUSR2: 64}
STOP = sum(_BIT_OF_SIGNAL.values())
STOP_SIGNALS = frozenset(_BIT_OF_SIGNAL)

LOCK = ".lock"
_LOCK_TIMEOUT = 3.0  # seconds: a run that was just killed may not have ended yet
_SAME_REQUEST = 1.0  # seconds: a launcher forwards a signal that the terminal has already sent to its ranks


def names_of(requests: int) -> str:
    """The names of the signals among the requests, for messages."""
    return " and ".join(number.name for number, bit in _BIT_OF_SIGNAL.items() if requests & bit)


class StopSignals:
    """While entered, `requests` holds the bits of the signals received. Enter it in the main thread, after worker processes
    have been forked.

    verbose: this rank prints that it received a signal.
    """

    def __init__(self, verbose: bool):
        self.requests = 0
        self._verbose = verbose
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._first = 0.0

    def __enter__(self) -> StopSignals:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handled = STOP_SIGNALS - {signal.SIGHUP} if ignored else STOP_SIGNALS
        self._old = {number: signal.signal(number, lambda *_: None) for number in handled}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._write.shutdown(socket.SHUT_RDWR)  # ends the thread even if a forked process has inherited the socket
        self._thread.join()
        self._write.close()

    def _listen(self) -> None:
        while received := self._read.recv(1):
            number = received[0]
            if number in _BIT_OF_SIGNAL:
                self._handle(signal.Signals(number))
        self._read.close()

    def _handle(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.requests and not (self._launched and now - self._first < _SAME_REQUEST):
            _print(f"{number.name} again: ending at once; the run goes on from its last checkpoint")
            os._exit(128 + number)
        if not self.requests:
            self._first = now
            if self._verbose:
                _print(f"{number.name}: saving after this step; a second signal ends the run at once")
        self.requests |= _BIT_OF_SIGNAL[number]


def _print(text: str) -> None:
    # Not the built-in: the main thread may hold the stream's lock while it waits.
    discard_output()  # the terminal may have been closed
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


class RunLock:
    """Allows one run at a time in an output folder.

    The kernel holds the lock (`flock`), from `take` until `release` or until the process ends, however it ends. Processes
    that are forked in between hold it too, so take it after forking.
    """

    def __init__(self, output: Path):
        self.output = output
        self._descriptor = -1

    def take(self) -> None:
        """Create the folder if necessary, and lock it. Raises UserError if another process holds it, or it cannot be written."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.output / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._wait()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            raise cannot_write(self.output, error, "set output= to a writable folder") from error

    def _wait(self) -> None:
        give_up = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > give_up:
                    holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
                    self.release()
                    raise UserError(
                        f"{self.output}: another run is writing there ({holder}); wait for it, or set another output="
                    ) from None
                time.sleep(0.1)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
