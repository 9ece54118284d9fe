"""Mistakes of the user, as opposed to faults of this software.

A `UserError` is printed on stderr, one line per problem, and ends with exit code 2. Any other exception is a fault: it keeps
its traceback and ends with exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

FAULT, USER_MISTAKE, INTERRUPTED = 1, 2, 130


class UserError(ValueError):
    """One or more mistakes that the user can fix. One line per problem: what is wrong, where, and what to do about it."""

    def __init__(self, *problems: str):
        super().__init__(*(" ".join(problem.split()) for problem in problems))

    def __str__(self) -> str:
        return "\n".join(self.args)


def warn(message: str) -> None:
    """Print a warning as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def exit_on_user_error(main: Callable[[], object]) -> None:
    """Run `main`; a `UserError` is printed and becomes exit code 2. Commands of several ranks use `utils.dist.run_command`."""
    try:
        main()
    except UserError as error:
        print_error(error)
        raise SystemExit(USER_MISTAKE) from None


def print_error(error: UserError) -> None:
    """Print one line per problem on stderr."""
    print("\n".join(f"error: {problem}" for problem in error.args), file=sys.stderr, flush=True)
