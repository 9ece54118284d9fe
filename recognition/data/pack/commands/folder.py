"""An image folder with one folder an identity -> a packed data set: train.rec (or shards), property, classes.csv, images.csv.

    python -m recognition.data.pack folder photos/ packed/ --shards 4 --min-images 2

Labels follow the folders' names in plain (code point) order, images the files' names. A JPEG that has the right size already
is copied byte for byte; anything else is made square (--fit), resized and encoded. Faces should be aligned first: see `align`.
"""

from __future__ import annotations

import argparse
import os
from array import array
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from recognition.data.pack.face_encoding import FITS, FaceFormat, packed_face
from recognition.data.pack.listing import IMAGE_COLUMNS, IMAGES, write_classes
from recognition.data.pack.output import CsvFile, new_folder
from recognition.data.pack.parallel import add_workers_argument, in_order, warn
from recognition.data.pack.shard_writer import ShardWriter, write_property
from utils.errors import UserError
from utils.files import path_inside
from utils.images import FACE_SIZE, KINDS, MAX_PIXELS, SUFFIXES

HELP = "image folder -> packed data set"
SKIPPED_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder with a folder of images an identity")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--shards", type=int, default=1, help="files to divide the images among (%(default)s)")
    parser.add_argument("--min-images", type=int, default=1, help="leave out identities with fewer (%(default)s)")
    parser.add_argument("--no-list", action="store_true", help="do not write images.csv, the images' paths")
    add_format_arguments(parser)
    add_on_error_argument(parser)
    add_workers_argument(parser)


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=FACE_SIZE, help="side in pixels (%(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG (%(default)s)")
    parser.add_argument("--png", action="store_true", help="encode as PNG: lossless, about five times as large")
    parser.add_argument("--fit", choices=FITS, default=FITS[0], help="how an image becomes square (%(default)s)")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger images (%(default)s)")


def add_on_error_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop",
        help="at a bad image: stop (default), or leave it out, count it and list it in skipped.csv",
    )  # fmt: skip


def face_format(arguments: argparse.Namespace) -> FaceFormat:
    return FaceFormat(arguments.size, arguments.quality, arguments.png, arguments.fit, arguments.max_pixels)


@dataclass
class Identity:
    """One identity's images, ready to be packed. paths: relative to the source folder. skipped: messages."""

    name: str
    paths: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def identity_names(source: Path) -> list[str]:
    """The folders' names in order. `UserError` where there is none, or the folder cannot be read."""
    try:
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise UserError(f"{source}: the folder cannot be read ({error.strerror})") from error
    if not names:
        raise UserError(f"{source}: holds no folders; expected one folder of images an identity")
    return names


def image_names(folder: Path) -> list[str]:
    """The image files' names in order; other files do not count. `UserError` where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_image_name(entry.name) and entry.is_file())
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}); mend its permissions or remove it") from error


def is_image_name(name: str) -> bool:
    return not name.startswith(".") and PurePath(name).suffix.lower() in SUFFIXES


def count_images(source: Path, min_images: int) -> tuple[list[str], int, int]:
    """(names of the identities with `min_images` or more, their images, identities left out)."""
    names, counts = identity_names(source), array("q")
    for name in names:
        counts.append(len(image_names(source / name)))
    kept = [name for name, count in zip(names, counts, strict=True) if count >= min_images]
    images = sum(count for count in counts if count >= min_images)
    if not kept:
        raise UserError(f"{source}: no folder holds {min_images} images or more ({KINDS}, by suffix)")
    return kept, images, len(names) - len(kept)


def encode_identity(source: Path, face: FaceFormat, skip: bool, name: str) -> Identity:
    """Runs in a worker: reads and encodes one identity's images."""
    identity = Identity(name)
    for file in image_names(source / name):
        try:
            path = path_inside(f"{name}/{file}", str(source))
            payload = packed_face(source / path, face)
        except UserError as error:
            if not skip:
                raise UserError(f"{error} (or leave it out with --on-error skip)") from error
            identity.skipped.append(str(error))
        else:
            identity.paths.append(str(path))
            identity.payloads.append(payload)
    return identity


class DataSetDraft:
    """Packs identities into a draft folder, with the lists; labels are given to those that are kept."""

    def __init__(self, folder: Path, expected: int, shards: int, with_list: bool):
        self.folder = folder
        self.names: list[str] = []
        self.counts = array("q")
        self.writer = ShardWriter(folder, expected, shards)
        self.list = CsvFile(folder / IMAGES, IMAGE_COLUMNS) if with_list else None

    def add(self, identity: Identity) -> None:
        label = len(self.names)
        for path, payload in zip(identity.paths, identity.payloads, strict=True):
            if self.list is not None:
                self.list.row(self.writer.images, label, path)
            self.writer.write(label, payload)
        self.names.append(identity.name)
        self.counts.append(len(identity.paths))

    def __enter__(self) -> DataSetDraft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.writer.__exit__(kind, error, None)
        if self.list is not None:
            self.list.__exit__(kind, error, trace)
        if kind is None:
            write_classes(self.folder, self.names, self.counts)


def run(arguments: argparse.Namespace) -> None:
    face, source, out = face_format(arguments), arguments.source, arguments.out
    names, expected, too_few = count_images(source, arguments.min_images)
    work = partial(encode_identity, source, face, arguments.on_error == "skip")
    skipped: list[str] = []
    with new_folder(out) as folder:
        with (
            DataSetDraft(folder, expected, arguments.shards, not arguments.no_list) as draft,
            in_order(work, names, arguments.workers, "packing", expected, advance=_images_of) as identities,
        ):
            for identity in identities:
                skipped += identity.skipped
                if len(identity.paths) >= max(arguments.min_images, 1):
                    draft.add(identity)
                else:
                    too_few += 1
        if not draft.writer.images:
            raise UserError(f"{source}: no image of {expected} could be packed; the first: {skipped[0]}")
        write_property(folder, len(draft.names), (face.size, face.size))
        write_skipped(folder, skipped)
    left_out = f", {too_few} identities with fewer than {arguments.min_images} images left out" if too_few else ""
    print(f"{out}: {draft.writer.images} images of {len(draft.names)} identities{left_out}")
    show_skipped(skipped, out)


def _images_of(identity: Identity) -> int:
    return len(identity.paths) + len(identity.skipped)


def write_skipped(folder: Path, skipped: list[str]) -> None:
    """skipped.csv with a line for each image left out; no file where there is none."""
    if skipped:
        with CsvFile(folder / "skipped.csv", ("reason",)) as table:
            for reason in skipped:
                table.row(reason)


def show_skipped(skipped: list[str], out: Path) -> None:
    for reason in skipped[:SKIPPED_SHOWN]:
        warn(f"left out: {reason}")
    if skipped:
        warn(f"{len(skipped)} images left out in all, listed in {out / 'skipped.csv'}")
