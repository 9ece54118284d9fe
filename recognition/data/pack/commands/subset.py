"""Some identities of a packed data set -> a smaller one, with new labels 0, 1, 2, …

    python -m recognition.data.pack subset packed/ small/ --first 1000 --max-images 50
    python -m recognition.data.pack subset packed/ clean/ --drop-damaged --drop-repeated
    python -m recognition.data.pack subset packed/ clean/ --drop audit/audit.csv

--identities FILE lists names of the class map or labels, one per line. Conditions are combined, in the order in which the options
are listed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recognition.data.pack.arguments import add_out_folder_argument, add_packed_set_argument, add_shards_argument
from recognition.data.pack.commands.audit.findings import dropped
from recognition.data.pack.commands.verify import OK, check_images, first_copies
from recognition.data.pack.output import new_folder
from recognition.data.pack.rewrite import Int64Array, Selection, Source, write_selection
from recognition.data.parallel import add_workers_argument
from utils.errors import UserError
from utils.files import numbered_lines
from utils.randomness import Permutation

HELP = "some identities of a packed data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser, pictures=True)
    add_out_folder_argument(parser)
    parser.add_argument("--drop-damaged", action="store_true", help="leave out images that cannot be read or decoded")
    help = "leave out images that repeat an earlier one of their identity, and all copies of one that several identities have"
    parser.add_argument("--drop-repeated", action="store_true", help=help)
    parser.add_argument("--drop", type=Path, metavar="CSV", help="leave out what this list of `audit` drops")
    parser.add_argument("--identities", type=Path, help="file with one name or label per line")
    parser.add_argument("--min-images", type=int, default=1, help="leave out identities with fewer images (%(default)s)")
    parser.add_argument("--first", type=int, help="keep the first N identities")
    parser.add_argument("--random", type=int, help="keep N random identities")
    parser.add_argument("--seed", type=int, default=0, help="seed of --random (%(default)s)")
    parser.add_argument("--max-images", type=int, help="keep at most the first N images of each identity")
    add_shards_argument(parser)
    add_workers_argument(parser)


def listed_labels(path: Path, names: list[str]) -> Int64Array:
    """The labels that a file lists by name or number, ascending. Raises UserError for a line that is neither or a repetition."""
    numbers = {name: label for label, name in enumerate(names)}
    found: dict[int, str] = {}
    for where, text in numbered_lines(path):
        label = numbers.get(text, int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1)
        if not 0 <= label < len(names):
            raise UserError(f"{where}: {text!r} is neither a name in the class map nor a label from 0 to {len(names) - 1}")
        if label in found:
            raise UserError(f"{where}: {text!r} is label {label}, as is {found[label]}; list it once")
        found[label] = where
    return np.array(sorted(found), np.int64)


def choose(labels: Int64Array, names: list[str], arguments: argparse.Namespace) -> tuple[Int64Array, Int64Array]:
    """The images and the labels to keep, ascending. labels: int64 [images], negative for an image that is left out."""
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    kept = np.flatnonzero(counts >= max(arguments.min_images, 1))
    if arguments.identities is not None:
        kept = np.intersect1d(kept, listed_labels(arguments.identities, names))
    if arguments.first is not None:
        kept = kept[: max(arguments.first, 0)]
    if arguments.random is not None and len(kept):
        places = Permutation(len(kept), arguments.seed, epoch=0)(np.arange(min(max(arguments.random, 0), len(kept))))
        kept = np.sort(kept[places])
    images = np.flatnonzero(np.isin(labels, kept))
    if arguments.max_images is not None:
        order = images[np.argsort(labels[images], kind="stable")]
        ordered = labels[order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        images = np.sort(order[rank < arguments.max_images])
    return images, kept


def repeated(labels: Int64Array, first: Int64Array) -> npt.NDArray[np.bool_]:
    """Which images repeat another one; all copies, if their labels differ, since one of the labels must be wrong.

    labels, first: int64 [images]; the latter of `first_copies`.
    """
    contradicted = first[labels != labels[first]]
    return (first != np.arange(len(first))) | np.isin(first, contradicted)


def run(arguments: argparse.Namespace) -> None:
    with new_folder(arguments.out) as folder:
        source = Source.open(arguments.source, strict=not arguments.drop_damaged)
        labels = source.faces.labels().copy()
        if arguments.drop_damaged or arguments.drop_repeated:
            checks = check_images(source.faces, arguments.workers)
            if arguments.drop_repeated:
                labels[repeated(labels, first_copies(checks))] = -1
            if arguments.drop_damaged:
                labels[checks.status != OK] = -1
        if arguments.drop is not None:
            labels[dropped(arguments.drop, source.faces)] = -1
        images, kept = choose(labels, source.names, arguments)
        if not len(images):
            raise UserError(f"{arguments.source}: no identity meets these conditions; nothing was written")
        new_labels = np.searchsorted(kept, labels[images])
        selection = Selection(np.zeros(len(images), np.int64), images, new_labels).grouped()
        names = [source.names[label] for label in kept.tolist()]
        write_selection(folder, [source], selection, names, workers=arguments.workers, shards=arguments.shards)
    print(f"{arguments.out}: {len(images)} of {len(labels)} images, {len(kept)} of {len(source.names)} identities")
