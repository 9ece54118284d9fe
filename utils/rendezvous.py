"""A separate key space in torchrun's store for each start of a world.

torchrun creates one key-value store and keeps it when it restarts the ranks (since torch 2.4; in 2.13, `_shared_tcp_store_server`
of torch/distributed/elastic/rendezvous/dynamic_rendezvous.py; a comment in torch/distributed/rendezvous.py says otherwise). The
addresses that the dead ranks wrote are still there, and a new rank that reads one before it is overwritten connects to no one.
Measured with torch 2.13, gloo, killing one rank after an all-reduce, two busy cores: without this module, 14 of 30 restarts
failed with two ranks, and 13 of 16 with three; with it, none of 60.

The restart count cannot separate the starts, because it differs between machines. The ranks of a start therefore agree on a name
that no earlier start had.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import Any

_PAUSE = 0.02  # seconds between two reads of the store


def agree_on_start(store: Any, rank: int, size: int, timeout: timedelta) -> str:
    """Return a name for this start: the same on all its ranks, and different from every earlier start's.

    Rank 0 publishes a new name as its question; every other rank answers with a name of its own; rank 0 lists the answers. A rank
    that finds its answer in the list can be sure that question and list are from this start: dead ranks cannot have listed it.
    Raises RuntimeError after `timeout` if a rank is missing.
    """
    mine = uuid.uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        keys = [f"start/{mine}/{other}" for other in range(1, size)]
        store.set("start/question", mine)
        for other, key in enumerate(keys, start=1):
            while not store.check([key]):
                _pause(deadline, f"rank {other}")
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
        _pause(deadline, "rank 0")


def _pause(deadline: float, missing: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"{missing} did not join the run within timeout_minutes")
    time.sleep(_PAUSE)
