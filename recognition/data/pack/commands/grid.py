"""A contact sheet of a data set or a benchmark: some identities, one per row, as a PNG or JPEG picture.

    python -m recognition.data.pack grid packed/ sheet.png --identities 10 --images 8
    python -m recognition.data.pack grid photos/ sheet.png       # a folder with one subfolder per identity, or a text list
    python -m recognition.data.pack grid packed/ views.png --augmentation qgface
    python -m recognition.data.pack grid lfw.bin pairs.png       # pairs: same person framed in green, different people in red
    python -m recognition.data.pack grid IJBB/ templates.png     # one template per row; TinyFace: one person per row

With --augmentation, each row shows one image and then the results of that augmentation with successive random numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from recognition.data.augment import AUGMENTATIONS, UNIFORMS
from recognition.data.dataset import FaceDataset
from recognition.data.pack.benchmark_rows import benchmark_rows
from recognition.data.pack.face_encoding import fit_square
from recognition.data.sets.opening import open_faces
from utils.errors import UserError
from utils.files import write_file
from utils.images import FACE_SIZE, Image, decode_image
from utils.randomness import Permutation, uniforms

HELP = "contact sheet of a data set, of augmented images, or of a benchmark"
GAP, BACKGROUND = 2, 255
LARGEST_SIDE = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    described = "a .rec file, a folder with train.rec, shards or identities, a list, a .bin, or IJB-B, IJB-C or TinyFace"
    parser.add_argument("source", type=Path, help=described)
    parser.add_argument("out", type=Path, help="picture to write, .png or .jpg")
    parser.add_argument("--identities", type=int, default=10, help="number of rows (%(default)s)")
    parser.add_argument("--images", type=int, default=8, help="images per row (%(default)s)")
    parser.add_argument("--augmentation", choices=sorted(AUGMENTATIONS), help="show what this does to an image")
    parser.add_argument("--first", type=int, help="identities (pairs, templates) from this one on, instead of random ones")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice and the augmentation (%(default)s)")
    parser.add_argument("--size", type=int, default=FACE_SIZE, help="side of an image in pixels (%(default)s)")


def choose_labels(faces: FaceDataset, count: int, first: int | None, seed: int) -> list[int]:
    """Labels of identities that have images."""
    present = np.unique(faces.labels())
    if first is not None:
        chosen = present[present >= first][:count]
    else:
        chosen = present[Permutation(len(present), seed, epoch=0)(np.arange(min(count, len(present))))]
    if not len(chosen):
        raise UserError(f"{faces.path}: no identity from label {first} on; the largest is {present[-1]}")
    return [int(label) for label in chosen]


def read_image(faces: FaceDataset, image: int, size: int) -> Image:
    """An image of the set, RGB [size, size, 3]."""
    payload, _ = faces.read(image)
    return fit_square(decode_image(payload, faces.where(image)), size, "pad")


def make_row(faces: FaceDataset, label: int, arguments: argparse.Namespace) -> list[Image]:
    """The images that show one identity."""
    numbers = np.flatnonzero(faces.labels() == label)[: arguments.images].tolist()
    if arguments.augmentation is None:
        return [read_image(faces, number, arguments.size) for number in numbers]
    recipe = AUGMENTATIONS[arguments.augmentation]
    original = read_image(faces, numbers[0], arguments.size)
    draws = uniforms(arguments.seed, 0, np.arange(arguments.images - 1) + label * arguments.images, UNIFORMS)
    return [original, *(recipe(original, u) for u in draws)]


def make_sheet(rows: list[list[Image]], columns: int, size: int) -> Image:
    """The rows below each other on a white background, RGB."""
    cell = size + GAP
    sheet = np.full((GAP + len(rows) * cell, GAP + columns * cell, 3), BACKGROUND, np.uint8)
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            top, left = GAP + down * cell, GAP + across * cell
            sheet[top : top + size, left : left + size] = image
    return sheet


def run(arguments: argparse.Namespace) -> None:
    suffix = arguments.out.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{arguments.out}: the picture must be a .png or .jpg file")
    for name in ("identities", "images", "size"):
        value = getattr(arguments, name)
        if value < 1 or value * (1 if name == "size" else arguments.size + GAP) > LARGEST_SIDE:
            raise UserError(f"--{name} {value}: the picture must have from 1 to {LARGEST_SIDE} pixels per side")
    if make_rows := benchmark_rows(arguments.source):
        rows, shown = make_rows(arguments), "of the benchmark"
    else:
        faces = open_faces(arguments.source)
        labels = choose_labels(faces, arguments.identities, arguments.first, arguments.seed)
        rows, shown = [make_row(faces, label, arguments) for label in labels], f"labels {', '.join(map(str, labels))}"
    sheet = make_sheet(rows, arguments.images, arguments.size)
    done, encoded = cv2.imencode(suffix, sheet[..., ::-1])
    assert done, f"OpenCV could not encode a picture of shape {sheet.shape}"
    write_file(arguments.out, encoded.tobytes())
    print(f"{arguments.out}: {len(rows)} rows, {shown}")
