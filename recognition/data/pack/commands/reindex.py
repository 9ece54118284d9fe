"""A `.rec` file -> its `.idx`, by searching the whole file.

    python -m recognition.data.pack reindex train.rec

Keys are the records' ids, or their positions in the file if ids are missing or not unique.
"""

from __future__ import annotations

import argparse
import codecs
from pathlib import Path

from rich.console import Console

from recognition.data.records.index import RecordIndex, scan_file
from utils.errors import UserError, warn
from utils.files import write_file

HELP = "rebuild the .idx of a .rec file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rec", type=Path, help="the .rec file")
    parser.add_argument("--out", type=Path, help="the .idx file (default: next to the .rec file)")
    parser.add_argument("--force", action="store_true", help="replace an existing index that differs")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at a damaged record (%(default)s)")


def rebuild(rec: Path, skip: bool) -> tuple[RecordIndex, str]:
    """The index, and where its keys come from. Raises UserError if the file is unreadable, or damaged and not `skip`."""
    scan = scan_file(rec, strict=not skip)
    if len(scan.damaged):
        warn(f"{rec}: {len(scan.damaged)} damaged places left out, the first at byte {scan.damaged[0]}")
    if not len(scan.offsets):
        raise UserError(f"{rec}: contains no complete record; copy or pack it again")
    return scan.index(rec), "positions in the file" if scan.ids is None else "the records' ids"


def index_text(index: RecordIndex) -> bytes:
    """The content of the `.idx` file."""
    return b"".join(b"%d\t%d\n" % entry for entry in zip(index.keys.tolist(), index.offsets.tolist(), strict=True))


def run(arguments: argparse.Namespace) -> None:
    rec = arguments.rec
    out = arguments.out or rec.with_suffix(".idx")
    if rec.is_dir() or not rec.exists() or not rec.stat().st_size:
        raise UserError(f"{rec}: is not a .rec file, or is empty; give one .rec file")
    if out.resolve() == rec.resolve():
        raise UserError(f"{out}: is the .rec file itself; choose another --out")
    with Console(stderr=True).status(f"searching {rec}"):
        index, key_source = rebuild(rec, arguments.on_error == "skip")
    text = index_text(index)
    if out.exists() and not arguments.force:
        found = out.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
        if sorted(filter(None, found)) == sorted(text.splitlines()):
            print(f"{out}: is correct ({len(index.keys)} records)")
            return
        raise UserError(f"{out}: exists and does not match {rec}; --force replaces it")
    write_file(out, text)
    print(f"{out}: {len(index.keys)} records; keys are {key_source}")
