"""SIGTERM and SIGINT: the first asks the run to save and end, the second ends it at once.

Signals are read in a thread, from a pipe that the C-level handler writes to, so they are seen even while the main thread
waits in a collective. What a rank was asked for travels with the next step's labels (`utils.dist`), so all ranks act after
the same step and it costs no collective of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

SAVE, WRITING = 1, 2  # requests of a rank: save after this step; my part of the last checkpoint is not on disk yet
ASKED_TO_STOP = {signal.SIGINT: 4, signal.SIGTERM: 8}
STOP = sum(ASKED_TO_STOP.values())

_SAME_REQUEST = 1.0  # seconds: a launcher passes on the signal that the terminal has sent to its ranks already


def names_of(requests: int) -> str:
    """The signals among the requests, for people."""
    return " and ".join(number.name for number, bit in ASKED_TO_STOP.items() if requests & bit)


class Interruption:
    """While entered, `requests` holds the bits of the signals that have come. To be entered in the main thread, after
    worker processes have been forked. `speaks`: this rank says that it was asked."""

    def __init__(self, speaks: bool):
        self.requests = 0
        self._speaks = speaks
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._first = 0.0

    def __enter__(self) -> Interruption:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, lambda *_: None) for number in ASKED_TO_STOP}
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._write.close()

    def _listen(self) -> None:
        while received := self._read.recv(1):
            number = received[0]
            if number in ASKED_TO_STOP:
                self._asked(signal.Signals(number))
        self._read.close()

    def _asked(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.requests and not (self._launched and now - self._first < _SAME_REQUEST):
            _say(f"{number.name} again: ending at once; the run goes on from its last checkpoint")
            os._exit(128 + number)
        if not self.requests:
            self._first = now
            if self._speaks:
                _say(f"{number.name}: saving after this step; a second one ends at once")
        self.requests |= ASKED_TO_STOP[number]


def _say(text: str) -> None:
    # Not through print: the main thread may hold the stream's lock while it waits.
    os.write(sys.stderr.fileno(), f"{text}\n".encode())
