"""Data set -> the same images, labels and order in another encoding, packed.

    python -m recognition.data.pack convert packed/ raw/ --encoding raw
    python -m recognition.data.pack convert raw/ packed/ --encoding jpeg

`raw` stores pixels that need no decoding: 37.7 kB per face, for machines whose GPUs wait for JPEGs. The images are uncompressed
BMPs, which MXNet and OpenCV read like any other. docs/DATA.md tells when to choose which encoding. Images that have the encoding
already are copied byte for byte, and so are the lists of a packed set. Labels may be of any kind, as in benchmark sets.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np

from recognition.data.dataset import FaceDataset
from recognition.data.pack.arguments import (
    add_encoding_arguments,
    add_out_folder_argument,
    add_packed_set_argument,
    add_shards_argument,
)
from recognition.data.pack.face_encoding import FaceFormat, advise, encode
from recognition.data.pack.output import new_folder
from recognition.data.pack.rewrite import Rewritten, Selection, Source, read_records, write_selection
from recognition.data.parallel import add_workers_argument, shared_object
from utils.images import decode_face, decode_image

HELP = "data set -> another encoding (JPEG, PNG, raw)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser, pictures=True)
    add_out_folder_argument(parser)
    add_encoding_arguments(parser)
    add_shards_argument(parser)
    add_workers_argument(parser)


def encoded_records(face_format: FaceFormat, part: Selection) -> Rewritten:
    """Runs in a worker: the records with their images in the new encoding. Every image is decoded, so damage is noticed."""
    faces: FaceDataset = shared_object()[0]
    records = read_records(part, face_format)
    if not faces.shards:
        return records
    decode = decode_face if face_format.encoding == "raw" else decode_image
    for row, (label, payload, id2) in enumerate(records):
        image = decode(payload, faces.where(int(part.image[row])), "BGR")
        records[row] = (label, payload if face_format.holds(payload) else encode(image, face_format), id2)
    return records


def run(arguments: argparse.Namespace) -> None:
    face_format = FaceFormat(quality=arguments.quality, encoding=arguments.encoding)
    with new_folder(arguments.out) as folder:
        source = Source.open(arguments.source, any_labels=True)
        labels, count = source.faces.labels(), len(source.faces)
        everything = Selection(np.zeros(count, np.int64), np.arange(count), labels)
        write_selection(
            folder,
            [source],
            everything,
            source.names,
            workers=arguments.workers,
            shards=arguments.shards,
            grouped=bool(labels[0] == 0 and np.isin(np.diff(labels), (0, 1)).all()),
            copy_lists=bool(source.faces.shards),
            title="encoding",
            work=partial(encoded_records, face_format),
        )
    gigabytes = sum(shard.size for shard in FaceDataset(arguments.out).shards) / 1e9
    print(f"{arguments.out}: {count} images as {arguments.encoding}, {gigabytes:,.2f} GB")
    advise(face_format)
