"""The folders and CSV files that the packing tools write."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils import files
from utils.errors import UserError, warn
from utils.files import cannot_write


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`files.new_folder`, with a warning about temporary folders that killed runs left behind."""
    target = Path(os.path.abspath(path))
    for leftover in sorted(target.parent.glob(f".{glob.escape(target.name)}.*{files.PARTIAL}")):
        warn(f"{leftover}: left by a run that was killed, or in use by another run; delete it in the first case")
    with files.new_folder(path) as folder:
        yield folder


def write_new(path: Path, content: bytes) -> None:
    """Write a file in a folder that is being filled, creating its parents. Raises UserError if it exists or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise UserError(f"{path.name}: two images have this name in the folder {path.parent.name}; rename one") from error
    except OSError as error:
        raise cannot_write(path, error) from error


class CsvFile:
    """Writes a CSV file row by row, in a folder that is being filled. Raises UserError if it cannot be written.

    UTF-8; bytes of file names that are not UTF-8 are kept.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path = path
        try:
            # With newline="" and surrogateescape, names can be read back exactly.
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
