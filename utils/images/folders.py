"""The image files in a folder, and what is left out of it.

A file is an image by its suffix, or by its first bytes if it has no suffix. Hidden files, those of operating systems and
`pack align`'s lists are ignored; everything else that is not read is counted.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePath

from utils.errors import UserError, warn
from utils.images.headers import SIGNATURE_BYTES, SUFFIXES, image_kind

_IGNORED = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
    | {"landmarks.csv", "skipped.csv"}
)
_NOT_SUPPORTED = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg"})


class LeftOut:
    """Counts what is not read, by reason. known: names that are read by other means."""

    def __init__(self, *known: str):
        self._known, self._counts, self._first = known, Counter[str](), ""

    def add(self, reason: str, path: Path) -> None:
        if path.name not in self._known:
            self._first = self._first or str(path)
            self._counts[reason] += 1

    def __bool__(self) -> bool:
        return bool(self._counts)

    def warn(self, folder: Path) -> None:
        """Print one warning, beginning with `folder`, if anything was left out."""
        if self:
            warn(f"{folder}: {self}")

    def __str__(self) -> str:
        """Such as `5 files were left out: 3 .avif (not supported), 2 broken links; the first: faces/Ada/1.avif`."""
        total = self._counts.total()
        kinds = ", ".join(
            f"{count} {reason}{'s' if count > 1 and not reason.startswith('.') else ''}"
            for reason, count in self._counts.most_common()
        )
        return f"{total} {'file was' if total == 1 else 'files were'} left out: {kinds}; the first: {self._first}"


def image_names(folder: Path, left_out: LeftOut | None = None) -> list[str]:
    """The names of the image files in a folder, sorted. Raises UserError if it cannot be read.

    left_out: receives all other files, and the folders in it.
    """
    names, folders = scan_folder(folder, left_out)
    if left_out is not None:
        for name in folders:
            left_out.add("nested folder", folder / name)
    return names


def find_images(root: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The image files below a folder at any depth, sorted; left_out, errors: as above.

    Links to folders are followed, last, unless they lead to a folder that has been read.
    """
    found, seen, folders, links = [], set(), [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        place = os.path.realpath(folder)
        if place in seen:
            continue
        seen.add(place)
        names, below = scan_folder(folder, left_out)
        found += [folder / name for name in names]
        for path in (folder / name for name in below):
            (links if path.is_symlink() else folders).append(path)
    return sorted(found)


def scan_folder(folder: Path, left_out: LeftOut | None = None) -> tuple[list[str], list[str]]:
    """The names of the image files and of the folders in a folder, sorted. left_out: receives all else. Errors as above."""
    images, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _IGNORED:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif not (reason := _reason(entry)):
                    images.append(entry.name)
                elif left_out is not None:
                    left_out.add(reason, folder / entry.name)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}); fix its permissions or remove it") from error
    return sorted(images), sorted(folders)


def _reason(entry: os.DirEntry[str]) -> str:
    """Why a file is not read; "" if it is an image."""
    if not entry.is_file():
        return "broken link" if entry.is_symlink() else "special file"
    suffix = PurePath(entry.name).suffix.lower()
    if suffix in SUFFIXES:
        return ""
    if suffix and not suffix[1:].isdigit():
        return f"{suffix} (not supported)" if suffix in _NOT_SUPPORTED else suffix
    try:
        with open(entry.path, "rb") as file:
            image_kind(file.read(SIGNATURE_BYTES))
    except OSError:  # reading the image reports it
        return ""
    except ValueError:
        return "unrecognised file"
    return ""
