"""Several packed data sets -> one.

    python -m recognition.data.pack merge first/ second/ third/ --out all/

--classes separate (default): different people; the labels of the second set follow those of the first, and so on.
--classes by-name:  the same name in two class maps (classes.csv) is the same person.
--classes same:     label k is the same person in all sets, as in parts of one data set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recognition.data.pack.arguments import add_shards_argument
from recognition.data.pack.listing import CLASSES
from recognition.data.pack.output import new_folder
from recognition.data.pack.rewrite import Int64Array, Selection, Source, write_selection
from recognition.data.parallel import add_workers_argument
from utils.errors import UserError, warn

HELP = "several packed data sets -> one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", type=Path, nargs="+", help=".rec files, or folders with train.rec or shards")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--classes",
        choices=("separate", "by-name", "same"),
        default="separate",
        help="which labels are the same person (%(default)s)",
    )
    add_shards_argument(parser)
    add_workers_argument(parser)


def merge_labels(sources: Sequence[Source], classes: str) -> tuple[list[Int64Array], list[str]]:
    """For each source, the new label of each of its labels; and the names of all new labels."""
    if classes == "separate":
        starts = np.cumsum([0] + [len(source.names) for source in sources]).tolist()
        maps = [np.arange(len(source.names)) + start for source, start in zip(sources, starts, strict=False)]
        return maps, _separate_names(sources)
    if classes == "same":
        longest = max(sources, key=lambda source: len(source.names)).names
        for source in sources:
            different = [k for k, name in enumerate(source.names) if name != longest[k]]
            if different:
                k = different[0]
                problem = f"label {k} is {source.names[k]!r}, elsewhere {longest[k]!r}"
                raise UserError(f"{source.path}: {problem}; use --classes by-name")
        return [np.arange(len(source.names)) for source in sources], list(longest)
    numbers: dict[str, int] = {}
    maps = []
    for source in sources:
        folder = source.path if source.path.is_dir() else source.path.parent
        if not (folder / CLASSES).exists():
            raise UserError(f"{source.path}: has no {CLASSES}, which --classes by-name needs")
        maps.append(np.array([numbers.setdefault(name, len(numbers)) for name in source.names], np.int64))
    return maps, list(numbers)


def _separate_names(sources: Sequence[Source]) -> list[str]:
    if not _share_names(sources):
        return [name for source in sources for name in source.names]
    warn("some names occur in more than one set; the number of the set is put before all names (1_NAME, 2_NAME, …)")
    return [f"{number}_{name}" for number, source in enumerate(sources, 1) for name in source.names]


def _share_names(sources: Sequence[Source]) -> bool:
    return len({name for source in sources for name in source.names}) < sum(len(source.names) for source in sources)


def run(arguments: argparse.Namespace) -> None:
    with new_folder(arguments.out) as folder:
        sources = [Source.open(path) for path in arguments.sources]
        maps, names = merge_labels(sources, arguments.classes)
        selection = Selection(
            np.repeat(np.arange(len(sources)), [len(source.faces) for source in sources]),
            np.concatenate([np.arange(len(source.faces)) for source in sources]),
            np.concatenate([new[source.faces.labels()] for source, new in zip(sources, maps, strict=True)]),
        ).grouped()
        prefix = "" if len(sources) == 1 else "file"
        if arguments.classes == "separate":
            prefix = "folder" if _share_names(sources) else ""
        write_selection(
            folder,
            sources,
            selection,
            names,
            workers=arguments.workers,
            shards=arguments.shards,
            grouped=len(np.unique(selection.label)) == len(names),  # identity records need an image of each class
            prefix=prefix,
        )
    print(f"{arguments.out}: {len(selection)} images of {len(names)} identities from {len(sources)} sets")
