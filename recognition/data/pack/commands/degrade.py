"""A packed data set -> the same with some of its images degraded, and some of those under wrong labels.

    python -m recognition.data.pack degrade packed/ mixed/ --share 0.3
    python -m recognition.data.pack degrade packed/ noisy/ --share 0.3 --pixels 6 9 --wrong-labels 0.5

For experiments: what low-quality images in the training data do to an encoder, and whether a method copes with them. An image is
degraded as by distance, lens, sensor and compression: blurred, brought to --pixels, with noise, as a JPEG, and back to its size.
degraded.csv says which images they are, with the label that is right.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.degrade import degrade
from recognition.data.pack.face_encoding import FaceFormat, encode
from recognition.data.pack.listing import write_classes
from recognition.data.pack.output import CsvFile, new_folder
from recognition.data.pack.parallel import add_workers_argument, chunks, in_order, shared_object
from recognition.data.pack.rewrite import CHUNK, Int64Array, Rewritten, Source, read_part
from recognition.data.pack.shard_writer import ShardWriter, write_property
from utils.errors import UserError
from utils.images import decode_image

HELP = "a packed data set with some images degraded"
LIST = "degraded.csv"
PIXELS = (14, 24)
CHOICE, RECORDS, PAIRS = range(3)  # streams of random numbers of a seed: which images are degraded; how records, how pairs are
BoolArray = npt.NDArray[np.bool_]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a .rec file, or a folder with train.rec or shards")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--share", type=float, default=0.3, help="of the images that are degraded (%(default)s)")
    add_degradation_arguments(parser)
    parser.add_argument("--wrong-labels", type=float, default=0.0, help="share of the degraded under another label (%(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="of the degraded images' JPEG (%(default)s)")
    add_workers_argument(parser)


def add_degradation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=PIXELS, metavar=("LOW", "HIGH"), help="side of degraded faces (14 24)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")


@dataclass(frozen=True)
class Degradation:
    """low, high: bounds, both included, of the side in pixels that a face is brought to. seed: what is drawn depends on it and
    on the numbers given with an image, on nothing else."""

    low: int
    high: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise UserError(f"--pixels {self.low} {self.high}: expected 1 <= LOW <= HIGH")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")

    def __call__(self, payload: bytes, where: object, face: FaceFormat, *numbers: int) -> bytes:
        """An encoded face, degraded and encoded as `face` says. `UserError` names `where` if it cannot be decoded."""
        rng = np.random.default_rng([self.seed, *numbers])
        return encode(np.ascontiguousarray(degrade(decode_image(payload, where, "BGR"), rng, self.low, self.high)), face)


def choose(labels: Int64Array, classes: int, share: float, wrong: float, seed: int) -> tuple[BoolArray, Int64Array]:
    """(which images are degraded, the labels that they get), by `seed`. A wrong label is any of the others alike; an identity
    that would lose all of its images keeps one."""
    rng = np.random.default_rng([seed, CHOICE])
    degraded = rng.permutation(len(labels))[: round(share * len(labels))]
    mistaken = degraded[: round(wrong * len(degraded))]
    given = labels.copy()
    given[mistaken] = (labels[mistaken] + rng.integers(1, max(classes, 2), len(mistaken))) % classes
    for label in np.flatnonzero(np.bincount(given, minlength=classes) == 0).tolist():
        given[np.flatnonzero(labels == label)[0]] = label
    chosen = np.zeros(len(labels), bool)
    chosen[degraded] = True
    return chosen, given


def degraded_part(degradation: Degradation, face: FaceFormat, part: tuple[Int64Array, Int64Array, BoolArray]) -> Rewritten:
    """Runs in a worker: records of some images under the labels given, degraded where that is asked. An image's chance is its
    own, whatever the others are."""
    images, labels, chosen = part
    records = read_part((np.zeros(len(images), np.int64), images, labels))
    for row in np.flatnonzero(chosen).tolist():
        label, payload, id2 = records[row]
        number = int(images[row])
        records[row] = (label, degradation(payload, shared_object()[0].where(number), face, RECORDS, number), id2)
    return records


def run(arguments: argparse.Namespace) -> None:
    for name, value in (("--share", arguments.share), ("--wrong-labels", arguments.wrong_labels)):
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name} {value}: must lie in 0 to 1")
    low, high = arguments.pixels
    degradation = Degradation(low, high, arguments.seed)
    face = FaceFormat(quality=arguments.quality)
    with new_folder(arguments.out) as folder:
        source = Source.open(arguments.source)
        labels, classes = source.faces.labels(), len(source.names)
        chosen, given = choose(labels, classes, arguments.share, arguments.wrong_labels, arguments.seed)
        order = np.argsort(given, kind="stable")
        _write(folder, source, order, given, chosen, partial(degraded_part, degradation, face), arguments.workers)
        write_classes(folder, source.names, np.bincount(given, minlength=classes).tolist())
        with CsvFile(folder / LIST, ("image", "label", "right_label")) as table:
            for number in np.flatnonzero(chosen[order]).tolist():
                table.row(number, int(given[order[number]]), int(labels[order[number]]))
        if source.faces.image_size is not None:
            write_property(folder, classes, source.faces.image_size)
    wrong = int((given != labels).sum())
    print(f"{arguments.out}: {len(labels)} images, {int(chosen.sum())} of them degraded, {wrong} under a wrong label")


def _write(
    folder: Path, source: Source, order: Int64Array, given: Int64Array, chosen: BoolArray,
    work: partial[Rewritten], workers: int,
) -> None:  # fmt: skip
    places = [order[start:stop] for start, stop in chunks(len(order), CHUNK)]
    parts = [(images, given[images], chosen[images]) for images in places]
    with (
        ShardWriter(folder, len(order)) as writer,
        in_order(work, parts, workers, "degrading", len(order), advance=len, shared=[source.faces]) as records,
    ):
        for part in records:
            for label, payload, id2 in part:
                writer.write(label, payload, id2)
