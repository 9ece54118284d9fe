"""A set of procedural faces, packed as a real one: `python -m recognition.data.demo_faces --out data/demo`.

It lets everything be tried anywhere, offline, with no photograph of a person: train.rec, train.idx and property in
insightface's layout, and demo_hq.bin, demo_mixed.bin, demo_lq.bin over the same pairs of people who are not in
train.rec. A set is a function of its parameters: the number of workers changes the time only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from recognition.data.bins import write_bin
from recognition.data.degrade import degrade
from recognition.data.demo.render import render
from recognition.data.records.writer import RecordWriter
from utils.errors import UserError, exit_on_user_error
from utils.files import new_folder

__all__ = ["DemoSet", "make_demo_set", "render"]

VERSION = 2  # raise it whenever a picture changes, so that an older set is not taken for this one
MANIFEST = "demo.json"
BINS = ("demo_hq.bin", "demo_mixed.bin", "demo_lq.bin")
FOLDS = 10
JPEG_QUALITY = 92
# Streams of chance; `person` and `shot` have 0 and 1.
_PAIRS, _PAIR_QUALITY, _TRAIN_QUALITY = 2, 3, 4

Appearance = tuple[int, int, int]  # pair, side of the pair (0 or 1), index of the picture


@dataclass(frozen=True)
class DemoSet:
    """What a set is made of. The unseen people are numbered after those of the training set."""

    identities: int = 400
    images_per_identity: int = 24
    unseen: int = 100
    pairs: int = 2000
    seed: int = 0
    low_quality_share: float = 0.1

    def __post_init__(self) -> None:
        at_least = {"identities": 2, "images_per_identity": 2, "unseen": 2, "pairs": 2 * FOLDS, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 <= self.low_quality_share <= 1:
            raise UserError(f"low_quality_share is {self.low_quality_share}; it must lie in [0, 1]")
        if self.pairs % (2 * FOLDS):
            raise UserError(f"pairs is {self.pairs}; it must be a multiple of {2 * FOLDS} (ten folds of two halves)")
        same = self.unseen * self.images_per_identity * (self.images_per_identity - 1) // 2
        if self.pairs // 2 > same:
            raise UserError(
                f"pairs is {self.pairs}, half of them of one person, but {self.unseen} unseen people with "
                f"{self.images_per_identity} images each make {same} such pairs; ask for fewer"
            )


def _encode(image_rgb: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _training_images(parameters: DemoSet, identity: int) -> list[bytes]:
    """One person's training images, encoded; some of them seen from afar."""
    cv2.setNumThreads(1)
    images = []
    for index in range(parameters.images_per_identity):
        image = render(parameters.seed, identity, index)
        rng = np.random.default_rng([parameters.seed, _TRAIN_QUALITY, identity, index])
        if rng.uniform() < parameters.low_quality_share:
            image = degrade(image, rng, low=14, high=40)
        images.append(_encode(image))
    return images


def _pair_images(parameters: DemoSet, request: tuple[int, list[Appearance]]) -> list[tuple[int, int, bytes, bytes]]:
    """One unseen person's images: (pair, side, sharp, degraded) for each appearance in a pair."""
    cv2.setNumThreads(1)
    identity, appearances = request
    sharp: dict[int, np.ndarray] = {}
    images = []
    for pair, side, index in appearances:
        if index not in sharp:
            sharp[index] = render(parameters.seed, identity, index)
        rng = np.random.default_rng([parameters.seed, _PAIR_QUALITY, pair, side])
        images.append((pair, side, _encode(sharp[index]), _encode(degrade(sharp[index], rng))))
    return images


def _draw_pairs(parameters: DemoSet) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs of (identity, index) in the order of the .bin: in each fold the same people first, then different ones."""
    rng = np.random.default_rng([parameters.seed, _PAIRS])
    people, pictures, half = parameters.unseen, parameters.images_per_identity, parameters.pairs // (2 * FOLDS)
    seen: set[tuple[tuple[int, int], tuple[int, int]]] = set()

    def draw(same: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        while True:
            first, second = (int(person) for person in rng.choice(people, 2, replace=False))
            if same:
                second = first
            left, right = (int(index) for index in rng.choice(pictures, 2, replace=not same))
            pair = ((parameters.identities + first, left), (parameters.identities + second, right))
            if pair not in seen and pair[::-1] not in seen:
                seen.add(pair)
                return pair

    return [draw(same) for _ in range(FOLDS) for same in (True, False) for _ in range(half)]


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` that keeps the order, over so many processes."""
    if workers == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield pool.imap


def _write_training_set(folder: Path, parameters: DemoSet, images: Iterable[list[bytes]]) -> None:
    """insightface's layout: images 1..N, record 0 names the range of the identity records that follow them."""
    count, people = parameters.identities * parameters.images_per_identity, parameters.identities
    with RecordWriter(folder / "train.rec") as writer:
        writer.write(0, [count + 1, count + people + 1], b"", id=0)
        key = 1
        for identity, encoded in enumerate(images):
            for payload in encoded:
                writer.write(key, float(identity), payload, id=key)
                key += 1
        assert key == count + 1, "every person has images_per_identity images"
        for identity in range(people):
            first = 1 + identity * parameters.images_per_identity
            key = count + 1 + identity
            writer.write(key, [first, first + parameters.images_per_identity], b"", id=key)
    (folder / "property").write_text(f"{people},112,112\n", encoding="ascii")


