"""Checks a packed data set from end to end, and prints a table: 0 where it is sound, otherwise exit code 2.

    python -m recognition.data.pack verify packed/

Every record is read and every image decoded; labels must be 0 … C-1 with no gap; the index must list every record of its file,
each with its own key; all images must have the size of the `property` file; the lists (classes.csv, images.csv) must fit.
Images that occur twice are counted: within one identity that is waste and no fault, under two identities it is a wrong label.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

from recognition.data.dataset import FaceDataset
from recognition.data.pack.examine import SOUND, UNDECODABLE, UNREADABLE, Examination, examine
from recognition.data.pack.listing import class_names, image_list
from recognition.data.pack.parallel import add_workers_argument, warn
from recognition.data.records.index import scan_records
from recognition.data.records.reader import RecordReader
from utils.errors import UserError

HELP = "check a packed data set from end to end"
MESSAGES = 40
MISSING = "files without an index"
UNLISTED = "records that no index lists"
NOWHERE = "index entries that point at no whole record"
EXCHANGED = "index entries with another record's key"
DAMAGED = "damaged places in the files"
INDEX_FAULTS = (MISSING, UNLISTED, NOWHERE, EXCHANGED, DAMAGED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a .rec file, or a folder with train.rec or shards")
    parser.add_argument("--any-labels", action="store_true", help="labels may have gaps, as in benchmark sets (tinyface, scface)")
    parser.add_argument("--any-size", action="store_true", help="images may differ in size")
    add_workers_argument(parser)


@dataclass
class Report:
    """rows: (what, figure, whether that is a fault). messages: of the first faults."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def add(self, what: str, figure: object, fault: bool = False) -> None:
        self.rows.append((what, f"{figure:,}" if isinstance(figure, int) else str(figure), fault))

    @property
    def faults(self) -> int:
        return sum(fault for _, _, fault in self.rows)

    def table(self) -> str:
        table = PrettyTable(["what", "found", ""], align="l")
        table.align["found"] = "r"
        table.add_rows([[what, figure, "FAULT" if fault else ""] for what, figure, fault in self.rows])
        return table.get_string()


def run(arguments: argparse.Namespace) -> None:
    report = verify(arguments.source, arguments.workers, arguments.any_labels, arguments.any_size)
    print(report.table())
    for message in report.messages:
        warn(message)
    if report.faults:
        remedy = "`subset --drop-damaged` makes a set without bad images, `reindex` a new index"
        raise UserError(f"{arguments.source}: {report.faults} kinds of fault; {remedy}")


def verify(source: Path, workers: int, any_labels: bool = False, any_size: bool = False) -> Report:
    """`UserError` where the set cannot be opened at all."""
    faces = FaceDataset(source, strict=False)
    report = Report()
    report.add("files", len(faces.shards))
    report.add("images", len(faces))
    found = examine(faces, workers)
    report.messages += found.problems
    for what, status in (("records that cannot be read", UNREADABLE), ("images that cannot be decoded", UNDECODABLE)):
        count = int((found.status == status).sum())
        report.add(what, count, count > 0)
    _report_labels(report, faces, found, any_labels)
    _report_duplicates(report, found)
    _report_sizes(report, faces, found, any_size)
    _report_indices(report, faces.shards)
    _report_lists(report, source, faces)
    return report


def _report_labels(report: Report, faces: FaceDataset, found: Examination, any_labels: bool) -> None:
    labels = found.label[found.status != UNREADABLE]
    unique, counts = np.unique(labels, return_counts=True)
    classes = faces.num_classes
    report.add("classes", classes)
    if not len(unique):
        return
    report.add("images an identity, fewest", int(counts.min()))
    report.add("images an identity, median", f"{np.median(counts):,.1f}")
    report.add("images an identity, most", int(counts.max()))
    inside = int(((unique >= 0) & (unique < classes)).sum())
    report.add("labels without an image", classes - inside, inside < classes and not any_labels)
    outside = int(((labels < 0) | (labels >= classes)).sum())
    report.add("images with a label outside the classes", outside, outside > 0 and not any_labels)


def _report_duplicates(report: Report, found: Examination) -> None:
    readable = found.status != UNREADABLE
    order = np.lexsort((found.label[readable], found.digest[readable]))
    digest, label = found.digest[readable][order], found.label[readable][order]
    same = digest[1:] == digest[:-1]
    other = label[1:] != label[:-1]
    report.add("images that repeat one of the same identity", int((same & ~other).sum()))
    crossed = int((same & other).sum())
    report.add("images that repeat one of another identity", crossed, crossed > 0)
    if crossed:
        first = int(np.flatnonzero(same & other)[0])
        report.messages.append(f"the same image is under the labels {label[first]} and {label[first + 1]}")


def _report_sizes(report: Report, faces: FaceDataset, found: Examination, any_size: bool) -> None:
    sound = found.status == SOUND
    sizes, counts = np.unique(np.stack([found.height[sound], found.width[sound]]), axis=1, return_counts=True)
    shown = [f"{width}x{height}" for height, width in sizes.T.tolist()]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    report.add("sizes", ", ".join(shown[:3]) + more, len(shown) > 1 and not any_size)
    expected = faces.image_size
    if expected is not None:
        fits = (sizes == np.array(expected)[:, None]).all(axis=0)
        wrong = int(counts[~fits].sum())
        report.add(f"images that are not {expected[1]}x{expected[0]}, as `property` says", wrong, wrong > 0)


def _report_indices(report: Report, shards: list[RecordReader]) -> None:
    """Each file's index against a search of the whole file, summed up; messages name the files at fault."""
    totals = dict.fromkeys(INDEX_FAULTS, 0)
    for shard in shards:
        for what, count in _index_faults(shard).items():
            totals[what] += count
            if count and len(report.messages) < MESSAGES:
                report.messages.append(f"{shard.path}: {what}: {count}")
    for what, count in totals.items():
        report.add(what, count, count > 0)


def _index_faults(shard: RecordReader) -> dict[str, int]:
    """A count for some of `INDEX_FAULTS`."""
    try:
        descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{shard.path}: cannot be opened ({error.strerror})") from error
    try:
        scan = scan_records(descriptor, os.fstat(descriptor).st_size, shard.path, strict=False)
    finally:
        os.close(descriptor)
    if not shard.idx_path.exists():
        return {MISSING: 1, DAMAGED: len(scan.damaged)}
    nowhere = len(np.setdiff1d(shard.offsets, scan.offsets))
    faults = {UNLISTED: len(np.setdiff1d(scan.offsets, shard.offsets)), NOWHERE: nowhere, DAMAGED: len(scan.damaged)}
    if scan.ids is not None and not nowhere and np.array_equal(np.sort(scan.ids), shard.keys):
        # Otherwise the records do not carry keys of their own, and there is nothing to compare with.
        by_offset = np.argsort(scan.offsets)
        own = scan.ids[by_offset][np.searchsorted(scan.offsets[by_offset], shard.offsets)]
        faults[EXCHANGED] = int((own != shard.keys).sum())
    return faults


def _report_lists(report: Report, source: Path, faces: FaceDataset) -> None:
    try:
        names = class_names(source, faces.num_classes)
        images = image_list(source, len(faces))
        if images is not None:
            labels = faces.labels().tolist()
            for image, label in enumerate(labels):
                images.path_of(image, label)
    except UserError as error:
        report.add("lists", "do not fit", True)
        report.messages.append(str(error))
        return
    found = [what for what, there in (("class map", names), ("image list", images)) if there is not None]
    report.add("lists that fit", ", ".join(found) or "none there")
