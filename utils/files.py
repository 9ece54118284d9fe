"""Files and folders that appear under their names whole or not at all, and the reader of text that users provide.

Each is written under a temporary name in the same folder, and renamed once it is complete and on the disk. A write that
fails leaves nothing behind and keeps what had the name before. A killed process leaves a `.NAME.….partial`, which
nothing takes for a result.

Text may have a byte-order mark, any line ends, blank lines, and no newline at its end. Errors name file and line.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import secrets
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TextIO

from utils.errors import UserError

PARTIAL = ".partial"
_LONGEST_LINE = 100_000  # characters
UNREADABLE_NPZ = (
    OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, RuntimeError, SyntaxError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise for a damaged .npz, depending on where the damage is."""


@contextlib.contextmanager
def new_file(
    path: str | os.PathLike[str], *, parents: bool = False, label: str = "", advice: str = "nothing was kept"
) -> Iterator[Path]:
    """Yield the temporary path to write to. When the block ends it replaces `path`; when the block fails it is removed.

    parents: create missing parent folders. label: names the file in the error (default: `path`).
    UserError, ending with `advice`: the file cannot be written.
    """
    refuse_address(path, label)
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

    Raises UserError if `path` exists and is not an empty folder, or cannot be written.
    """
    refuse_address(path)
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


def refuse_address(path: str | os.PathLike[str], label: str = "") -> None:
    """Raise UserError for an output path such as `s3://x`, which would become a folder `s3:`. label: names it in the error."""
    if is_address(str(path)):
        raise UserError(f"{label or path}: is an address; give a path on a mounted file system")


def is_address(path: str) -> bool:
    """Whether a path begins with a scheme, such as `s3://`, of which `pathlib` leaves `s3:/`."""
    return re.match(r"[A-Za-z][\w+.-]*:(/|$)", path) is not None


def cannot_write(path: object, cause: object, advice: str = "nothing was kept") -> UserError:
    """The error of a file or folder that cannot be written. cause: an OSError, or a text."""
    return UserError(f"{path}: cannot be written ({getattr(cause, 'strerror', None) or cause}); {advice}")


def path_inside(text: str, where: object) -> PurePosixPath:
    """`text`, an entry of a list, as a relative path. Raises UserError, beginning with `where`, if it leaves its folder."""
    path = PurePosixPath(text)
    outside = path.is_absolute() or ".." in path.parts or not path.parts
    if outside or "\\" in text or not all(character >= " " and character != "\x7f" for character in text):
        problem = f"{text!r} is not a path inside the folder"
        raise UserError(f"{where}: {problem}; write it without '..', leading '/', backslash and control characters")
    return path


# ------------------------------------------------------------------------------------------------ text


@contextlib.contextmanager
def open_text(path: Path, *, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 text file for reading, with or without a byte-order mark. newline, errors: as for `open`.

    UserError, also for reads within the block: the file cannot be read or is not UTF-8 (names the line).
    """
    try:
        refuse_utf16(path)
        with path.open(encoding="utf-8-sig", newline=newline, errors=errors) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise UserError(f"{path}: line {_first_not_utf8(path)}: is not UTF-8 text; save the file as UTF-8") from None


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (`PATH: line N`, text) of each line that is not blank, stripped. Raises UserError as `open_text` does."""
    number = 0
    with open_text(path) as file:
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise UserError(f"{path}: line {number}: has more than {_LONGEST_LINE:,} characters; is this a text file?")
            if text := line.strip():
                yield f"{path}: line {number}", text


def refuse_utf16(path: Path) -> None:
    """Raise UserError if a file begins like UTF-16 or UTF-32 text; OSError if it cannot be read."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise UserError(f"{path}: line 1: is UTF-16 text, or not text; save the file as UTF-8")


def _first_not_utf8(path: Path) -> int:
    """The number, from 1, of the first line that is not UTF-8."""
    decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        while block := file.readline(_LONGEST_LINE):
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                break
            number += block.endswith(b"\n")
    return number
