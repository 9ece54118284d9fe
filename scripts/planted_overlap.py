"""Cut a packed data set in two sets that have people in common, to measure what `rec_identities` is worth.

    python -m scripts.planted_overlap ../shared/faces/lfw_train OVERLAP
    python train.py configs/lfw_d rec=OVERLAP/a,OVERLAP/b rec_identities=overlapping       # or separate, or by_name

Of the shared people, every second image goes to `a` and the others to `b`; other people go to one of the two in turn. Each set
has labels of its own, and a `classes.csv` with the names that `by_name` joins.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from recognition.data.dataset import FaceDataset
from recognition.data.pack.listing import write_classes
from recognition.data.pack.output import new_folder
from recognition.data.records.writer import RecordWriter
from utils.errors import exit_on_user_error


def divide(labels_N: np.ndarray, share: float) -> np.ndarray:
    """The set of each image, 0 or 1: int64 [N]. share: of people who are in both sets, spread evenly over the labels."""
    set_N = np.empty(len(labels_N), np.int64)
    for label in range(int(labels_N.max()) + 1):
        images = np.flatnonzero(labels_N == label)
        is_shared = int((label + 1) * share) > int(label * share)
        set_N[images] = np.arange(len(images)) % 2 if is_shared else label % 2
    return set_N


def write(source: FaceDataset, images: np.ndarray, folder: Path) -> None:
    """Write some images as a packed set: labels in the order of the source's, named `person LABEL`."""
    people, labels, counts = np.unique(source.labels()[images], return_inverse=True, return_counts=True)
    folder.mkdir()
    with RecordWriter(folder / "train.rec") as writer:
        for key, (image, label) in enumerate(zip(images.tolist(), labels.tolist(), strict=True)):
            writer.write(key, label, source.read(image)[0])
    write_classes(folder, [f"person {person}" for person in people.tolist()], counts.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="packed data set")
    parser.add_argument("out", type=Path, help="new folder for the sets a and b")
    parser.add_argument("--share", type=float, default=1.0, help="share of the people who are in both sets")
    arguments = parser.parse_args()
    source = FaceDataset(arguments.source)
    set_N = divide(source.labels(), arguments.share)
    with new_folder(arguments.out) as folder:
        for number, name in enumerate("ab"):
            write(source, np.flatnonzero(set_N == number), folder / name)


if __name__ == "__main__":
    exit_on_user_error(main)
