"""The records that a run has left out (`on_error=skip`): counted, and each listed once in OUTPUT/skipped.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recognition.data.records.format import RecordError
from utils import dist
from utils.errors import UserError

_HEADER = "file\tkey\tbyte offset\treason\n"
_Row = tuple[str, int | None, int, str]


class SkippedRecords:
    """`add` after each step that met some; `epoch_line` at the end of an epoch says how many there were."""

    def __init__(self, output: Path):
        self.path = output / "skipped.txt"
        self._listed = _read(self.path)
        self._this_epoch = 0

    def add(self, faults: Sequence[RecordError]) -> int:
        """Lists the ranks' damaged records on disk at once; returns how many they are. Collective."""
        mine: list[_Row] = [(fault.path, fault.key, fault.offset, fault.problem) for fault in faults]
        rows = [row for rank in dist.gather_objects(mine) for row in rank]
        self._this_epoch += len(rows)
        new = [row for row in dict.fromkeys(rows) if _place(row) not in self._listed]
        self._listed.update(map(_place, new))
        dist.on_first_rank(lambda: self._append(new))
        return len(rows)

    def epoch_line(self) -> str:
        """What to print at the end of an epoch; empty where nothing was left out."""
        count, self._this_epoch = self._this_epoch, 0
        if not count:
            return ""
        return f"{count} damaged records were left out; {len(self._listed)} different ones so far, listed in {self.path}"

    def _append(self, rows: list[_Row]) -> None:
        if not rows:
            return
        text = "".join("\t".join("" if field is None else str(field) for field in row) + "\n" for row in rows)
        try:
            fresh = not self.path.exists()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_HEADER + text if fresh else text)
        except OSError as fault:
            raise UserError(f"{self.path}: cannot be written ({fault.strerror}); set output= to a writable folder") from fault


def _place(row: _Row) -> tuple[str, str]:
    return row[0], str(row[2])


def _read(path: Path) -> set[tuple[str, str]]:
    """(file, byte offset) of the records that an earlier part of this run has listed."""
    if not path.is_file():
        return set()
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:])
    return {(fields[0], fields[2]) for fields in lines if len(fields) >= 3}
