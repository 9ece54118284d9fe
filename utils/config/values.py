"""Values of settings: conversion to a setting's type, without loss."""

from __future__ import annotations

import json
import math
import operator
import os
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

_HOLDS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_PLAIN = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def as_type(value: Any, wanted: Any) -> Any:
    """`value` in the type `wanted`, without loss. Raises ValueError with a description of that type."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        value, bounds = as_type(value, parts[0]), parts[1:]
        if not all(_HOLDS[symbol](value, limit) for symbol, limit in bounds):
            raise ValueError(" and ".join(f"{symbol} {limit}" for symbol, limit in bounds))
        return value
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in parts):
            raise ValueError("one of " + ", ".join(map(repr, parts)))
        return value
    if origin is tuple:
        return _as_tuple(value, parts)
    if origin is dict:
        return _as_options(value)
    if str in parts:
        return _as_names(value)
    if types.NoneType in parts:
        return None if value is None or value == "none" else as_type(value, parts[0])
    return _as_plain(value, wanted)


def _as_plain(value: Any, wanted: Any) -> Any:
    """`value` as a number, a text or a truth value. Errors as above."""
    if wanted is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(_PLAIN[wanted])
    if wanted is int and abs(value) >= 2**63:
        raise ValueError("a whole number below 2**63")
    if wanted is float and not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def _as_options(value: Any) -> dict[str, Any]:
    """Keyword arguments, of values that JSON can store."""
    try:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        raise ValueError("options, such as {'width': 64}") from None


def _as_names(value: Any) -> str | tuple[str, ...]:
    """One name, or several: `a,b` or a list."""
    if isinstance(value, str) and ("," not in value or os.path.exists(value)):
        return value
    if not isinstance(value, (str, list, tuple)):
        raise ValueError("text, or a list of texts")
    names = _as_tuple(value, (str, ...))
    return names[0] if len(names) == 1 else names or ""


def _as_tuple(value: Any, parts: Sequence[Any]) -> tuple[Any, ...]:
    if parts[-1] is Ellipsis and isinstance(value, str):  # val_targets=lfw,agedb_30
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif parts[-1] is Ellipsis and isinstance(value, (int, float)):  # milestones=6
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list")
    if parts[-1] is Ellipsis:
        parts = [parts[0]] * len(value)
    if len(value) != len(parts):
        raise ValueError(f"a list of {len(parts)}")
    try:
        return tuple(as_type(item, part) for item, part in zip(value, parts, strict=True))
    except ValueError as fault:
        raise ValueError(f"a list in which each entry is {fault}") from None


def expand_user(path: str) -> str:
    """A path with the user's folder in place of `~`, as shells expand it. Raises ValueError if there is no such user."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"a path that exists: there is no user {path[1:].split('/')[0]!r}")
    return expanded
