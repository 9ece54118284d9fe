"""Results that appear whole or not at all.

A folder is made under another name in the same place and renamed when it is complete and on the disk. Nothing of a run that
failed remains; of one that was killed there remains a `.NAME.….partial` folder, which nothing takes for a data set.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from recognition.data.pack.parallel import warn
from utils.errors import UserError

PARTIAL = ".partial"


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a draft folder to fill; it becomes `path` when the block ends well, and is removed when it does not.

    `UserError`: `path` holds something already, or cannot be written (a full disk, permissions).
    """
    target = Path(os.path.abspath(path))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{path}: exists already; remove it or choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _mention_leftovers(target)
        draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=PARTIAL))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield draft
        _put_in_place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def new_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole or not at all, replacing an older one. `UserError` where it cannot be written."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        draft.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    """A file in a draft folder; its folder is made too. `UserError` where it cannot be written or is there already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise UserError(f"{path.name}: two images have this name in the folder {path.parent.name}; rename one") from error
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: object, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}); nothing was kept")


class CsvFile:
    """A CSV file in a draft folder, a row at a time. UTF-8; bytes of file names that are no UTF-8 are kept as they are."""

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path = path
        try:
            # newline="" and surrogateescape: names come out of the file exactly as they went in.
            self._file: io.TextIOWrapper = path.open("x", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise cannot_write(path, error) from error
        self._writer = csv.writer(self._file, lineterminator="\n")
        self.row(*columns)

    def row(self, *values: object) -> None:
        try:
            self._writer.writerow(values)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def __enter__(self) -> CsvFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            if kind is None:
                raise cannot_write(self.path, error) from error


def _put_in_place(draft: Path, target: Path) -> None:
    try:
        draft.chmod(0o755)
        _sync_folder(draft)
        draft.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mention_leftovers(target: Path) -> None:
    for leftover in sorted(target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}")):
        warn(f"{leftover}: left by a run that was killed, or belongs to one that is under way; delete it in the first case")
