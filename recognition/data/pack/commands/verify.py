"""Checks a data set completely and prints a table. Exit code 0 if it has no fault, otherwise 2.

    python -m recognition.data.pack verify packed/           # or a folder with one subfolder per identity, or a text list

Every image is read and decoded. Labels must be 0 … C-1 without gaps. All images must have the size in the `property` file, those
in files of their own 112x112. In a packed set, the index must list every record of its file, each under its own key, and the
lists (classes.csv, images.csv) must fit.
Images that repeat another byte for byte are named: within one identity they are no fault, under two one label must be wrong.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prettytable import PrettyTable

from recognition.data.dataset import FaceDataset
from recognition.data.pack.arguments import add_packed_set_argument
from recognition.data.pack.listing import ImageList, class_names, image_list
from recognition.data.parallel import add_workers_argument, chunks, in_order, shared_object
from recognition.data.records.index import scan_file
from recognition.data.records.reader import RecordReader
from recognition.data.sets.opening import open_faces
from utils.errors import UserError, warn
from utils.images import FACE_SIZE, decode_face_into, decode_image

HELP = "check a data set completely"
CHUNK = 256
MAX_IMAGE_MESSAGES, MAX_NAMED, MAX_MESSAGES = 20, 10, 50
OK, UNREADABLE, UNDECODABLE = range(3)

MISSING = "files without an index"
UNLISTED = "records missing from the index"
NOWHERE = "index entries that point to no complete record"
WRONG_KEY = "index entries with another record's key"
DAMAGED = "damaged places in the files"
INDEX_FAULTS = (MISSING, UNLISTED, NOWHERE, WRONG_KEY, DAMAGED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser, pictures=True)
    parser.add_argument("--any-labels", action="store_true", help="labels may have gaps, as in benchmark sets (tinyface, scface)")
    parser.add_argument("--any-size", action="store_true", help="images may differ in size")
    add_workers_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    report = verify(arguments.source, arguments.workers, arguments.any_labels, arguments.any_size)
    print(report.table())
    for message in report.messages:
        warn(message)
    if report.faults:
        remedy = "`subset --drop-damaged` or `--drop-repeated` makes a set without such images, `reindex` a new index"
        raise UserError(f"{arguments.source}: {report.faults} kinds of fault; {remedy}")


# ------------------------------------------------------------------------------------------------ the images

Finding = tuple[int, int, int, int, int, str]  # status, label, digest, height, width, message


@dataclass
class ImageChecks:
    """The results of `check_images`: arrays [images] in the data set's order, and the messages of the first faults.

    status: OK, UNREADABLE (the record) or UNDECODABLE (its image). label: int64, -1 if unreadable. digest: uint64, of the encoded
    image. height, width: of the decoded image, 0 if there is none.
    """

    status: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int64]
    digest: npt.NDArray[np.uint64]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    messages: list[str]


def check_images(faces: FaceDataset, workers: int) -> ImageChecks:
    """Read and decode every image. faces: opened with `strict=False`, so that damage is counted and not raised."""
    count = len(faces)
    checks = ImageChecks(
        status=np.zeros(count, np.uint8),
        label=np.full(count, -1, np.int64),
        digest=np.zeros(count, np.uint64),
        height=np.zeros(count, np.int32),
        width=np.zeros(count, np.int32),
        messages=[],
    )
    columns: tuple[npt.NDArray[Any], ...] = (checks.status, checks.label, checks.digest, checks.height, checks.width)
    at = 0
    with in_order(check_part, chunks(count, CHUNK), workers, "checking", count, advance=len, shared=faces) as parts:
        for part in parts:
            *values, messages = zip(*part, strict=True)
            for column, new in zip(columns, values, strict=True):
                np.copyto(column[at : at + len(part)], np.array(new, column.dtype))
            room = MAX_IMAGE_MESSAGES - len(checks.messages)
            checks.messages += [message for message in messages if message][:room]
            at += len(part)
    return checks


def first_copies(checks: ImageChecks) -> npt.NDArray[np.int64]:
    """For each image, the number of the first one with the same bytes: its own, unless it is a repetition."""
    numbers = np.arange(len(checks.digest))
    readable = np.flatnonzero(checks.status != UNREADABLE)
    _, first, which = np.unique(checks.digest[readable], return_index=True, return_inverse=True)
    numbers[readable] = readable[first[which]]
    return numbers


def check_part(part: tuple[int, int]) -> list[Finding]:
    """Runs in a worker: checks some images."""
    faces: FaceDataset = shared_object()
    return [_check_image(faces, image) for image in range(*part)]


def _check_image(faces: FaceDataset, image: int) -> Finding:
    try:
        payload, label = faces.read(image)
    except UserError as error:
        return UNREADABLE, -1, 0, 0, 0, str(error)
    digest = int.from_bytes(blake2b(payload, digest_size=8).digest(), "little")
    where = faces.where(image)
    try:
        decode_face_into(payload, np.empty((FACE_SIZE, FACE_SIZE, 3), np.uint8))  # as training does
        return OK, label, digest, FACE_SIZE, FACE_SIZE, ""
    except ValueError as error:
        problem = f"{where}: {error}"
    try:
        height, width = decode_image(payload, where).shape[:2]
    except UserError as error:
        return UNDECODABLE, label, digest, 0, 0, str(error)
    if height == width == FACE_SIZE:
        return UNDECODABLE, label, digest, 0, 0, problem
    return OK, label, digest, height, width, ""


# ------------------------------------------------------------------------------------------------ the report


@dataclass
class Report:
    """rows: (what was checked, what was found, whether that is a fault). messages: of the first faults."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def add(self, what: str, found: object, fault: bool = False) -> None:
        self.rows.append((what, f"{found:,}" if isinstance(found, int) else str(found), fault))

    @property
    def faults(self) -> int:
        return sum(fault for _, _, fault in self.rows)

    def table(self) -> str:
        table = PrettyTable(["what", "found", "verdict"], align="l")
        table.align["found"] = "r"
        table.add_rows([[what, found, "FAULT" if fault else ""] for what, found, fault in self.rows])
        return table.get_string()


