"""The images in a folder, and folders of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePath

from utils.errors import UserError
from utils.images import SUFFIXES


def identity_names(source: Path) -> list[str]:
    """The names of the folders in `source`, sorted. Raises UserError if there are none or `source` cannot be read."""
    try:
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise UserError(f"{source}: the folder cannot be read ({error.strerror})") from error
    if not names:
        raise UserError(f"{source}: contains no folders; expected one folder of images per identity")
    return names


def image_names(folder: Path) -> list[str]:
    """The names of the image files in a folder, sorted; other files are ignored. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_image_name(entry.name) and entry.is_file())
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}); fix its permissions or remove it") from error


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and PurePath(name).suffix.lower() in SUFFIXES


def suggest_folders(source: Path, is_wanted: Callable[[Path], bool]) -> str:
    """For an error about `source`: the folders one or two levels below that the user may have meant, or ""."""
    found = [str(folder) for pattern in ("*/", "*/*/") for folder in sorted(source.glob(pattern)) if is_wanted(folder)]
    return f", such as {' or '.join(found)}" if found else ""
