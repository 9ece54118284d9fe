"""Ranks that end as the commands' processes do: their Python interpreter really shuts down.

`multiprocessing` ends its processes by `os._exit`, which hides what happens during the shutdown. Here, ranks are forked from a
process that has imported everything (`python -m tests.exits`), and return from its main module.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.commands import run
from tests.world import free_port


@dataclass(frozen=True)
class Exits:
    """codes: the ranks' exit codes (-6: SIGABRT). text: what they printed."""

    codes: list[int]
    text: str


def run_ranks(ranks: int, code: str) -> Exits:
    """Executes Python code in `ranks` processes with the environment that torchrun sets; it sees `rank`, `sys` and `dist`."""
    with tempfile.NamedTemporaryFile("r") as log:
        done = run(sys.executable, "-m", "tests.exits", str(ranks), log.name, code)
        assert done.returncode == 0, done.stderr
        return Exits(json.loads(done.stdout), log.read())


def native_threads() -> list[str]:
    """Names of all threads of this process, those of C++ libraries included."""
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def _fork(rank: int, ranks: int, port: int, log: str) -> int:
    process = os.fork()
    if process == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    return process


def _main() -> None:
    import torch.utils.tensorboard

    import train  # noqa: F401 - imported once, for all ranks
    from utils import dist

    ranks, log, code = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    port, processes = free_port(), []
    for rank in range(ranks):
        processes.append(_fork(rank, ranks, port, log))
        if processes[-1] == 0:
            exec(code, {"rank": rank, "sys": sys, "dist": dist})
            return
    print([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes])


if __name__ == "__main__":
    _main()
