"""A `.rec` file -> its `.idx`, from a search of the whole file.

    python -m recognition.data.pack reindex train.rec

Keys are the records' ids, or their places in the file where ids are missing or not unique.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from recognition.data.pack.parallel import warn
from recognition.data.records.index import RecordIndex, scan_records
from utils.errors import UserError
from utils.files import write_file

HELP = "write the .idx of a .rec file anew"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rec", type=Path, help="the .rec file")
    parser.add_argument("--out", type=Path, help="the .idx file (beside the .rec file)")
    parser.add_argument("--force", action="store_true", help="replace an index that is there and says something else")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at a damaged record (%(default)s)")


def search(rec: Path, skip: bool) -> tuple[RecordIndex, str]:
    """(index, where its keys come from). `UserError`: unreadable, or damaged and not `skip`."""
    try:
        descriptor = os.open(rec, os.O_RDONLY | os.O_CLOEXEC)
        try:
            scan = scan_records(descriptor, os.fstat(descriptor).st_size, rec, strict=not skip)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{rec}: the .rec file cannot be read ({error.strerror})") from error
    if len(scan.damaged):
        warn(f"{rec}: {len(scan.damaged)} damaged places left out, the first at byte {scan.damaged[0]}")
    if not len(scan.offsets):
        raise UserError(f"{rec}: holds no whole record; copy or pack it again")
    return scan.index(rec), "places in the file" if scan.ids is None else "the records' ids"


def index_text(index: RecordIndex) -> bytes:
    return b"".join(b"%d\t%d\n" % entry for entry in zip(index.keys.tolist(), index.offsets.tolist(), strict=True))


def run(arguments: argparse.Namespace) -> None:
    rec = arguments.rec
    out = arguments.out or rec.with_suffix(".idx")
    if rec.is_dir() or not rec.exists() or not rec.stat().st_size:
        raise UserError(f"{rec}: is no .rec file with content; give one .rec file")
    if out.resolve() == rec.resolve():
        raise UserError(f"{out}: is the .rec file itself; choose another --out")
    with Console(stderr=True).status(f"searching {rec}"):
        index, source = search(rec, arguments.on_error == "skip")
    text = index_text(index)
    if out.exists() and not arguments.force:
        if sorted(out.read_bytes().splitlines()) == sorted(text.splitlines()):
            print(f"{out}: is right already ({len(index.keys)} records)")
            return
        raise UserError(f"{out}: is there and says something else than {rec} does; --force replaces it")
    write_file(out, text)
    print(f"{out}: {len(index.keys)} records; keys are {source}")
