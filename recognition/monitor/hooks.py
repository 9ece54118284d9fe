"""Hooks: code of the user's that watches a run (`hooks=("my.module:Hook",)`). Rank 0 calls them; they change nothing.

A hook is a class without arguments. It has any of these methods:

    start(config, output)           before the first step; config: the resolved configuration, output: the run's folder
    step(step, figures)             at each report (`frequent`): figures as in metrics.jsonl
    verification(step, results)     set name -> metric -> value
    checkpoint(step, folder)        a checkpoint was written, or is being written (`async_save`)
    end(step, results)              after the last step ({} if the run was stopped)

A hook that raises an error is named in one warning and not called again; the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils import plugins
from utils.errors import UserError, warn

POINTS = ("start", "step", "verification", "checkpoint", "end")


class Hooks:
    """The hooks of a run; none on the other ranks. trackers: further hooks, by name (trackers.py).

    Raises UserError if one cannot be imported or built, or has none of the methods.
    """

    def __init__(self, names: Sequence[str], is_first: bool, trackers: Mapping[str, Any] | None = None):
        self._hooks = {f"hook {name}": _build(name) for name in names} | dict(trackers or {})
        if not is_first:
            self._hooks = {}

    def __call__(self, point: str, *values: Any) -> None:
        """Call a method of all hooks that have it."""
        for name, hook in list(self._hooks.items()):
            try:
                if method := getattr(hook, point, None):
                    method(*values)
            except Exception as fault:  # noqa: BLE001 - whatever the hook raises
                message = " ".join(str(fault).split())
                warn(f"{name}: {point} raised {type(fault).__name__}: {message}; it is not called again")
                del self._hooks[name]


def _build(name: str) -> Any:
    where = f"hooks: {name!r}"
    try:
        hook = plugins.load(name, where)()
    except UserError:
        raise
    except Exception as fault:
        raise UserError(f"{where}: cannot be built: {type(fault).__name__}: {fault}") from fault
    if not any(hasattr(hook, point) for point in POINTS):
        raise UserError(f"{where}: has none of the methods {', '.join(POINTS)}")
    return hook
