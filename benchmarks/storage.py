"""Large data sets: the cost of millions of records to workers and epochs, and the gain of a windowed shuffle on a cold disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from recognition.data import FaceDataset, RecordWriter
from recognition.data.batch import BatchSpec, build_order
from recognition.data.loader import Loader
from recognition.data.order import CHUNK, WindowedShuffle
from recognition.data.readahead import Readahead
from utils.config import from_base

_LINES = 1 << 18  # of an index, written at once
_HOLE = 1 << 20  # offset of the first record that does not exist
_SEEK_SECONDS, _BYTES_PER_SECOND = 0.008, 150e6  # a rotating disk


def measure_memory(folder: Path, records: int) -> dict[str, float]:
    """How much more private memory a worker has after random reads with a large index than with a small one."""
    private = {}
    open_s = first_s = 0.0
    for count in (10_000, records):
        path = sparse_set(folder / f"sparse{count}", count, [b"an image"] * 2)
        begin = time.perf_counter()
        dataset = FaceDataset(path, strict=False)
        open_s = time.perf_counter() - begin
        config = from_base(batch_size=64, num_classes=1, views=1, queue="none", augmentation="none", on_error="skip")
        loader = Loader(dataset, BatchSpec.of(config), 1)
        begin = time.perf_counter()
        batches = loader.epoch(0)
        next(batches)
        first_s = time.perf_counter() - begin
        for _, _batch in zip(range(120), batches, strict=False):
            pass
        private[count] = private_bytes(loader.worker_ids[0])
        batches.close()
        loader.close()
    return {
        "records": records,
        "private_growth_mb": (private[records] - private[10_000]) / 1e6,
        "bar_mb": 16 * records / 8e6,
        "open_s": open_s,
        "first_batch_s": first_s,
    }


def private_bytes(pid: int) -> int:
    """Memory that a process does not share with any other (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


def sparse_set(folder: Path, records: int, images: list[bytes]) -> Path:
    """A data set with an index of `records`, of which only `images` (two or more) are real; the rest of the file is a hole.

    Reading any other record fails, but it still uses the index.
    """
    folder.mkdir()
    with RecordWriter(folder / "train.rec") as writer:
        for key, image in enumerate(images):
            writer.write(key, 0.0, image)
    with (folder / "train.idx").open("ab") as index:
        for first in range(len(images), records, _LINES):
            keys = np.arange(first, min(first + _LINES, records))
            columns = [number[:, None] // 10 ** np.arange(11, -1, -1) % 10 + ord("0") for number in (keys, _HOLE + 8 * keys)]
            tab, newline = np.full((len(keys), 1), ord("\t")), np.full((len(keys), 1), ord("\n"))
            np.concatenate([columns[0], tab, columns[1], newline], axis=1, dtype=np.uint8, casting="unsafe").tofile(index)
    os.truncate(folder / "train.rec", _HOLE + 8 * records)
    return folder


def measure_cold_reads(folder: Path, megabytes: int, record_bytes: int = 8000) -> dict[str, float]:
    """Records per second in the order of a full and of a windowed shuffle, from a file that is not in the page cache.

    `posix_fadvise(DONTNEED)` drops the file from the cache of this machine; a virtual machine's host may still hold it.
    """
    path = folder / f"cold{record_bytes}.rec"
    noise = np.random.default_rng(0).bytes(record_bytes)
    with RecordWriter(path) as writer:
        for key in range(megabytes * 1_000_000 // record_bytes):
            writer.write(key, 0.0, noise)
    dataset = FaceDataset(path)
    window = len(dataset) // 4
    rates = {
        shuffle: _cold_rate(dataset, BatchSpec.of(from_base(batch_size=96, shuffle=shuffle, shuffle_window=window)), share)
        for shuffle, share in (("full", 0.1), ("windowed", 1.0))
    }
    piece_bytes = CHUNK * path.stat().st_size / len(dataset)
    per_record_full = _SEEK_SECONDS + piece_bytes / CHUNK / _BYTES_PER_SECOND
    per_record_windowed = (_SEEK_SECONDS + piece_bytes / _BYTES_PER_SECOND) / CHUNK
    return {**rates, "modelled_gain": per_record_full / per_record_windowed}


def _cold_rate(dataset: FaceDataset, spec: BatchSpec, share: float) -> float:
    """Records per second over the first `share` of an epoch."""
    order = build_order(dataset, spec)
    with dataset.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    begin = time.perf_counter()
    readahead = Readahead(dataset, order.pieces(0, 0, 0, 1)) if isinstance(order, WindowedShuffle) else None
    batches = max(1, int(order.steps * share))
    for batch in range(batches):
        if readahead is not None:
            readahead.need(batch)
        positions = np.arange(batch * spec.batch_size, (batch + 1) * spec.batch_size)
        for image in order(0, positions).tolist():
            dataset.read(image)
    seconds = time.perf_counter() - begin
    if readahead is not None:
        readahead.close()
    return batches * spec.batch_size / seconds
