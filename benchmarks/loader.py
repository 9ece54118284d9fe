"""The speed of loading images from RecordIO files, compared with the bare decoder, NVIDIA DALI and MXNet.

    python -m benchmarks.loader                   # a few minutes
    python -m benchmarks.loader --quick           # under a minute
    python -m benchmarks.loader --json figures.json

Every bar is a ratio within one run: contestants take short turns, round after round, and the best round of each counts, because
other work on the machine can only slow a round down. "By processor time" divides by the processor time that the processes used
instead of the time that passed, so a busy machine affects it less. Peers are optional; if one is missing, the report says so.
Each needs its own environment:

    QGFACE_DALI_PYTHON=DALI_VENV/bin/python       # pip install -r requirements/dali.txt
    QGFACE_MXNET_PYTHON=MXNET_VENV/bin/python     # Python 3.8: pip install -r requirements/mxnet.txt

Images: 112x112 JPEGs of quality 95, from ../shared/faces/lfw_train or, if that is missing, of procedural faces; and the same
images raw, from memory (the page cache). Reads that are not cached are measured with noise. Exits with 0 only if every measured
bar holds.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from benchmarks.augmentations import compare_with_pillow
from benchmarks.race import Contestant, Forked, Peer, race
from benchmarks.storage import measure_cold_reads, measure_memory
from recognition.data import FaceDataset, RecordReader, RecordWriter
from recognition.data.batch import BatchMaker, BatchSpec
from recognition.data.demo_faces import make_demo_set
from recognition.data.loader import Loader
from recognition.data.pack.face_encoding import FaceFormat, encode
from recognition.data.sets.opening import open_faces
from utils.config import from_base
from utils.errors import exit_on_user_error
from utils.images import RAW_BYTES, decode_face

ROOT = Path(__file__).resolve().parent.parent
LFW = ROOT.parent / "shared" / "faces" / "lfw_train"
BATCH, WORKERS = 128, 2


@dataclass
class Figure:
    """One line of the report. holds: None if there is no bar, or nothing to compare with."""

    name: str
    value: float | None
    unit: str
    bar: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def holds(self) -> bool | None:
        if self.value is None or self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:,.3g}" if self.value < 100 else f"{self.value:,.0f}"
        bar = "" if self.bar is None else f"  ({'at most' if self.at_most else 'at least'} {self.bar:,g})"
        verdict = {True: "  holds", False: "  FAILS", None: ""}[self.holds]
        return f"{self.name:<58} {value:>12} {self.unit}{bar}{verdict}{f'   {self.note}' if self.note else ''}"


def make_images(folder: Path) -> tuple[Path, Path]:
    """RecordIO files of quality-95 JPEGs and of the same images raw, without metadata records (DALI does not support them)."""
    source = LFW
    if not source.is_dir():
        source = folder / "demo"
        make_demo_set(source, identities=60, images_per_identity=10, unseen=2, pairs=20)
    dataset = FaceDataset(source)
    files = folder / "jpeg.rec", folder / "raw.rec"
    with RecordWriter(files[0]) as jpegs, RecordWriter(files[1]) as raw:
        for number in range(len(dataset)):
            payload, label = dataset.read(number)
            jpeg = encode(decode_face(payload, dataset.where(number), "BGR"), FaceFormat(quality=95))
            jpegs.write(number, label, jpeg)
            raw.write(number, label, encode(decode_face(jpeg, number, "BGR"), FaceFormat(encoding="raw")))
    return files


def make_folder(dataset: FaceDataset, folder: Path) -> FaceDataset:
    """The same images in files of their own, one subfolder per identity."""
    for number in range(len(dataset)):
        payload, label = dataset.read(number)
        person = folder / f"{label:05d}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{number:06d}.jpg").write_bytes(payload)
    return open_faces(folder)


# ------------------------------------------------------------------------------------------------ measurements


def measure_batches(rec: Path, raw: Path, rounds: int) -> list[Figure]:
    """Flip-only batches on two workers: JPEGs, raw images, a folder; compared with bare decoding and DALI on two cores."""
    dataset = FaceDataset(rec)
    with contextlib.ExitStack() as at_the_end:
        files = make_folder(dataset, rec.parent / "files")
        contestants = {
            "decode": _decoding(dataset, at_the_end),
            "loader": _loading(dataset, at_the_end),
            "raw": _loading(FaceDataset(raw), at_the_end),
            "folder": _loading(files, at_the_end),
        }
        contestants |= _dali(rec, len(dataset), at_the_end)
        rates, busy = race(contestants, rounds)
    figures = [_dali_figures(kind, rates, busy) for kind in DALI_KINDS]
    return [
        Figure("cv2.imdecode alone, two processes", max(rates["decode"]), "images/s"),
        Figure("loader, flip only, two workers", max(rates["loader"]), "images/s"),
        Figure("  of cv2.imdecode alone", max(rates["loader"]) / max(rates["decode"]), "x", 0.85),
        Figure("by processor time: loader to cv2.imdecode alone", median(busy["loader"]) / median(busy["decode"]), "x"),
        Figure("loader, flip only, raw images, two workers", max(rates["raw"]), "images/s"),
        Figure("  to the loader on JPEGs", max(rates["raw"]) / max(rates["loader"]), "x", RAW_BAR),
        Figure("  by processor time", median(busy["raw"]) / median(busy["loader"]), "x"),
        Figure("loader, flip only, a folder of image files", max(rates["folder"]), "images/s"),
        Figure("  to RecordIO", max(rates["folder"]) / max(rates["loader"]), "x"),
        *(figure for of_kind in figures for figure in of_kind),
    ]


def _decoding(dataset: FaceDataset, at_the_end: contextlib.ExitStack) -> Contestant:
    """Bare decoding, of as many images as the other contestants' turns: the best of shorter turns would be luckier."""
    payloads = [np.frombuffer(dataset.read(number)[0], np.uint8) for number in range(len(dataset))]

    def decode(share: Sequence[np.ndarray]) -> None:
        for payload in share:
            cv2.imdecode(payload, cv2.IMREAD_COLOR_RGB)

    decoders = [Forked(partial(decode, payloads[worker::WORKERS])) for worker in range(WORKERS)]
    for decoder in decoders:
        at_the_end.callback(decoder.stop)

    def images_per_second() -> float:
        begin = time.perf_counter()
        for decoder in decoders:
            decoder.connection.send(True)
        for decoder in decoders:
            decoder.connection.recv()
        return len(payloads) / (time.perf_counter() - begin)

    return Contestant(images_per_second, [each.process_id for each in decoders])


