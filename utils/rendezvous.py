"""A store of one's own for each start of a world.

When torchrun restarts its ranks, they meet in the same key-value store as before, and what the dead ranks wrote there, their
addresses first of all, still stands: a new rank that reads too early connects to nobody, or waits for ever. The ranks of a
start therefore agree on a name that no earlier start had, and keep all keys below it.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import Any

_PAUSE = 0.02  # seconds between two looks at the store


def agree_on_round(store: Any, rank: int, size: int, timeout: timedelta) -> str:
    """The name of this start, the same on all of its ranks and on none of an earlier start.

    Rank 0 asks with a name of its own; each other rank answers with one of its own; rank 0 lists the answers, and who finds
    its answer listed knows that question and list are of today: the dead cannot have listed it.
    Raises RuntimeError after `timeout` (a rank has not come).
    """
    mine = uuid.uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        keys = [f"start/{mine}/{other}" for other in range(1, size)]
        store.set("start/question", mine)
        for other, key in enumerate(keys, start=1):
            while not store.check([key]):
                _rest(deadline, f"rank {other}")
        store.set(f"start/{mine}/listed", ",".join(store.get(key).decode() for key in keys))
        return mine
    answered = ""
    while True:
        question = store.get("start/question").decode() if store.check(["start/question"]) else ""
        if question and question != answered:
            store.set(f"start/{question}/{rank}", mine)
            answered = question
        listed = f"start/{question}/listed"
        if question and store.check([listed]) and mine in store.get(listed).decode().split(","):
            return question
        _rest(deadline, "rank 0")


def _rest(deadline: float, missing: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"{missing} did not come to the start of the run within timeout_minutes")
    time.sleep(_PAUSE)
