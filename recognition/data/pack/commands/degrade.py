"""Packed data set -> a copy in which some images are degraded, and some of those have wrong labels.

    python -m recognition.data.pack degrade packed/ mixed/ --share 0.3
    python -m recognition.data.pack degrade packed/ noisy/ --share 0.3 --pixels 6 9 --wrong-labels 0.5

For experiments on what low-quality training images do to an encoder, and on whether a method copes with them. Degradation
imitates distance, lens, sensor and compression: blur, downscaling to --pixels, noise, JPEG, and upscaling to the original size.
degraded.csv lists the degraded images, with their correct labels.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from recognition.data.degrade import degrade
from recognition.data.pack.arguments import add_out_folder_argument, add_packed_set_argument
from recognition.data.pack.face_encoding import FaceFormat, encode
from recognition.data.pack.output import CsvFile, new_folder
from recognition.data.pack.rewrite import Int64Array, Rewritten, Selection, Source, read_records, write_selection
from recognition.data.parallel import add_workers_argument, shared_object
from utils.errors import UserError
from utils.images import decode_image

HELP = "packed data set with some images degraded"
LIST = "degraded.csv"
PIXELS = (14, 24)
CHOICE, RECORDS, PAIRS = range(3)  # random streams of a seed: the choice of images; degrading records; degrading pairs
BoolArray = npt.NDArray[np.bool_]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser, pictures=True)
    add_out_folder_argument(parser)
    parser.add_argument("--share", type=float, default=0.3, help="share of images to degrade (%(default)s)")
    add_degradation_arguments(parser)
    parser.add_argument(
        "--wrong-labels", type=float, default=0.0, help="share of degraded images that get another label (%(default)s)"
    )
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of degraded images (%(default)s)")
    add_workers_argument(parser)


def add_degradation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a `Degradation`."""
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=PIXELS, metavar=("LOW", "HIGH"), help="side of degraded faces (14 24)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")


@dataclass(frozen=True)
class Degradation:
    """Degrades encoded faces.

    low, high: inclusive bounds of the side, in pixels, to which a face is downscaled. seed: the random numbers depend only on it
    and on the numbers given with an image. Raises UserError for a value out of range.
    """

    low: int
    high: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise UserError(f"--pixels {self.low} {self.high}: expected 1 <= LOW <= HIGH")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")

    def __call__(self, payload: bytes, where: object, face_format: FaceFormat, *numbers: int) -> bytes:
        """Degrade an encoded face and encode it anew. Raises UserError, beginning with `where`, if it cannot be decoded."""
        rng = np.random.default_rng([self.seed, *numbers])
        degraded = degrade(decode_image(payload, where, "BGR"), rng, self.low, self.high)
        return encode(np.ascontiguousarray(degraded), face_format)


def choose(labels: Int64Array, classes: int, share: float, wrong: float, seed: int) -> tuple[BoolArray, Int64Array]:
    """Which images are degraded, and the label that each image gets; a function of `seed`.

    A wrong label is drawn uniformly from the others. An identity that would lose all of its images keeps one.
    """
    rng = np.random.default_rng([seed, CHOICE])
    degraded = rng.permutation(len(labels))[: round(share * len(labels))]
    relabelled = degraded[: round(wrong * len(degraded))]
    new_labels = labels.copy()
    new_labels[relabelled] = (labels[relabelled] + rng.integers(1, max(classes, 2), len(relabelled))) % classes
    for label in np.flatnonzero(np.bincount(new_labels, minlength=classes) == 0).tolist():
        new_labels[np.flatnonzero(labels == label)[0]] = label
    is_degraded = np.zeros(len(labels), bool)
    is_degraded[degraded] = True
    return is_degraded, new_labels


@dataclass
class DegradedSelection(Selection):
    """is_degraded: bool [N], which images to degrade."""

    is_degraded: BoolArray


def degraded_records(degradation: Degradation, face_format: FaceFormat, part: DegradedSelection) -> Rewritten:
    """Runs in a worker: records under their new labels, some degraded. An image's random numbers do not depend on the others."""
    records = read_records(part)
    for row in np.flatnonzero(part.is_degraded).tolist():
        label, payload, id2 = records[row]
        image = int(part.image[row])
        records[row] = (label, degradation(payload, shared_object()[0].where(image), face_format, RECORDS, image), id2)
    return records


def run(arguments: argparse.Namespace) -> None:
    for name, value in (("--share", arguments.share), ("--wrong-labels", arguments.wrong_labels)):
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name} {value}: must be from 0 to 1")
    low, high = arguments.pixels
    work = partial(degraded_records, Degradation(low, high, arguments.seed), FaceFormat(quality=arguments.quality))
    with new_folder(arguments.out) as folder:
        source = Source.open(arguments.source)
        labels, count = source.faces.labels(), len(source.faces)
        is_degraded, new_labels = choose(labels, len(source.names), arguments.share, arguments.wrong_labels, arguments.seed)
        everything = DegradedSelection(np.zeros(count, np.int64), np.arange(count), new_labels, is_degraded)
        selection = everything.grouped()
        write_selection(
            folder, [source], selection, source.names, workers=arguments.workers, with_list=False, title="degrading", work=work
        )
        with CsvFile(folder / LIST, ("image", "label", "right_label")) as table:
            for number in np.flatnonzero(selection.is_degraded).tolist():
                table.row(number, int(selection.label[number]), int(labels[selection.image[number]]))
    degraded, wrong = int(is_degraded.sum()), int((new_labels != labels).sum())
    print(f"{arguments.out}: {count} images, {degraded} of them degraded, {wrong} with a wrong label")