def verify(source: Path, workers: int, any_labels: bool = False, any_size: bool = False) -> Report:
    """Check everything. Raises UserError if the set cannot be opened at all."""
    faces = open_faces(source, strict=False)
    report = Report()
    report.add("files", len(faces.shards) or len(faces))
    report.add("images", len(faces))
    checks = check_images(faces, workers)
    report.messages += checks.messages
    for what, status in (("records that cannot be read", UNREADABLE), ("images that cannot be decoded", UNDECODABLE)):
        count = int((checks.status == status).sum())
        report.add(what, count, count > 0)
    _report_labels(report, faces, checks, any_labels)
    _report_repeats(report, source, faces, checks)
    _report_sizes(report, faces, checks, any_size)
    if faces.shards:
        _report_indices(report, faces.shards)
        _report_lists(report, source, faces)
    return report


def _report_labels(report: Report, faces: FaceDataset, checks: ImageChecks, any_labels: bool) -> None:
    labels = checks.label[checks.status != UNREADABLE]
    unique, counts = np.unique(labels, return_counts=True)
    classes = faces.num_classes
    report.add("classes", classes)
    if not len(unique):
        return
    report.add("images per identity, fewest", int(counts.min()))
    report.add("images per identity, median", f"{np.median(counts):,.1f}")
    report.add("images per identity, most", int(counts.max()))
    inside = int(((unique >= 0) & (unique < classes)).sum())
    report.add("labels without an image", classes - inside, inside < classes and not any_labels)
    outside = int(((labels < 0) | (labels >= classes)).sum())
    report.add("images with a label outside the classes", outside, outside > 0 and not any_labels)


