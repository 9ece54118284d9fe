"""Ranks that end as the commands' processes do: their Python interpreter really shuts down.

`multiprocessing` ends its processes by `os._exit`, which hides what happens during the shutdown. Here, ranks are forked from a
process that has imported everything (`python -m tests.exits`, one for all tests), and return from its main module.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ENVIRONMENT
from tests.shared_files import ROOT
from tests.world import rank_environment


@dataclass(frozen=True)
class Exits:
    """codes: the ranks' exit codes (-6: SIGABRT). text: what they printed."""

    codes: list[int]
    text: str


def run_ranks(ranks: int, code: str) -> Exits:
    """Executes Python code in `ranks` processes with the environment that torchrun sets; it sees `rank`, `sys` and `dist`."""
    with tempfile.NamedTemporaryFile("r") as log:
        server = _server()
        assert server.stdin and server.stdout
        try:
            print(json.dumps([ranks, log.name, code]), file=server.stdin, flush=True)
            return Exits(json.loads(server.stdout.readline()), log.read())
        except BaseException:
            server.kill()
            _server.cache_clear()
            raise


@functools.cache
def _server() -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-m", "tests.exits"], subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stdin=pipe, stdout=pipe, text=True)


def native_threads() -> list[str]:
    """Names of all threads of this process, those of C++ libraries included."""
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def _fork(environment: dict[str, str], log: str) -> int:
    process = os.fork()
    if process == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
    return process


def _main() -> None:
    import torch.utils.tensorboard

    import train  # noqa: F401 - imported once, for all ranks
    from utils import dist

    torch.set_num_threads(1)
    for request in sys.stdin:
        ranks, log, code = json.loads(request)
        processes = []
        for rank, environment in enumerate(rank_environment(ranks)):
            processes.append(_fork(environment, log))
            if processes[-1] == 0:
                exec(code, {"rank": rank, "sys": sys, "dist": dist})
                return
        print([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes], flush=True)


if __name__ == "__main__":
    _main()
