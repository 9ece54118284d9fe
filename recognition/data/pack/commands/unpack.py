"""Packed data set -> folder with one folder of images per identity; every image byte for byte as it was packed.

    python -m recognition.data.pack unpack packed/ photos/

Names come from images.csv and classes.csv, if they are next to the records. Otherwise folders are named after labels (0000017)
and files after image numbers (000000123.jpg). An image that packing encoded anew gets one more suffix: s1/1.pgm becomes
s1/1.pgm.jpg.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path, PurePosixPath

from recognition.data.dataset import FaceDataset
from recognition.data.pack.arguments import add_on_error_argument, add_out_folder_argument, add_packed_set_argument
from recognition.data.pack.listing import ImageList, class_names, image_list, warn_of_skipped, write_skipped
from recognition.data.pack.output import new_folder, write_new
from recognition.data.parallel import add_workers_argument, chunks, in_order, shared_object
from recognition.data.sets.pictures import is_pictures
from utils.errors import UserError
from utils.images import SUFFIXES_OF, read_header

HELP = "packed data set -> image folder"
CHUNK = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser)
    add_out_folder_argument(parser)
    add_on_error_argument(parser)
    add_workers_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    skip = arguments.on_error == "skip"
    if arguments.source.exists() and is_pictures(arguments.source):
        raise UserError(f"{arguments.source}: its images are files already; give a packed set")
    with new_folder(arguments.out) as folder:
        faces = FaceDataset(arguments.source, strict=not skip)
        count = len(faces)
        shared = faces, class_names(arguments.source, faces.num_classes), image_list(arguments.source, count)
        work = partial(unpack_part, folder, skip)
        skipped: list[str] = []
        parts = chunks(count, CHUNK)
        with in_order(work, parts, arguments.workers, "unpacking", count, advance=_count, shared=shared) as results:
            for _, messages in results:
                skipped += messages
        if len(skipped) == count:
            raise UserError(f"{arguments.source}: no image could be unpacked; the first: {skipped[0]}")
        write_skipped(folder, skipped)
    print(f"{arguments.out}: {count - len(skipped)} images")
    warn_of_skipped(skipped, arguments.out)


def _count(done: tuple[int, list[str]]) -> int:
    return done[0]


def unpack_part(folder: Path, skip: bool, part: tuple[int, int]) -> tuple[int, list[str]]:
    """Runs in a worker: writes some images. Returns their number, and why images were skipped."""
    faces: FaceDataset
    faces, names, listed = shared_object()
    skipped = []
    for image in range(*part):
        try:
            payload, label = faces.read(image)
            path = image_path(image, label, payload, names, listed, faces.where(image))
        except UserError as error:
            if not skip:
                raise
            skipped.append(str(error))
        else:
            write_new(folder / path, payload)
    return part[1] - part[0], skipped


def image_path(
    image: int, label: int, payload: bytes, names: list[str] | None, listed: ImageList | None, where: str
) -> PurePosixPath:
    """The path of an image below the new folder. Raises UserError, beginning with `where`, if the payload is not an image."""
    try:
        kind = read_header(payload).kind
    except ValueError as error:
        raise UserError(f"{where}: {error}; pack this image again") from error
    if listed is None:
        identity = f"{label:07d}" if names is None or label < 0 else names[label]
        return PurePosixPath(identity, f"{image:09d}{SUFFIXES_OF[kind][0]}")
    path = listed.path_of(image, label)
    return path if path.suffix.lower() in SUFFIXES_OF[kind] else path.with_name(path.name + SUFFIXES_OF[kind][0])
