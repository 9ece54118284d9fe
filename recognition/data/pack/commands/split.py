"""Data set -> a training set, and verification pairs of people who are not in it.

    python -m recognition.data.pack split packed/ train/ --held-out 0.2 --pairs 3000
    python train.py configs/small_qg rec=train val_targets=held_out_hq,held_out_mixed,held_out_lq

The people are divided at random. Those who stay get the labels 0, 1, 2, …; held_out.csv lists the others with their old labels.
Half of the pairs show one person and half show two, spread over the held-out people as evenly as possible; from 20 people
on, the ten folds of verification have none in common. The same pairs are written three times: held_out_hq.bin as they are,
held_out_mixed.bin with the second face degraded, held_out_lq.bin with both degraded (as by `pairs --degrade`). The result depends
only on the data, the options and --seed.
"""

from __future__ import annotations

import argparse
from functools import partial
from math import isqrt

import numpy as np

from eval.verification import FOLDS
from recognition.data.bins import write_bin
from recognition.data.dataset import FaceDataset
from recognition.data.pack.arguments import add_out_folder_argument, add_packed_set_argument, add_shards_argument
from recognition.data.pack.commands.degrade import CHOICE, PAIRS, Degradation, add_degradation_arguments
from recognition.data.pack.face_encoding import FaceFormat
from recognition.data.pack.listing import CLASS_COLUMNS
from recognition.data.pack.output import CsvFile, new_folder
from recognition.data.pack.rewrite import Int64Array, Selection, Source, write_selection
from recognition.data.parallel import add_workers_argument, in_order, shared_object
from utils.errors import UserError, warn

HELP = "data set -> training set and verification pairs of other people"
HELD_OUT = "held_out"
QUALITIES = {"hq": (0, 1), "mixed": (0, 3), "lq": (2, 3)}  # which of `pair_images` a pair consists of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser, pictures=True)
    add_out_folder_argument(parser)
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the people to hold out (%(default)s)")
    parser.add_argument("--pairs", type=int, default=3000, help="number of pairs, half of them of one person (%(default)s)")
    add_degradation_arguments(parser)
    add_shards_argument(parser)
    add_workers_argument(parser)


def divide_people(labels: Int64Array, share: float, rng: np.random.Generator) -> tuple[Int64Array, Int64Array]:
    """The labels of those who stay and of those who are held out, ascending. Raises UserError if either are fewer than two."""
    people = np.unique(labels)
    count = round(min(max(share, 0.0), 1.0) * len(people))
    if not 2 <= count <= len(people) - 2:
        raise UserError(f"--held-out {share}: holds out {count} of {len(people)} people; at least two must go and two must stay")
    order = rng.permutation(people)
    return np.sort(order[count:]), np.sort(order[:count])


