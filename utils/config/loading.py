"""Loading of configurations: files, `key=value` arguments and saved runs."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.base import config as base
from utils import dialect, plugins
from utils.config.rules import PLAN_RULES, RULES, Rule
from utils.config.schema import Config, check, entries_of
from utils.dialect import Entry
from utils.errors import UserError
from utils.files import refuse_utf16

_DEFAULTS = entries_of(base, "configs/base.py: ")


def load(
    path: str,
    overrides: Sequence[str] = (),
    explain: Callable[[str], None] = lambda table: None,
    gpu: bool | None = None,
    plan: bool = False,
) -> Config:
    """Load a configuration file (with or without `.py`), apply `key=value` arguments, and check the result.

    explain: called with a table of what each key became, if the file is one of arcface_torch's.
    gpu: whether the training of such a file will run on a GPU; None: as on this machine. plan: the configuration is only
    planned with; then num_image of such a file counts if there are no data.
    """
    file = _find(path)
    entries, arguments, problems = entries_of(_run(file), f"{file}: "), [], []
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if equals:
            arguments.append((f"argument {argument}", key, _parse(text)))
        else:
            problems.append(f"argument {argument}: expected key=value, such as lr=0.1")
    if dialect.is_dialect({key: value for _, key, value in entries}):
        rows, more = dialect.translate(entries, arguments, gpu, plan)
        entries, problems = [(row.where, *setting) for row in rows for setting in row.settings.items()], [*problems, *more]
        explain(dialect.table(rows))
    else:
        entries += arguments
    config = _build(entries, problems)
    plugins.trust([config.network, config.margin, config.augmentation, config.partition, *config.hooks])
    return config if config.output else dataclasses.replace(config, output=f"runs/{file.stem}")


def from_base(**changes: Any) -> Config:
    """configs/base.py with some changes, checked like a file."""
    return _build(entries_of(changes))


def load_json(path: Path) -> Config:
    """Load a configuration that `Config.save` wrote. Keys that did not exist at that time have today's defaults."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:  # ValueError: not JSON, not UTF-8, a number with thousands of digits
        raise UserError(f"{path}: cannot be read as a saved configuration ({fault})") from fault
    if not isinstance(values, dict):
        raise UserError(f"{path}: cannot be read as a saved configuration ({type(values).__name__} instead of keys and values)")
    return _build(entries_of(values, f"{path}: "), plan_rules=[])


def _build(entries: Sequence[Entry], problems: Sequence[str] = (), plan_rules: Sequence[Rule] = PLAN_RULES) -> Config:
    """The configuration that results from `entries` on top of configs/base.py."""
    return Config(**check([*_DEFAULTS, *entries], [*RULES, *plan_rules], problems))


def _find(path: str) -> Path:
    for file in (Path(path), Path(f"{path}.py")):
        if file.is_file():
            return file
    near = difflib.get_close_matches(Path(path).stem, [p.stem for p in Path(path).parent.glob("*.py")], 1)
    hint = f"; did you mean {Path(path).parent / near[0]}?" if near else ""
    raise UserError(f"{path}: no such configuration file{hint}")


def _run(file: Path) -> dict[str, Any]:
    """The `config` that a configuration file defines."""
    try:
        refuse_utf16(file)
        values = runpy.run_path(str(file)).get("config")
    except UserError:
        raise
    except Exception as fault:
        raise UserError(f"{file}: the file does not run: {type(fault).__name__}: {fault}") from fault
    if not isinstance(values, dict):
        raise UserError(f"{file}: must define an easydict `config` (see configs/base.py)")
    return {str(key): value for key, value in values.items()}


def _parse(text: str) -> Any:
    """The value of a `key=value` argument: a Python literal, true or false in any case, or else text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)
