"""What a user did wrong, as opposed to what we did wrong.

A `UserError` reaches the user as one line per problem on stderr and exit code 2; every other exception is a fault of this
software, keeps its traceback and exits with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

USER_MISTAKE = 2


class UserError(ValueError):
    """One or more mistakes that the user can fix. One line per problem: what is wrong, where, and what to do about it."""

    def __init__(self, *problems: str):
        super().__init__(*(" ".join(problem.split()) for problem in problems))

    def __str__(self) -> str:
        return "\n".join(self.args)


def warn(message: str) -> None:
    """Print a warning as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def exit_on_user_error(main: Callable[[], object], is_mine_to_say: Callable[[str], bool] = lambda text: True) -> None:
    """Runs `main`; a `UserError` becomes one line per problem on stderr and exit code 2.

    `is_mine_to_say` decides, where several ranks meet the same mistake, which of them prints it.
    """
    try:
        main()
    except UserError as error:
        if is_mine_to_say(str(error)):
            print("\n".join(f"error: {problem}" for problem in error.args), file=sys.stderr, flush=True)
        raise SystemExit(USER_MISTAKE) from None
