"""What a user did wrong, as opposed to what we did wrong.

A `UserError` reaches the user as one line on stderr and exit code 2; every other exception is a fault of this
software, keeps its traceback and exits with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

USER_MISTAKE = 2


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: what is wrong, where, and what to do about it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def exit_on_user_error(main: Callable[[], object], is_mine_to_say: Callable[[str], bool] = lambda text: True) -> None:
    """Runs `main`; a `UserError` becomes one line on stderr and exit code 2.

    `is_mine_to_say` decides, where several ranks meet the same mistake, which of them prints it.
    """
    try:
        main()
    except UserError as error:
        if is_mine_to_say(str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(USER_MISTAKE) from None
