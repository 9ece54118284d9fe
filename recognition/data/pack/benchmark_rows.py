"""Rows of a contact sheet from benchmarks: pairs of a .bin, templates of IJB, people of TinyFace (the paper's figures 4b-4d)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from eval.protocols.ijb_files import TARGETS, LooseCrops, Meta
from eval.protocols.tinyface import ALIGNED, PARTS, find_tinyface
from eval.verification import load_bin
from recognition.data.pack.face_encoding import fit_square
from utils.errors import UserError
from utils.images import Image, decode_image
from utils.randomness import Permutation

SAME, DIFFERENT = (0, 150, 60), (210, 30, 30)  # green and red, RGB
FRAME = 3  # pixels

Rows = list[list[Image]]


def benchmark_rows(source: Path) -> Callable[[argparse.Namespace], Rows] | None:
    """The function that makes the rows of a benchmark, RGB [size, size, 3] each; None if `source` is not one."""
    if source.suffix == ".bin":
        return partial(_pairs, source)
    for target in TARGETS:
        if (source / "meta" / f"{target.lower()}_face_tid_mid.txt").is_file():
            return partial(_templates, source, target)
    if any((folder / PARTS[0]).is_dir() for folder in (source, source / ALIGNED, source / "tinyface" / ALIGNED)):
        return partial(_people, source)
    return None


def _pairs(source: Path, arguments: argparse.Namespace) -> Rows:
    """Random pairs side by side, each face framed in green (same person) or red (different people)."""
    encoded, issame = load_bin(source)
    per_row = arguments.images // 2
    if not per_row:
        raise UserError(f"--images {arguments.images}: a row of pairs needs two or more images")
    cells = []
    for pair in _chosen(len(issame), per_row * arguments.identities, arguments):
        for index in (2 * pair, 2 * pair + 1):
            face = fit_square(decode_image(encoded[index], f"{source}, image {index}"), arguments.size, "pad").copy()
            inside = face[FRAME:-FRAME, FRAME:-FRAME].copy()
            face[:] = SAME if issame[pair] else DIFFERENT
            face[FRAME:-FRAME, FRAME:-FRAME] = inside
            cells.append(face)
    return [cells[start : start + 2 * per_row] for start in range(0, len(cells), 2 * per_row)]


def _templates(source: Path, target: str, arguments: argparse.Namespace) -> Rows:
    """Random templates, one per row, aligned."""
    meta = Meta(source / "meta", target)
    images = meta.images()
    crops = LooseCrops(source / "loose_crop", images, meta.landmarks(images)[0])
    templates = np.unique(images.templates)
    chosen = [templates[place] for place in _chosen(len(templates), arguments.identities, arguments)]
    return [_faces(crops.load, np.flatnonzero(images.templates == template), arguments) for template in chosen]


def _people(source: Path, arguments: argparse.Namespace) -> Rows:
    """Random people, one per row: their probes, then their images in the gallery."""
    data = find_tinyface(source)
    people = np.unique(data.labels[: data.probes])
    chosen = [people[place] for place in _chosen(len(people), arguments.identities, arguments)]
    return [_faces(data.load, np.flatnonzero(data.labels == person), arguments) for person in chosen]


def _faces(load: Callable[[int], Image], indices: np.ndarray, arguments: argparse.Namespace) -> list[Image]:
    return [fit_square(load(index), arguments.size, "pad") for index in indices[: arguments.images].tolist()]


def _chosen(total: int, count: int, arguments: argparse.Namespace) -> list[int]:
    """`count` random numbers below `total`, or those from `--first` on."""
    if arguments.augmentation is not None:
        raise UserError(f"--augmentation: {arguments.source} is a benchmark; augmentations are shown of packed sets")
    first = arguments.first
    if first is None:
        return Permutation(total, arguments.seed, epoch=0)(np.arange(min(count, total))).tolist()
    if not 0 <= first < total:
        raise UserError(f"--first {first}: {arguments.source} has {total:,}, counted from 0")
    return list(range(first, min(first + count, total)))
