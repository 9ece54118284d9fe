"""torchrun, with its arguments, for run.sh and the scripts: `python -m scripts.launch [torchrun's arguments] train.py …`.

- A failure ends with the rank's own line and exit code. torchrun would follow it with its log, a traceback and a summary.
- SIGUSR1 and SIGUSR2 reach the ranks too, and SIGHUP does not if it is ignored (`nohup`).
- Default --nproc_per_node: one process per GPU, or two on a CPU; small encoders gain little from more.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import logging
import os
import signal
import sys

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from recognition.signals import STOP_SIGNALS
from utils.errors import exit_on_user_error


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = torchrun.get_args_parser()
    parser.set_defaults(nproc_per_node=str(torch.cuda.device_count() or min(2, cores)))
    options = parser.parse_args(program.arguments())
    if options.nproc_per_node.isdigit():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(options.nproc_per_node))))
    options.signals_to_handle = ",".join(s.name for s in STOP_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN)
    if not options.max_restarts:
        logging.disable(logging.ERROR)  # which process it ends, and how it failed: the rank itself has reported why
    try:
        torchrun.run(options)
    except ChildFailedError as error:
        sys.exit(_exit_code(error))
    except SignalException as error:
        sys.exit(128 + error.sigval)


def _exit_code(error: ChildFailedError) -> int:
    """The exit code of the rank that failed first. Prints why, unless it has done so itself."""
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # which torchrun sends to the others
            reason = ", usually for lack of memory" if failure.exitcode == -signal.SIGKILL else ""
            print(f"error: rank {rank} (process {failure.pid}) was ended by {failure.signal_name()}{reason}", file=sys.stderr)
            return 128 - failure.exitcode
    return error.get_first_failure()[1].exitcode % 256


if __name__ == "__main__":
    exit_on_user_error(main)
