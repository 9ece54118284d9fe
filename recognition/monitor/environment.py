"""Where a run was started, and with what: OUTPUT/environment.json."""

from __future__ import annotations

import json
import platform
import shlex
import socket
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from recognition import __version__
from utils import dist
from utils.files import write_file

FILE = "environment.json"
_ROOT = Path(__file__).parents[2]


def timestamp() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record_start(output: Path, step: int, device: torch.device) -> None:
    """Add an entry to OUTPUT/environment.json, a list. Collective.

    step: from which the run continues.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    ranks = dist.gather_objects((socket.gethostname(), name))
    dist.on_first_rank(lambda: _append(output / FILE, _entry(step, ranks)))


def _entry(step: int, ranks: list[tuple[str, str]]) -> dict[str, Any]:
    """ranks: host and device of each."""
    return {
        "time": timestamp(),
        "step": step,
        "command": shlex.join(sys.argv),
        "version": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "ranks": len(ranks),
        "hosts": Counter(host for host, _ in ranks),  # name -> ranks
        "devices": Counter(device for _, device in ranks),
    }


def _append(path: Path, entry: dict[str, Any]) -> None:
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError):
        entries = []
    entries = [*(entries if isinstance(entries, list) else []), entry]
    write_file(path, json.dumps(entries, indent=1) + "\n", advice="set output= to a writable folder")


def _commit() -> str | None:
    """The project's commit, ending in "-dirty" if files differ from it; None if it is not a git repository."""
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
