"""A data set of procedural faces, packed like a real one: `python -m recognition.data.demo_faces --out data/demo`.

With it everything can be tried offline and without a photo of any person. It consists of train.rec, train.idx and property in
insightface's layout, and of demo_hq.bin, demo_mixed.bin and demo_lq.bin, which contain the same pairs of people, none of them in
train.rec. The set is a function of its parameters; the number of workers only changes the time.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recognition.data.bins import write_bin
from recognition.data.degrade import degrade
from recognition.data.demo.render import render
from recognition.data.pack.face_encoding import FaceFormat, encode
from recognition.data.parallel import add_workers_argument, cores, exit_on_signals, in_order
from recognition.data.records.writer import RecordWriter
from utils.errors import UserError, exit_on_user_error
from utils.files import new_folder
from utils.images import FACE_SIZE

__all__ = ["DemoSet", "make_demo_set", "render"]

VERSION = 2  # increase it whenever a picture changes, so that an older set is not reused
MANIFEST = "demo.json"
BINS = ("demo_hq.bin", "demo_mixed.bin", "demo_lq.bin")
FOLDS = 10
JPEG = FaceFormat(quality=92)
# Random streams; 0 and 1 are those of `person` and `shot`.
_PAIRS, _PAIR_QUALITY, _TRAIN_QUALITY = 2, 3, 4

Place = tuple[int, int, int]  # pair, member of the pair (0 or 1), number of the picture
PairImages = list[tuple[int, int, bytes, bytes]]  # pair, member, sharp image, degraded image


def _parameter(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DemoSet:
    """The parameters of a set. The unseen people are numbered after those in train.rec. Raises UserError if out of range."""

    identities: int = _parameter(400, "people in train.rec")
    images_per_identity: int = _parameter(24, "images of each person")
    unseen: int = _parameter(100, "other people, for the .bin files")
    pairs: int = _parameter(2000, "pairs in each .bin; a multiple of 20")
    seed: int = _parameter(0, "another seed creates other people")
    low_quality_share: float = _parameter(0.1, "share of training images that are degraded")

    def __post_init__(self) -> None:
        at_least = {"identities": 2, "images_per_identity": 2, "unseen": 2, "pairs": 2 * FOLDS, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 <= self.low_quality_share <= 1:
            raise UserError(f"low_quality_share is {self.low_quality_share}; it must be in [0, 1]")
        if self.pairs % (2 * FOLDS):
            raise UserError(f"pairs is {self.pairs}; it must be a multiple of {2 * FOLDS} (ten folds of two halves)")
        same = self.unseen * self.images_per_identity * (self.images_per_identity - 1) // 2
        if self.pairs // 2 > same:
            raise UserError(
                f"pairs is {self.pairs}, half of them of one person, but {self.unseen} unseen people with "
                f"{self.images_per_identity} images each make {same} such pairs; ask for fewer"
            )


# ------------------------------------------------------------------------------------------------ the training set


def _encode(image_rgb: np.ndarray) -> bytes:
    return encode(image_rgb[..., ::-1], JPEG)


def _training_images(parameters: DemoSet, identity: int) -> list[bytes]:
    """Runs in a worker: one person's training images, encoded, some of them degraded."""
    images = []
    for index in range(parameters.images_per_identity):
        image = render(parameters.seed, identity, index)
        rng = np.random.default_rng([parameters.seed, _TRAIN_QUALITY, identity, index])
        if rng.uniform() < parameters.low_quality_share:
            image = degrade(image, rng, low=14, high=40)
        images.append(_encode(image))
    return images


def _write_training_set(folder: Path, parameters: DemoSet, images: Iterable[list[bytes]]) -> None:
    """Write insightface's layout: images 1..N; record 0 with the range of the identity records, which follow the images."""
    count, people = parameters.identities * parameters.images_per_identity, parameters.identities
    with RecordWriter(folder / "train.rec") as writer:
        writer.write(0, [count + 1, count + people + 1], b"")
        key = 1
        for identity, encoded in enumerate(images):
            for payload in encoded:
                writer.write(key, float(identity), payload)
                key += 1
        assert key == count + 1, "every person has images_per_identity images"
        for identity in range(people):
            first = 1 + identity * parameters.images_per_identity
            writer.write(count + 1 + identity, [first, first + parameters.images_per_identity], b"")
    (folder / "property").write_text(f"{people},{FACE_SIZE},{FACE_SIZE}\n", encoding="ascii")


# ------------------------------------------------------------------------------------------------ the verification sets


