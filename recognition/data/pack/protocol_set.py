"""Packs a benchmark's images in the order of its protocol: train.rec with several labels per image, and images.csv.

Shared by the commands `tinyface` and `scface`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recognition.data.pack.arguments import add_face_format_arguments, add_out_folder_argument, face_format_of
from recognition.data.pack.face_encoding import FaceFormat, encode_file
from recognition.data.pack.listing import IMAGE_COLUMNS, IMAGES
from recognition.data.pack.output import CsvFile, new_folder
from recognition.data.pack.shard_writer import ShardWriter
from recognition.data.parallel import add_workers_argument, chunks, in_order

CHUNK = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="the benchmark's folder")
    add_out_folder_argument(parser)
    add_face_format_arguments(parser)
    add_workers_argument(parser)


@dataclass(frozen=True)
class ProtocolImage:
    """path: below the source folder. labels: of the record, the identity first."""

    path: str
    labels: tuple[int, ...]


def suggest_folders(source: Path, is_wanted: Callable[[Path], bool]) -> str:
    """For an error about `source`: the folders one or two levels below that the user may have meant, or ""."""
    found = [str(folder) for pattern in ("*/", "*/*/") for folder in sorted(source.glob(pattern)) if is_wanted(folder)]
    return f", such as {' or '.join(found)}" if found else ""


def encode_part(source: Path, face_format: FaceFormat, images: list[ProtocolImage]) -> list[bytes]:
    """Runs in a worker: the bytes to pack."""
    return [encode_file(source / image.path, face_format)[0] for image in images]


def write_protocol_set(arguments: argparse.Namespace, images: Sequence[ProtocolImage], more_columns: Sequence[str]) -> None:
    """Pack `images` in their order. more_columns: names of the labels after the first, in images.csv."""
    parts = [list(images[start:stop]) for start, stop in chunks(len(images), CHUNK)]
    work = partial(encode_part, arguments.source, face_format_of(arguments))
    with (
        new_folder(arguments.out) as folder,
        ShardWriter(folder, len(images), grouped=False) as writer,
        CsvFile(folder / IMAGES, (*IMAGE_COLUMNS, *more_columns)) as table,
        in_order(work, parts, arguments.workers, "packing", len(images), advance=len) as encoded,
    ):
        for part, payloads in zip(parts, encoded, strict=True):
            for image, payload in zip(part, payloads, strict=True):
                label, *others = image.labels
                table.row(writer.images, label, image.path, *others)
                writer.write(image.labels, payload)
