"""Benchmark images in their protocol's order -> train.rec with several labels an image, and images.csv with the names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recognition.data.pack.commands.folder import add_format_arguments
from recognition.data.pack.face_encoding import FaceFormat, packed_face
from recognition.data.pack.listing import IMAGES
from recognition.data.pack.output import CsvFile, new_folder
from recognition.data.pack.parallel import add_workers_argument, in_order
from recognition.data.pack.shard_writer import ShardWriter

CHUNK = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="the benchmark's folder")
    parser.add_argument("out", type=Path, help="folder to make")
    add_format_arguments(parser)
    add_workers_argument(parser)


@dataclass(frozen=True)
class ProtocolImage:
    """path: below the source folder. labels: of the record, the identity first."""

    path: str
    labels: tuple[int, ...]


def where_else(source: Path, is_it: Callable[[Path], bool]) -> str:
    """For messages: the folders one or two levels below `source` that are what was expected of it."""
    found = [str(folder) for pattern in ("*/", "*/*/") for folder in sorted(source.glob(pattern)) if is_it(folder)]
    return f", such as {' or '.join(found)}" if found else ""


def encode_part(source: Path, face: FaceFormat, images: list[ProtocolImage]) -> list[bytes]:
    """Runs in a worker."""
    return [packed_face(source / image.path, face) for image in images]


def write_protocol_set(
    source: Path, out: Path, images: Sequence[ProtocolImage], meanings: Sequence[str], face: FaceFormat, workers: int
) -> None:
    """Packs `images` in their order. meanings: what the labels after the first are, as columns of images.csv."""
    parts = [list(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
    with (
        new_folder(out) as folder,
        ShardWriter(folder, len(images), grouped=False) as writer,
        CsvFile(folder / IMAGES, ("image", "label", "path", *meanings)) as table,
        in_order(partial(encode_part, source, face), parts, workers, "packing", len(images), advance=len) as encoded,
    ):
        for part, payloads in zip(parts, encoded, strict=True):
            for image, payload in zip(part, payloads, strict=True):
                table.row(writer.images, image.labels[0], image.path, *image.labels[1:])
                writer.write(image.labels, payload)
