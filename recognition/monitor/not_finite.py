"""What a run that stops over non-finite steps leaves behind for replay: OUTPUT/not_finite.json.

A batch is a function of (seed, epoch, number), so `BatchMaker.fill(epoch, number, …)` makes it again, to the last bit; the
file also names each image's record.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recognition.data.dataset import FaceDataset
from recognition.data.prefetch import DeviceBatch
from utils import dist

FILE = "not_finite.json"


class SkippedSteps:
    """Remembers the batches of this rank's last skipped steps; `write` puts all ranks' on disk. The verdict over a step comes
    after the step: `tried` keeps its batches until then."""

    def __init__(self, path: Path, dataset: FaceDataset, most: int):
        self.path, self._dataset = path, dataset
        self._steps: deque[dict[str, Any]] = deque(maxlen=most)
        self._last: dict[str, Any] = {}

    def tried(self, step: int, epoch: int, first_batch: int, batches: Sequence[DeviceBatch]) -> None:
        """A step whose verdict is not known yet; it used the batches `first_batch` and following of the epoch."""
        self._last = {
            "step": step, "epoch": epoch,
            "batches": [
                {"number": first_batch + number, "images": batch.indices_B.tolist(), "labels": batch.labels_B.tolist()}
                for number, batch in enumerate(batches)
            ],
        }  # fmt: skip

    @property
    def last_step(self) -> int:
        """The step that was tried last."""
        return self._last["step"]

    def skipped(self, why: str) -> None:
        """The step that was tried last was not learned from."""
        self._steps.append({"why": why, **self._last})

    def forget(self) -> None:
        self._steps.clear()

    def write(self, seed: int, batch_size: int) -> None:
        """Writes the file. Collective."""
        for step in self._steps:
            for batch in step["batches"]:
                batch["records"] = [self._record(image) for image in batch["images"]]
        ranks = dist.gather_objects(list(self._steps))
        document = {"seed": seed, "batch_size": batch_size, "ranks": [{"rank": r, "steps": s} for r, s in enumerate(ranks)]}
        dist.on_first_rank(lambda: self._store(json.dumps(document) + "\n"))

    def _store(self, text: str) -> None:
        self.path.write_text(text)

    def _record(self, image: int) -> list[str | int]:
        """[file, key] of an image."""
        shard, position = self._dataset.locate(image)
        reader = self._dataset.shards[shard]
        return [str(reader.path), int(reader.keys[position])]
