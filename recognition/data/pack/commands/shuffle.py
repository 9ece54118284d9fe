"""A packed data set -> the same images in random order on the disk, for readers that go through a file from start to end.

    python -m recognition.data.pack shuffle packed/ shuffled/ --seed 1 --shards 16

The order is a function of the seed and the number of images. The result is in im2rec's layout (every record an image), since
insightface's needs the images of an identity in a row. Records are read at random, so have the source on a fast disk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from recognition.data.pack.output import new_folder
from recognition.data.pack.parallel import add_workers_argument
from recognition.data.pack.rewrite import Selection, Source, write_selection
from utils.randomness import Permutation

HELP = "random order on the disk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a .rec file, or a folder with train.rec or shards")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other orders (%(default)s)")
    parser.add_argument("--shards", type=int, default=1, help="files to divide the images among (%(default)s)")
    add_workers_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    with new_folder(arguments.out) as folder:
        source = Source.open(arguments.source)
        count = len(source.faces)
        order = Permutation(count, arguments.seed, epoch=0)(np.arange(count))
        selection = Selection(np.zeros(count, np.int64), order, source.faces.labels()[order])
        write_selection(
            folder, [source], selection, source.names, shards=arguments.shards, grouped=False, workers=arguments.workers
        )
    print(f"{arguments.out}: {count} images in the order of seed {arguments.seed}")
