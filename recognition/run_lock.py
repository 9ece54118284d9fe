"""One run at a time in an output folder. The lock is the kernel's (`flock`): it goes with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from utils.errors import UserError

LOCK = ".lock"
_PATIENCE = 3.0  # seconds: a run that was just killed may still be on its way out


class RunLock:
    """Held from `take` until the process ends or `release`."""

    def __init__(self, output: Path):
        self.path = output / LOCK
        self._descriptor = -1

    def take(self) -> None:
        """UserError where another process holds it, or where the folder cannot be written to."""
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._wait()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as fault:
            raise UserError(f"{self.path}: cannot be written ({fault.strerror}); set output= to a writable folder") from fault

    def _wait(self) -> None:
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > give_up:
                    holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
                    self.release()
                    raise UserError(
                        f"{self.path.parent}: another run is writing there ({holder}); wait for it, or set another output="
                    ) from None
                time.sleep(0.1)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
