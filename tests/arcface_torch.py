"""Configuration files as arcface_torch's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def arcface_torch_file(path: Path, values: Mapping[str, Any]) -> str:
    """Write a file with these keys and values, in arcface_torch's form; return its path."""
    lines = "".join(f"config.{key} = {value!r}\n" for key, value in values.items())
    path.write_text(f"from easydict import EasyDict as edict\n\nconfig = edict()\n{lines}")
    return str(path)
