"""Mistakes of the user, as opposed to faults of this software.

A `UserError` is printed on stderr, one line per problem, and ends with exit code 2. Limits of the machine (open files, disk
space), a killed process and Ctrl-C are reported the same way. Any other exception is a fault: it keeps its traceback and ends
with exit code 1.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import program

FAULT, USER_MISTAKE = 1, 2

_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of the machine, wherever they occur


class UserError(ValueError):
    """One or more mistakes that the user can fix. One line per problem: what is wrong, where, and what to do about it.

    code: the exit code of a program that ends with it.
    """

    def __init__(self, *problems: str, code: int = USER_MISTAKE):
        super().__init__(*(" ".join(problem.split()) for problem in problems))
        self.code = code

    def __str__(self) -> str:
        return "\n".join(self.args)


def warn(message: str) -> None:
    """Print a warning as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def explain(error: BaseException) -> UserError | None:
    """The error as one for the user: a `UserError`, an interruption, or a limit of the machine. None: a fault of the software."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return UserError("interrupted", code=program.INTERRUPTED)
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO) and discard_output():
        return UserError(code=128 + signal.SIGPIPE)
    if isinstance(error, OSError) and error.errno in _LIMITS:
        where = "" if error.filename is None else f"{error.filename}: "
        return UserError(f"{where}{os.strerror(error.errno)}")
    if is_limit(error):
        return UserError(f"{type(error).__name__}: {error}")
    return explain(error.__cause__) if error.__cause__ is not None else None


def refuse_unknown_command(arguments: Sequence[str], commands: Sequence[str]) -> None:
    """Raise UserError, with the nearest name, if the first argument is neither an option nor one of `commands`."""
    given = next(iter(arguments), "-")
    if not given.startswith("-") and given not in commands:
        near = difflib.get_close_matches(given, commands, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{given}: no such command{hint}; commands: {', '.join(commands)}")


def is_limit(error: BaseException) -> bool:
    """Whether a limit of the machine, such as too many open files, caused the error. The file itself may be sound."""
    return any(os.strerror(number) in str(error) for number in _LIMITS)  # libraries report it in classes of their own


def exit_on_user_error(main: Callable[[], object]) -> None:
    """Run the main function of a program. A failure that `explain` can explain is printed as one line and sets the exit code.

    Programs of several ranks use `utils.dist.run_command`.
    """
    try:
        program.raise_first()
        main()
        sys.stdout.flush()  # its reader may have ended
    except (Exception, KeyboardInterrupt) as error:
        program.end_at_once()
        problem = explain(error)
        if problem is None:
            raise
        print_error(problem)
        raise SystemExit(problem.code) from None
    program.end_at_once()


def print_error(error: UserError) -> None:
    """Print one line per problem on stderr."""
    if error.args:
        print("\n".join(f"error: {problem}{_remedy(problem)}" for problem in error.args), file=sys.stderr, flush=True)


def record_for_launcher(text: str) -> None:
    """Write the file from which torchrun's summary takes the reason why a rank failed."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        reason = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": reason}))


def discard_output() -> bool:
    """If the terminal, or the reader of a pipe, is gone, discard what is printed there. Returns whether it is gone."""
    gone = False
    for stream in (1, 2):
        poll = select.poll()
        poll.register(stream, 0)
        if poll.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stream)
            gone = True
    return gone


def _remedy(problem: str) -> str:
    if os.strerror(errno.EMFILE) not in problem:
        return ""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"; this process may open {limit}: raise the limit with `ulimit -n 65536`, or use fewer workers or shards"
