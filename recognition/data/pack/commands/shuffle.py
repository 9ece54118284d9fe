"""Packed data set -> the same images in random order on the disk, for readers that read files from start to end.

    python -m recognition.data.pack shuffle packed/ shuffled/ --seed 1 --shards 16

The order depends only on the seed and the number of images. The result has im2rec's layout (every record is an image), since
insightface's requires the images of an identity to be adjacent. The source is read at random, so it should be on a fast disk.
"""

from __future__ import annotations

import argparse

import numpy as np

from recognition.data.pack.arguments import add_out_folder_argument, add_packed_set_argument, add_shards_argument
from recognition.data.pack.output import new_folder
from recognition.data.pack.rewrite import Selection, Source, write_selection
from recognition.data.parallel import add_workers_argument
from utils.randomness import Permutation

HELP = "packed data set -> random order on the disk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser, pictures=True)
    add_out_folder_argument(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the order (%(default)s)")
    add_shards_argument(parser)
    add_workers_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    with new_folder(arguments.out) as folder:
        source = Source.open(arguments.source)
        count = len(source.faces)
        order = Permutation(count, arguments.seed, epoch=0)(np.arange(count))
        selection = Selection(np.zeros(count, np.int64), order, source.faces.labels()[order])
        write_selection(
            folder, [source], selection, source.names, workers=arguments.workers, shards=arguments.shards, grouped=False
        )
    print(f"{arguments.out}: {count} images in the order of seed {arguments.seed}")