def _report_repeats(report: Report, source: Path, faces: FaceDataset, checks: ImageChecks) -> None:
    first = first_copies(checks)
    other = checks.label != checks.label[first]
    repeats = (first != np.arange(len(first))) & ~other
    listed = None
    with contextlib.suppress(UserError):  # `_report_lists` reports it
        listed = image_list(source, len(faces)) if faces.shards else None
    for whose, found in (("the same", repeats), ("another", other)):
        report.add(f"images that repeat one of {whose} identity", int(found.sum()), found is other and bool(found.any()))
        for image in np.flatnonzero(found)[:MAX_NAMED].tolist():
            both = [_describe(faces, listed, number, int(checks.label[number])) for number in (int(first[image]), image)]
            report.messages.append(f"{both[1]} repeats {both[0]}")


def _describe(faces: FaceDataset, listed: ImageList | None, image: int, label: int) -> str:
    name = faces.where(image)
    with contextlib.suppress(UserError):
        name = name if listed is None else str(listed.path_of(image, label))
    return f"{name} (image {image}, label {label})"


def _report_sizes(report: Report, faces: FaceDataset, checks: ImageChecks, any_size: bool) -> None:
    ok = checks.status == OK
    sizes = np.unique(np.stack([checks.height[ok], checks.width[ok]]), axis=1)
    shown = [f"{width}x{height}" for height, width in sizes.T.tolist()]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    report.add("sizes", ", ".join(shown[:3]) + more, len(shown) > 1 and not any_size)
    expected = faces.image_size
    if expected is not None:
        wrong = ok & ((checks.height != expected[0]) | (checks.width != expected[1]))
        source = ", the size in `property`" if faces.shards else ""
        report.add(f"images that are not {expected[1]}x{expected[0]}{source}", int(wrong.sum()), bool(wrong.any()))
        for image in np.flatnonzero(wrong)[:MAX_NAMED].tolist():
            report.messages.append(f"{faces.where(image)}: the image is {checks.width[image]}x{checks.height[image]}")


def _report_indices(report: Report, shards: list[RecordReader]) -> None:
    """Compare each file's index with a search of the whole file. The table has totals, the messages name the files."""
    totals = dict.fromkeys(INDEX_FAULTS, 0)
    for shard in shards:
        for what, count in _index_faults(shard).items():
            totals[what] += count
            if count and len(report.messages) < MAX_MESSAGES:
                report.messages.append(f"{shard.path}: {what}: {count}")
    for what, count in totals.items():
        report.add(what, count, count > 0)


def _index_faults(shard: RecordReader) -> dict[str, int]:
    """The number of faults of each kind (a name in `INDEX_FAULTS`) in one file."""
    scan = scan_file(shard.path, strict=False)
    if not shard.idx_path.exists():
        return {MISSING: 1, DAMAGED: len(scan.damaged)}
    nowhere = len(np.setdiff1d(shard.offsets, scan.offsets))
    faults = {UNLISTED: len(np.setdiff1d(scan.offsets, shard.offsets)), NOWHERE: nowhere, DAMAGED: len(scan.damaged)}
    if scan.ids is not None and not nowhere and np.array_equal(np.sort(scan.ids), shard.keys):
        # Otherwise the records do not contain their keys, and there is nothing to compare with.
        by_offset = np.argsort(scan.offsets)
        own_keys = scan.ids[by_offset][np.searchsorted(scan.offsets[by_offset], shard.offsets)]
        faults[WRONG_KEY] = int((own_keys != shard.keys).sum())
    return faults


def _report_lists(report: Report, source: Path, faces: FaceDataset) -> None:
    try:
        names = class_names(source, faces.num_classes)
        images = image_list(source, len(faces))
        if images is not None:
            for image, label in enumerate(faces.labels().tolist()):
                images.path_of(image, label)
    except UserError as error:
        report.add("lists", "do not fit", True)
        report.messages.append(str(error))
        return
    found = [what for what, value in (("class map", names), ("image list", images)) if value is not None]
    report.add("lists that fit", ", ".join(found) or "none")