def draw_pairs(people: list[Int64Array], pairs: int, rng: np.random.Generator) -> Int64Array:
    """Draw pairs of images, each once: int64 [pairs, 2], of one person in even rows, of two in odd rows.

    people: the numbers of each person's images. The ten folds of verification, tenths of the rows, have no person in common.
    Warns if the people are too few for that or for `pairs`; the result may have fewer rows then. Raises UserError if there are
    fewer than ten.
    """
    groups = deal(people)
    if not (available := FOLDS * min(map(_available, groups))):
        groups, available = [people], _available(people)
    each = min(pairs // 2, available)
    found = f"{len(people)} held-out people with {sum(map(len, people))} images"
    advice = "hold out more people, or give fewer --pairs"
    if 2 * each < FOLDS:
        raise UserError(f"--pairs {pairs}: {found} allow {2 * available}; verification needs at least {FOLDS}")
    if len(groups) == 1:
        warn(f"{found} are too few for {FOLDS} folds of different people: the folds share people; hold out more people")
    if each < pairs // 2:
        warn(f"{found} allow only {2 * each} of {pairs} pairs; {advice}")
    elif sum(_couples(group) for group in groups) < each:
        warn(f"{len(people)} held-out people are few for {pairs} pairs: results will depend on who they are; {advice}")
    drawn = np.empty((2 * each, 2), np.int64)
    for group, rows in zip(groups, np.array_split(np.arange(2 * each), len(groups)), strict=True):
        drawn[rows[rows % 2 == 0]] = _pairs_of_one(group, int((rows % 2 == 0).sum()), rng)
        drawn[rows[rows % 2 == 1]] = _pairs_of_two(group, int((rows % 2 == 1).sum()), rng)
    return drawn


def deal(people: list[Int64Array]) -> list[list[Int64Array]]:
    """Divide people among as many groups as there are folds, with about as many images each."""
    order = sorted(people, key=len, reverse=True)
    turn = np.arange(len(order)) % (2 * FOLDS)
    group = np.minimum(turn, 2 * FOLDS - 1 - turn)  # back and forth
    return [[order[place] for place in np.flatnonzero(group == number).tolist()] for number in range(FOLDS)]


def _couples(people: list[Int64Array]) -> int:
    return len(people) * (len(people) - 1) // 2


def _available(people: list[Int64Array]) -> int:
    """How many pairs of one person, and as many of two, can be drawn."""
    sizes = np.array([len(images) for images in people], np.int64)
    return int(min((sizes * (sizes - 1) // 2).sum(), (sizes.sum() ** 2 - (sizes**2).sum()) // 2))


def _pairs_of_one(people: list[Int64Array], count: int, rng: np.random.Generator) -> Int64Array:
    sizes = np.array([len(images) for images in people])
    person, number = _spread(sizes * (sizes - 1) // 2, count, rng)
    pairs = [people[p][list(_two_of(n))] for p, n in zip(person.tolist(), number.tolist(), strict=True)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _pairs_of_two(people: list[Int64Array], count: int, rng: np.random.Generator) -> Int64Array:
    sizes, couples = np.array([len(images) for images in people]), _couples(people)
    chosen = np.array([_two_of(n) for n in rng.choice(couples, min(couples, count), replace=False).tolist()], np.int64)
    couple, number = _spread(sizes[chosen.reshape(-1, 2)].prod(axis=1), count, rng)
    pairs = [
        [people[p][n % sizes[p]], people[q][n // sizes[p]]]
        for (p, q), n in zip(chosen[couple].tolist(), number.tolist(), strict=True)
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _spread(available: Int64Array, wanted: int, rng: np.random.Generator) -> tuple[Int64Array, Int64Array]:
    """Draw `wanted` pairs, as evenly as possible from groups with `available` pairs each: their groups and numbers, shuffled."""
    quotas = np.zeros_like(available)
    order = rng.permutation(len(available))
    while (left := wanted - int(quotas.sum())) > 0:
        quotas[order[quotas[order] < available[order]][:left]] += 1
    drawn = [rng.choice(count, quota, replace=False) for count, quota in zip(available, quotas, strict=True)]
    order = rng.permutation(wanted)
    return np.repeat(np.arange(len(available)), quotas)[order], np.concatenate([np.empty(0, np.int64), *drawn])[order]


def _two_of(number: int) -> tuple[int, int]:
    """Two places a < b; the numbers 0, 1, 2, … list (0, 1), (0, 2), (1, 2), (0, 3), …"""
    b = (1 + isqrt(8 * number + 1)) // 2
    return number - b * (b - 1) // 2, b


def pair_images(degradation: Degradation, numbered: tuple[int, list[int]]) -> list[bytes]:
    """Runs in a worker: the two images of a numbered pair, then both degraded, with the random numbers of `pairs`."""
    faces: FaceDataset = shared_object()
    number, pair = numbered
    payloads = [faces.read(image)[0] for image in pair]
    return payloads + [
        degradation(payload, faces.where(image), FaceFormat(), PAIRS, number, member)
        for member, (payload, image) in enumerate(zip(payloads, pair, strict=True))
    ]


def run(arguments: argparse.Namespace) -> None:
    low, high = arguments.pixels
    degradation = Degradation(low, high, arguments.seed)
    rng = np.random.default_rng([arguments.seed, CHOICE])
    with new_folder(arguments.out) as folder:
        source = Source.open(arguments.source)
        labels = source.faces.labels()
        kept, held_out = divide_people(labels, arguments.held_out, rng)
        order = np.argsort(labels, kind="stable")
        starts, ends = (np.searchsorted(labels[order], held_out, side).tolist() for side in ("left", "right"))
        people = [order[start:end] for start, end in zip(starts, ends, strict=True)]
        pairs = draw_pairs(people, arguments.pairs, rng)
        images = np.flatnonzero(np.isin(labels, kept))
        selection = Selection(np.zeros_like(images), images, np.searchsorted(kept, labels[images])).grouped()
        names = [source.names[label] for label in kept.tolist()]
        write_selection(folder, [source], selection, names, workers=arguments.workers, shards=arguments.shards)
        with CsvFile(folder / f"{HELD_OUT}.csv", CLASS_COLUMNS) as table:
            for label, own in zip(held_out.tolist(), people, strict=True):
                table.row(label, source.names[label], len(own))
        work, numbered = partial(pair_images, degradation), list(enumerate(pairs.tolist()))
        with in_order(work, numbered, arguments.workers, "pairs", len(pairs), "pairs", shared=source.faces) as results:
            made = list(results)
        for quality, members in QUALITIES.items():
            chosen = [images[member] for images in made for member in members]
            write_bin(folder / f"{HELD_OUT}_{quality}.bin", chosen, [number % 2 == 0 for number in range(len(pairs))])
    print(f"{arguments.out}: {len(selection)} images of {len(kept)} people, {len(pairs)} pairs of {len(held_out)} others")
    print(f"next: rec={arguments.out} val_targets={','.join(f'{HELD_OUT}_{quality}' for quality in QUALITIES)}")