def _loading(dataset: FaceDataset, at_the_end: contextlib.ExitStack) -> Contestant:
    config = from_base(batch_size=BATCH, num_classes=dataset.num_classes, views=1, queue="none", augmentation="none")
    loader = Loader(dataset, BatchSpec.of(config), WORKERS)
    at_the_end.callback(loader.close)
    epochs = itertools.count()

    def images_per_second() -> float:
        epoch, start = next(epochs), len(loader) % WORKERS  # the same number of batches for each worker
        begin = time.perf_counter()
        images = sum(len(batch.labels_B) for batch in loader.epoch(epoch, start))
        return images / (time.perf_counter() - begin)

    return Contestant(images_per_second, [os.getpid(), *loader.worker_ids])


def _dali(rec: Path, images: int, at_the_end: contextlib.ExitStack) -> dict[str, Contestant]:
    """DALI's pipelines by kind; none without DALI."""
    python = os.environ.get("QGFACE_DALI_PYTHON")
    contestants: dict[str, Contestant] = {}
    batches = max(1, images // BATCH)
    for kind in DALI_KINDS if python else ():
        peer = Peer(str(python), "dali_images.py", str(rec), str(rec.with_suffix(".idx")), str(BATCH), str(WORKERS), kind)
        at_the_end.callback(peer.stop)
        contestants[kind] = Contestant(partial(lambda peer: batches * BATCH / peer.seconds(batches), peer), [peer.process_id])
    return contestants


# `bytes` does the same as this loader. `normalised` is what arcface_torch trains from; it also normalises, which this project
# does on the device. DALI decodes with libjpeg-turbo, too, so that no loader of JPEGs is much faster; raw images are.
RAW_BAR, PAIRS_BAR = 3.0, 2000.0
DALI_KINDS = {"normalised": "DALI's CPU pipeline as in arcface_torch", "bytes": "DALI's CPU pipeline, bytes alone"}


def _dali_figures(kind: str, rates: dict[str, list[float]], busy: dict[str, list[float]]) -> list[Figure]:
    name = DALI_KINDS[kind]
    if kind not in rates:
        absent = "DALI is missing: set QGFACE_DALI_PYTHON"
        return [Figure(name, None, "images/s", note=absent), Figure("  loader on raw images to it", None, "x", RAW_BAR)]
    return [
        Figure(f"{name}, two threads", max(rates[kind]), "images/s"),
        Figure("  loader to it", max(rates["loader"]) / max(rates[kind]), "x"),
        Figure("  by processor time", median(busy["loader"]) / median(busy[kind]), "x"),
        Figure("  loader on raw images to it", max(rates["raw"]) / max(rates[kind]), "x", RAW_BAR),
    ]


def measure_pairs(rec: Path, raw: Path, rounds: int) -> list[Figure]:
    """Both views in one process, compared with decoding the same images, in small turns."""
    figures = []
    for augmentation, file, bar in (("qgface", rec, PAIRS_BAR), ("adaface", rec, None), ("qgface", raw, PAIRS_BAR)):
        dataset = FaceDataset(file)
        config = from_base(batch_size=BATCH, num_classes=dataset.num_classes, augmentation=augmentation)
        maker = BatchMaker(dataset, BatchSpec.of(config))
        images = np.empty(maker.spec.image_shape, np.uint8)
        decode, pairs = [], []
        for number in range(min(6 * rounds, maker.steps)):
            payloads = [np.frombuffer(dataset.read(i)[0], np.uint8) for i in maker.indices(0, number)[1].tolist()]
            begin = time.perf_counter()
            for payload in payloads:
                cv2.imdecode(payload, cv2.IMREAD_COLOR_RGB)
            middle = time.perf_counter()
            maker.fill(0, number, images)
            decode.append(BATCH / (middle - begin))
            pairs.append(BATCH / (time.perf_counter() - middle))
        if file == raw:
            figures.append(Figure(f"pairs of views, {augmentation}, raw images, one core", max(pairs), "pairs/s", bar))
            continue
        scaled = 7000 * max(pairs) / max(decode)
        figures.append(Figure(f"pairs of views, {augmentation}, one core, at 7,000 decoded/s", scaled, "pairs/s", bar))
        figures.append(Figure("  as measured", max(pairs), "pairs/s"))
    return figures


def measure_reads(rec: Path, rounds: int) -> list[Figure]:
    """Random records with their headers, on one core."""
    reader = RecordReader(rec)
    keys, count = reader.keys.tolist(), 5_000

    def records_per_second() -> float:
        wanted = random.choices(keys, k=count)
        begin = time.perf_counter()
        for key in wanted:
            reader.read(key)
        return count / (time.perf_counter() - begin)

    contestants = {"ours": Contestant(records_per_second, [os.getpid()])}
    python = os.environ.get("QGFACE_MXNET_PYTHON")
    mxnet = Peer(python, "mxnet_records.py", str(rec), str(rec.with_suffix(".idx"))) if python else None
    if mxnet:
        peer = mxnet
        contestants["mxnet"] = Contestant(lambda: count / peer.seconds(count), [peer.process_id])
    rates, _ = race(contestants, rounds)
    if mxnet:
        mxnet.stop()
    note = "" if mxnet else "MXNet is missing: set QGFACE_MXNET_PYTHON"
    return [
        Figure("random record reads, one core", max(rates["ours"]), "records/s", 60_000),
        Figure("MXNet's random record reads", max(rates["mxnet"]) if mxnet else None, "records/s", note=note),
        Figure("  ours to MXNet's", max(rates["ours"]) / max(rates["mxnet"]) if mxnet else None, "x", 1.0),
    ]


def measure_storage(folder: Path, quick: bool) -> list[Figure]:
    """The memory of workers and the start of an epoch with many records, and cold reads of a windowed shuffle."""
    memory = measure_memory(folder, 1_000_000 if quick else 10_000_000)
    megabytes = 200 if quick else 1000
    cold, raw = measure_cold_reads(folder, megabytes), measure_cold_reads(folder, megabytes, RAW_BYTES)
    many = f"{memory['records']:,.0f} records"
    return [
        Figure(
            f"worker's private memory, {many} minus 10,000", memory["private_growth_mb"], "MB", memory["bar_mb"], at_most=True
        ),
        Figure(f"first batch of an epoch, {many}", memory["first_batch_s"], "s", 1.0, at_most=True),
        Figure(f"opening the index, {many}", memory["open_s"], "s"),
        Figure("full shuffle, nothing cached, this disk", cold["full"], "records/s"),
        Figure("windowed shuffle, nothing cached, this disk", cold["windowed"], "records/s"),
        Figure("  windowed to full", cold["windowed"] / cold["full"], "x", 1.0),
        Figure("  both on a disk with 8 ms per seek and 150 MB/s, computed", cold["modelled_gain"], "x", 10.0),
        *(_cold_raw(shuffle, raw[shuffle]) for shuffle in ("full", "windowed")),
    ]


def _cold_raw(shuffle: str, rate: float) -> Figure:
    return Figure(
        f"{shuffle} shuffle of raw images, nothing cached", rate, "records/s", note=f"{rate * RAW_BYTES / 1e6:,.0f} MB/s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller files: under a minute")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rounds = 12 if arguments.quick else 60
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        rec, raw = make_images(Path(name))
        figures += _shown(measure_batches(rec, raw, rounds))
        figures += _shown(measure_pairs(rec, raw, rounds))
        figures += _shown(measure_reads(rec, rounds))
        figures += _shown(measure_storage(Path(name), arguments.quick))
        rows = compare_with_pillow(FaceDataset(rec), rounds // 3)
        figures += _shown([Figure(f"{row}, to Pillow's", ratio, "x", note=f"{time_us:.0f} us") for row, time_us, ratio in rows])
    if arguments.json:
        rows_json = [{**asdict(figure), "holds": figure.holds} for figure in figures]
        Path(arguments.json).write_text(json.dumps(rows_json, indent=1) + "\n")
    return 0 if all(figure.holds is not False for figure in figures) else 1


def _shown(figures: list[Figure]) -> list[Figure]:
    for figure in figures:
        print(figure, flush=True)
    return figures


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
