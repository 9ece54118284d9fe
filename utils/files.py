"""Files and folders that appear under their names whole or not at all.

Each is written under a temporary name in the same folder, and renamed once it is complete and on the disk. A write that
fails leaves nothing behind and keeps what had the name before. A killed process leaves a `.NAME.….partial`, which
nothing takes for a result.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from utils.errors import UserError

PARTIAL = ".partial"


@contextlib.contextmanager
def new_file(
    path: str | os.PathLike[str], *, parents: bool = False, label: str = "", advice: str = "nothing was kept"
) -> Iterator[Path]:
    """Yield the temporary path to write to. When the block ends it replaces `path`; when the block fails it is removed.

    parents: create missing parent folders. label: names the file in the error (default: `path`).
    UserError, ending with `advice`: the file cannot be written.
    """
    target = Path(path)
    partial = temporary_path(target)
    try:
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.replace(target)
    except OSError as error:
        raise cannot_write(label or target, error, advice) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_file(
    path: str | os.PathLike[str],
    content: str | bytes,
    *,
    parents: bool = False,
    label: str = "",
    advice: str = "nothing was kept",
) -> None:
    """Write a whole file, text as UTF-8; arguments and errors as for `new_file`."""
    with new_file(path, parents=parents, label=label, advice=advice) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder to fill. When the block ends it becomes `path`; when the block fails it is removed.

    UserError: `path` exists and is not an empty folder, or cannot be written.
    """
    target = Path(os.path.abspath(path))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{path}: exists already; remove it or choose another name")
    partial = temporary_path(target)
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        yield partial
        try:
            sync(partial)
            partial.rename(target)
            sync(target.parent)
        except OSError as error:
            raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def temporary_path(target: Path) -> Path:
    """A hidden path next to `target` that no other process, container or machine uses."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: object, cause: object, advice: str = "nothing was kept") -> UserError:
    """The error of a file or folder that cannot be written. cause: an OSError, or a text."""
    return UserError(f"{path}: cannot be written ({getattr(cause, 'strerror', None) or cause}); {advice}")


def path_inside(text: str, where: object) -> PurePosixPath:
    """`text`, which a list contains, as a relative path that stays in its folder. Raises UserError, beginning with `where`."""
    path = PurePosixPath(text)
    outside = path.is_absolute() or ".." in path.parts or not path.parts
    if outside or "\\" in text or not all(character >= " " and character != "\x7f" for character in text):
        problem = f"{text!r} is not a path inside the folder"
        raise UserError(f"{where}: {problem}; write it without '..', leading '/', backslash and control characters")
    return path
