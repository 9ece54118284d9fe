"""Code from outside the repository: plug-ins, named `module:name`, and optional packages.

Plug-ins are encoders, margins, augmentations, partitions, hooks and commands.

Importing a module runs its code. So a part is imported only if the user named its module: in the configuration file or on the
command line. A name that a checkpoint or an exported file contains is refused until the user gives it too.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from utils.errors import UserError

_NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
_trusted: set[str] = set()


def is_plugin(text: str) -> bool:
    """Whether a name is that of a plug-in, `module:name`."""
    return _NAME.fullmatch(text) is not None


def trust(names: Iterable[str]) -> None:
    """The user has given these names: those of plug-ins may be imported."""
    _trusted.update(name for name in names if is_plugin(name))


def build(text: str, where: str, *arguments: Any, **options: Any) -> Any:
    """What the object that `module:name` names returns for these arguments. Raises UserError as `load` does, and if it does not
    accept them."""
    part = load(text, where)
    try:
        return part(*arguments, **options)
    except TypeError as fault:
        raise UserError(f"{where}: {fault}; correct the plug-in or its options") from fault


def load(text: str, where: str, advice: str = "name it in the configuration") -> Any:
    """The object that `module:name` names. The module is looked for as Python does, then in the working directory.

    where: what names it, for errors. advice: how the user can give the name himself.
    Raises UserError if the user did not give the name, or it cannot be imported.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(f"{where}: expected module:name, such as my.module:build")
    if text not in _trusted:
        raise UserError(f"{where}: needs the plug-in {text}, whose code is not in the file; if you trust that code, {advice}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, name = match["module"], match["name"]
    try:
        found = importlib.import_module(module)
        return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")
    except Exception as fault:  # whatever the plug-in raises
        places = f"{os.getcwd()} and PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
        raise UserError(f"{where}: cannot be imported: {type(fault).__name__}: {fault} (looked in {places})") from fault


def require(package: str, requirements: str, where: str) -> ModuleType:
    """Import an optional package. Raises UserError if that fails.

    requirements: the file that pins it, such as `requirements/timm.txt`. where: what needs it, for errors.
    """
    try:
        return importlib.import_module(package)
    except ImportError as fault:
        reason = "is not installed" if isinstance(fault, ModuleNotFoundError) else f"cannot be imported ({fault})"
        remedy = f"pip install -r {requirements}"
        raise UserError(f"{where}: needs the package {package}, which {reason}: {remedy}") from fault