def _draw_pairs(parameters: DemoSet) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The pairs, of (identity, index) each, in the order of the .bin: in each fold, first one person, then two people."""
    rng = np.random.default_rng([parameters.seed, _PAIRS])
    people, pictures, half = parameters.unseen, parameters.images_per_identity, parameters.pairs // (2 * FOLDS)
    drawn: set[tuple[tuple[int, int], tuple[int, int]]] = set()

    def draw(same: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        while True:
            first, second = (int(person) for person in rng.choice(people, 2, replace=False))
            if same:
                second = first
            left, right = (int(index) for index in rng.choice(pictures, 2, replace=not same))
            pair = ((parameters.identities + first, left), (parameters.identities + second, right))
            if pair not in drawn and pair[::-1] not in drawn:
                drawn.add(pair)
                return pair

    return [draw(same) for _ in range(FOLDS) for same in (True, False) for _ in range(half)]


def _places(parameters: DemoSet) -> list[tuple[int, list[Place]]]:
    """For each unseen person in the pairs, where their pictures occur."""
    places: dict[int, list[Place]] = {}
    for pair, members in enumerate(_draw_pairs(parameters)):
        for member, (identity, index) in enumerate(members):
            places.setdefault(identity, []).append((pair, member, index))
    return sorted(places.items())


def _pair_images(parameters: DemoSet, person: tuple[int, list[Place]]) -> PairImages:
    """Runs in a worker: one unseen person's images, sharp and degraded, for each of their places in the pairs."""
    identity, places = person
    rendered: dict[int, np.ndarray] = {}
    images = []
    for pair, member, index in places:
        if index not in rendered:
            rendered[index] = render(parameters.seed, identity, index)
        rng = np.random.default_rng([parameters.seed, _PAIR_QUALITY, pair, member])
        images.append((pair, member, _encode(rendered[index]), _encode(degrade(rendered[index], rng))))
    return images


def _write_bins(folder: Path, parameters: DemoSet, images: Iterable[PairImages]) -> None:
    """Write the same pairs three times: both images sharp, the second one degraded, both degraded."""
    sharp, poor = [b""] * (2 * parameters.pairs), [b""] * (2 * parameters.pairs)
    for person in images:
        for pair, member, good, bad in person:
            sharp[2 * pair + member], poor[2 * pair + member] = good, bad
    half = parameters.pairs // (2 * FOLDS)
    issame = ([True] * half + [False] * half) * FOLDS
    mixed = [poor[place] if place % 2 else sharp[place] for place in range(2 * parameters.pairs)]
    for name, content in zip(BINS, (sharp, mixed, poor), strict=True):
        write_bin(folder / name, content, issame)


# ------------------------------------------------------------------------------------------------ the whole set


def _make(folder: Path, parameters: DemoSet, workers: int) -> None:
    people, places = range(parameters.identities), _places(parameters)
    work = partial(_training_images, parameters)
    with in_order(work, people, workers, "training faces", len(people), "people") as images:
        _write_training_set(folder, parameters, images)
    with in_order(partial(_pair_images, parameters), places, workers, "unseen faces", len(places), "people") as pairs:
        _write_bins(folder, parameters, pairs)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = {"version": VERSION, "parameters": asdict(parameters), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="ascii")


def _is_complete(folder: Path, parameters: DemoSet) -> bool:
    """Whether `folder` contains exactly this set. Raises UserError if it contains anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    advice = "delete it or choose another --out"
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        raise UserError(f"{folder}: exists and is not a demo set (it has no {MANIFEST}); {advice}")
    try:
        manifest = json.loads(manifest_path.read_bytes())
        found = manifest["version"], manifest["parameters"]
        files = {str(name): int(size) for name, size in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest_path}: does not describe a demo set ({error!r}); {advice}") from error
    if found != (VERSION, asdict(parameters)):
        raise UserError(
            f"{folder}: contains another demo set (version {found[0]}, {found[1]}; "
            f"asked for version {VERSION}, {asdict(parameters)}); {advice}"
        )
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path}: missing or not {size} bytes long, as listed in {MANIFEST}; {advice}")
    return True


def make_demo_set(out_dir: str | os.PathLike[str], *, workers: int | None = None, **parameters: Any) -> None:
    """Make a set of procedural faces, or reuse the same set if it exists. The folder appears as a whole or not at all.

    Args:
        out_dir: the folder to create, with its parents.
        workers: number of processes; by default one per core.
        parameters: fields of `DemoSet`.

    Raises:
        UserError: a parameter is out of range, `out_dir` contains something else, or it cannot be written.
    """
    demo_set = DemoSet(**parameters)
    folder = Path(out_dir).resolve()
    if _is_complete(folder, demo_set):
        print(f"{out_dir}: this demo set is complete and is reused")
        return
    print(f"{out_dir}: drawing the faces (about a minute on two cores)", flush=True)
    with new_folder(folder) as draft:
        _make(draft, demo_set, cores() if workers is None else workers)
    print(
        f"{out_dir}: {demo_set.identities} people with {demo_set.images_per_identity} images each, "
        f"{demo_set.pairs} pairs of {demo_set.unseen} unseen people"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recognition.data.demo_faces", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder to create")
    for option in fields(DemoSet):
        name, default = f"--{option.name.replace('_', '-')}", option.default
        parser.add_argument(name, type=type(default), default=default, help=f"{option.metadata['help']} (%(default)s)")
    add_workers_argument(parser)
    arguments = vars(parser.parse_args(program.arguments()))
    exit_on_signals()
    make_demo_set(arguments.pop("out"), **arguments)


if __name__ == "__main__":
    exit_on_user_error(main)
