"""Folder with one folder of images per identity -> packed data set: train.rec (or shards), property, classes.csv, images.csv.

    python -m recognition.data.pack folder photos/ packed/ --shards 4 --min-images 2

Labels follow the folders' names in code point order, and images follow the files' names. A JPEG of the right size is copied byte
for byte; any other image is made square (--fit), resized and encoded. Align the faces first, with `align`: images of other sizes
are counted in a warning, and so is what is not read, such as files of other kinds and folders in an identity's folder.
"""

from __future__ import annotations

import argparse
from array import array
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from recognition.data.pack.arguments import (
    add_face_format_arguments,
    add_on_error_argument,
    add_out_folder_argument,
    add_shards_argument,
    face_format_of,
)
from recognition.data.pack.face_encoding import FaceFormat, MadeToFit, advise, encode_file
from recognition.data.pack.listing import (
    IMAGE_COLUMNS,
    IMAGES,
    warn_of_skipped,
    write_classes,
    write_skipped,
)
from recognition.data.pack.output import CsvFile, new_folder
from recognition.data.pack.shard_writer import ShardWriter, write_property
from recognition.data.parallel import add_workers_argument, in_order
from utils.errors import UserError
from utils.files import path_inside
from utils.images import KINDS, LeftOut, image_names, scan_folder

HELP = "image folder -> packed data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder with one folder of images per identity")
    add_out_folder_argument(parser)
    add_shards_argument(parser)
    parser.add_argument("--min-images", type=int, default=1, help="leave out identities with fewer images (%(default)s)")
    parser.add_argument("--no-list", action="store_true", help="do not write images.csv, the paths of the images")
    add_face_format_arguments(parser)
    add_on_error_argument(parser)
    add_workers_argument(parser)


@dataclass
class Identity:
    """One identity's images, ready to be packed.

    paths: relative to the source folder. skipped: why images were left out. made_to_fit: path and size of such images.
    """

    name: str
    paths: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    made_to_fit: list[str] = field(default_factory=list)


def count_images(source: Path, min_images: int, left_out: LeftOut) -> tuple[list[str], int, int]:
    """The names of the identities with at least `min_images`, their number of images, and the number of other identities."""
    loose, names = scan_folder(source, left_out)
    if not names:
        raise UserError(f"{source}: contains no folders; expected one folder of images per identity")
    for name in loose:
        left_out.add("loose image", source / name)
    counts = array("q", (len(image_names(source / name, left_out)) for name in names))
    kept = [name for name, count in zip(names, counts, strict=True) if count >= min_images]
    images = sum(count for count in counts if count >= min_images)
    if not kept:
        why = f"; {left_out}" if left_out else ""
        raise UserError(f"{source}: no folder contains {min_images} images or more ({KINDS}, by suffix){why}")
    return kept, images, len(names) - len(kept)


def encode_identity(source: Path, face_format: FaceFormat, skip: bool, name: str) -> Identity:
    """Runs in a worker: reads and encodes one identity's images."""
    identity = Identity(name)
    for file in image_names(source / name):
        try:
            path = path_inside(f"{name}/{file}", str(source))
            payload, odd_size = encode_file(source / path, face_format)
        except UserError as error:
            if not skip:
                raise UserError(f"{error} (or leave it out with --on-error skip)") from error
            identity.skipped.append(str(error))
        else:
            identity.paths.append(str(path))
            identity.payloads.append(payload)
            if odd_size:
                identity.made_to_fit.append(f"{path} is {odd_size}")
    return identity


class PackedSetWriter:
    """Writes identities to a folder as a packed data set with its lists; each identity gets the next label."""

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

    def __enter__(self) -> PackedSetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.writer.__exit__(kind, error, None)
        if self.list is not None:
            self.list.__exit__(kind, error, trace)
        if kind is None:
            write_classes(self.folder, self.names, self.counts)


def run(arguments: argparse.Namespace) -> None:
    face_format, source, out = face_format_of(arguments), arguments.source, arguments.out
    left_out = LeftOut()
    names, expected, too_few = count_images(source, arguments.min_images, left_out)
    left_out.warn(source)
    work = partial(encode_identity, source, face_format, arguments.on_error == "skip")
    skipped: list[str] = []
    made_to_fit = MadeToFit()
    with new_folder(out) as folder:
        with (
            PackedSetWriter(folder, expected, arguments.shards, not arguments.no_list) as packed,
            in_order(work, names, arguments.workers, "packing", expected, advance=_count) as identities,
        ):
            for identity in identities:
                skipped += identity.skipped
                made_to_fit.add(identity.made_to_fit)
                if len(identity.paths) >= max(arguments.min_images, 1):
                    packed.add(identity)
                else:
                    too_few += 1
        if not packed.writer.images:
            raise UserError(f"{source}: none of {expected} images could be packed; the first: {skipped[0]}")
        write_property(folder, len(packed.names), (face_format.size, face_format.size))
        write_skipped(folder, skipped)
    others = f", {too_few} identities with fewer than {arguments.min_images} images left out" if too_few else ""
    print(f"{out}: {packed.writer.images} images of {len(packed.names)} identities{others}")
    advise(face_format)
    warn_of_skipped(skipped, out)
    made_to_fit.warn(source, face_format)


def _count(identity: Identity) -> int:
    return len(identity.paths) + len(identity.skipped)
