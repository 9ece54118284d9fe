"""What a run left out, written to its output folder.

- Damaged RECORDS (`on_error=skip`): counted, and each listed once in OUTPUT/skipped.txt.
- Skipped STEPS, whose numbers were not finite or whose records were all damaged: if there are `max_skipped` in a row, the run
  ends, and OUTPUT/not_finite.json lists their batches. A batch is a function of (seed, epoch, number), so
  `BatchMaker.fill(epoch, number, …)` makes it again, bit for bit; the file also names each image's record.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from recognition.data.prefetch import DeviceBatch
from recognition.data.records.format import RecordError
from utils import dist
from utils.files import cannot_write, numbered_lines, write_file

_HEADER = "file\tkey\tbyte offset\treason\n"
_Row = tuple[str, int | None, int, str]


class DamagedRecords:
    """Call `add` after each step that met damaged records, and `epoch_summary` at the end of each epoch."""

    def __init__(self, output: Path):
        self.path = output / "skipped.txt"
        self._listed = _read(self.path)
        self._this_epoch = 0

    def add(self, faults: Sequence[RecordError]) -> int:
        """List the damaged records of all ranks on disk at once; return their number. Collective."""
        mine: list[_Row] = [(fault.path, fault.key, fault.offset, fault.problem) for fault in faults]
        rows = [row for rank in dist.gather_objects(mine) for row in rank]
        self._this_epoch += len(rows)
        new = [row for row in dict.fromkeys(rows) if _place(row) not in self._listed]
        self._listed.update(map(_place, new))
        dist.on_first_rank(lambda: self._append(new))
        return len(rows)

    def epoch_summary(self) -> str:
        """A line about this epoch, for the user; "" if no record was left out."""
        count, self._this_epoch = self._this_epoch, 0
        if not count:
            return ""
        return f"{count} damaged records were left out; {len(self._listed)} different ones so far, listed in {self.path}"

    def _append(self, rows: list[_Row]) -> None:
        if not rows:
            return
        text = "".join("\t".join("" if field is None else str(field) for field in row) + "\n" for row in rows)
        try:
            is_new = not self.path.exists()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_HEADER + text if is_new else text)
        except OSError as error:
            raise cannot_write(self.path, error, "set output= to a writable folder") from error


def _place(row: _Row) -> tuple[str, str]:
    return row[0], str(row[2])


def _read(path: Path) -> set[tuple[str, str]]:
    """(file, byte offset) of the records that this run listed before it was interrupted."""
    if not path.is_file():
        return set()
    lines = (line.split("\t") for _, line in islice(numbered_lines(path), 1, None))
    return {(fields[0], fields[2]) for fields in lines if len(fields) >= 3}


class SkippedSteps:
    """Counts the steps that were skipped in a row (`in_a_row`) and keeps the batches of this rank's last `most` ones.

    Whether a step was skipped is known only after it: `started` keeps its batches until `applied` or `skipped` is called.
    record_of: an image's number in its batch -> its file and key.
    """

    def __init__(self, output: Path, record_of: Callable[[int], tuple[str, int]], most: int):
        self.path = output / "not_finite.json"
        self.in_a_row = 0
        self._record_of = record_of
        self._steps: deque[dict[str, Any]] = deque(maxlen=most)
        self._last: dict[str, Any] = {}

    def started(self, step: int, epoch: int, first_batch: int, batches: Sequence[DeviceBatch]) -> None:
        """`step` used `batches`, of which the first is number `first_batch` of the epoch."""
        listed = [
            {"number": first_batch + number, "images": batch.indices_B.tolist(), "labels": batch.labels_B.tolist()}
            for number, batch in enumerate(batches)
        ]
        self._last = {"step": step, "epoch": epoch, "batches": listed}

    def applied(self) -> None:
        """Note that the last step was applied: skipped steps before it no longer count."""
        self.in_a_row = 0
        self._steps.clear()

    def skipped(self, reason: str) -> int:
        """Note that the last step was skipped, and return its number."""
        self.in_a_row += 1
        self._steps.append({"why": reason, **self._last})
        return self._last["step"]

    def write(self, seed: int, batch_size: int) -> None:
        """Write the batches of all ranks to `path`. Collective."""
        for step in self._steps:
            for batch in step["batches"]:
                batch["records"] = list(map(self._record_of, batch["images"]))
        ranks = dist.gather_objects(list(self._steps))
        document = {"seed": seed, "batch_size": batch_size, "ranks": [{"rank": r, "steps": s} for r, s in enumerate(ranks)]}
        dist.on_first_rank(lambda: write_file(self.path, json.dumps(document) + "\n"))