def _requests(parameters: DemoSet) -> list[tuple[int, list[Appearance]]]:
    """For each unseen person, where the pairs need which picture."""
    needed: dict[int, list[Appearance]] = {}
    for pair, sides in enumerate(_draw_pairs(parameters)):
        for side, (identity, index) in enumerate(sides):
            needed.setdefault(identity, []).append((pair, side, index))
    return sorted(needed.items())


def _write_bins(folder: Path, parameters: DemoSet, images: Iterable[list[tuple[int, int, bytes, bytes]]]) -> None:
    """The same pairs three times: as they are, the second image degraded, both degraded."""
    sharp, poor = [b""] * (2 * parameters.pairs), [b""] * (2 * parameters.pairs)
    for person in images:
        for pair, side, good, bad in person:
            sharp[2 * pair + side], poor[2 * pair + side] = good, bad
    half = parameters.pairs // (2 * FOLDS)
    issame = ([True] * half + [False] * half) * FOLDS
    mixed = [poor[place] if place % 2 else sharp[place] for place in range(2 * parameters.pairs)]
    for name, content in zip(BINS, (sharp, mixed, poor), strict=True):
        write_bin(folder / name, content, issame)


def _cores() -> int:
    """Cores that this process may use; where the system does not say, those it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counted(progress: Progress, task: TaskID, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        yield item
        progress.advance(task)


def _make(folder: Path, parameters: DemoSet, workers: int) -> None:
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("people"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    requests = _requests(parameters)
    with Progress(*columns) as progress, _mapper(workers) as ordered:
        training = progress.add_task("training faces", total=parameters.identities)
        unseen = progress.add_task("unseen faces", total=len(requests))
        images = ordered(partial(_training_images, parameters), range(parameters.identities))
        _write_training_set(folder, parameters, _counted(progress, training, images))
        images = ordered(partial(_pair_images, parameters), requests)
        _write_bins(folder, parameters, _counted(progress, unseen, images))
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = {"version": VERSION, "parameters": asdict(parameters), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="ascii")


def _is_complete(folder: Path, parameters: DemoSet) -> bool:
    """Whether `folder` holds this very set. Anything else that is there is left alone and is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    advice = "delete it or choose another --out"
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        raise UserError(f"{folder}: exists and is no demo set (it has no {MANIFEST}); {advice}")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        found = manifest["version"], manifest["parameters"]
        files = {str(name): int(size) for name, size in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest_path}: not a demo set's description ({error!r}); {advice}") from error
    if found != (VERSION, asdict(parameters)):
        raise UserError(
            f"{folder}: holds another demo set (version {found[0]}, {found[1]}; "
            f"asked for version {VERSION}, {asdict(parameters)}); {advice}"
        )
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path}: missing or not {size} bytes long, as {MANIFEST} has it; {advice}")
    return True


def make_demo_set(
    out_dir: str | os.PathLike[str],
    identities: int = 400,
    images_per_identity: int = 24,
    unseen: int = 100,
    pairs: int = 2000,
    seed: int = 0,
    workers: int | None = None,
    low_quality_share: float = 0.1,
) -> None:
    """Makes a set of procedural faces, or reuses the same one if it is there already.

    The folder appears whole or not at all: it is made beside its place and renamed.

    Args:
        out_dir: folder to make; its parents are made too.
        identities: people in train.rec, labelled 0..identities-1.
        images_per_identity: images of each, also of each unseen person.
        unseen: further people, in the .bin files only.
        pairs: in each .bin; a multiple of 20 (ten folds, in each first the same people, then different ones).
        seed: other seeds give other people.
        workers: processes; by default as many as this process may use cores.
        low_quality_share: of the training images, so many are seen from afar, as in sets of mixed quality.

    Raises:
        UserError: parameters out of range, `out_dir` holds something else, or it cannot be written.
    """
    parameters = DemoSet(identities, images_per_identity, unseen, pairs, seed, low_quality_share)
    folder = Path(out_dir).resolve()
    workers = _cores() if workers is None else workers
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be 1 or more")
    if _is_complete(folder, parameters):
        print(f"{out_dir}: this demo set is complete already and is reused")
        return
    with new_folder(folder) as draft:
        _make(draft, parameters, workers)
    print(f"{out_dir}: {identities} people with {images_per_identity} images each, {pairs} pairs of {unseen} unseen people")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recognition.data.demo_faces", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder to make")
    defaults = DemoSet()
    for name, text in (
        ("identities", "people to train on"),
        ("images-per-identity", "images of each person"),
        ("unseen", "people to verify on"),
        ("pairs", "pairs in each .bin, a multiple of 20"),
        ("seed", "other seeds give other people"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(defaults, name.replace("-", "_")), help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--low-quality-share",
        type=float,
        default=defaults.low_quality_share,
        help="of the training images, seen from afar (%(default)s)",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes (as many as there are cores)")
    arguments = parser.parse_args()
    make_demo_set(
        arguments.out,
        arguments.identities,
        arguments.images_per_identity,
        arguments.unseen,
        arguments.pairs,
        arguments.seed,
        arguments.workers,
        arguments.low_quality_share,
    )


if __name__ == "__main__":
    exit_on_user_error(main)
