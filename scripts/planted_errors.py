"""Plant errors in a packed data set, and measure how many of them `pack audit` finds.

    python -m scripts.planted_errors plant ../shared/faces/lfw_train PLANTED
    python -m recognition.data.pack audit PLANTED/data AUDIT --checkpoint ENCODER --against PLANTED/against.bin
    python -m scripts.planted_errors score PLANTED AUDIT/audit.csv

`plant` writes a set with the people of the source, apart from: copies of images (byte for byte, re-encoded, mirrored, shifted;
every second one under another identity), images under wrong labels, people split over two labels, pairs merged into one, and
people who also appear in `against.bin`. `against.bin` holds other photographs of these people, copies of images of the set, and
photographs of people who are not in it. `planted.json` lists it all, by image number and label of the planted set.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from prettytable import PrettyTable

from recognition.data.bins import write_bin
from recognition.data.dataset import FaceDataset
from recognition.data.pack.listing import write_classes
from recognition.data.pack.output import new_folder
from recognition.data.pack.shard_writer import ShardWriter, write_property
from utils.errors import exit_on_user_error
from utils.files import open_text, write_file
from utils.images import FACE_SIZE, Image, decode_face

PLANTED = "planted.json"
SHARES = {"split": 0.05, "merged": 0.07, "shared": 0.05, "stranger": 0.1}  # of the people; `merged` counts both of a pair
COPIES = {"exact": 0.01, "mirrored exact": 0.005, "re-encoded": 0.015, "mirrored": 0.01, "shifted": 0.005}  # of the images
WRONG_LABELS = 0.015  # of the images
FEWEST_TO_SPLIT = 8  # images of a person
PAIRS_PER_PERSON = 2  # in against.bin


# ------------------------------------------------------------------------------------------------ planting


@dataclass
class Planted:
    """The images of the planted set, and what is wrong with them. Numbers are those of `images`; see `written`."""

    images: list[tuple[bytes, int]]  # encoded image, label
    copies: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # kind -> (copy, original)
    wrong: list[int] = field(default_factory=list)
    split: list[tuple[int, int]] = field(default_factory=list)  # labels
    merged: list[int] = field(default_factory=list)  # labels
    shared: list[int] = field(default_factory=list)  # labels of people in against.bin
    shared_images: list[int] = field(default_factory=list)  # images with a copy in against.bin


def re_encoded(image: Image, rng: np.random.Generator) -> Image:
    """The image as another site might store it: resized and back, a little brighter or darker, a lower JPEG quality."""
    side = int(rng.integers(80, 140))
    resized = cv2.resize(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), (FACE_SIZE, FACE_SIZE))
    lighter = np.clip(resized * rng.uniform(0.9, 1.1), 0, 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", lighter, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


def shifted(image: Image, rng: np.random.Generator) -> Image:
    """The image as another detector might crop it: moved by up to 3 pixels, scaled by up to 3 %, rotated by up to 2 degrees."""
    centre = (FACE_SIZE / 2, FACE_SIZE / 2)
    warp = cv2.getRotationMatrix2D(centre, float(rng.uniform(-2, 2)), float(rng.uniform(0.97, 1.03)))
    warp = warp + np.pad(rng.uniform(-3, 3, (2, 1)), ((0, 0), (2, 0)))
    return np.asarray(cv2.warpAffine(image, warp, (FACE_SIZE, FACE_SIZE), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def mirrored(image: Image, rng: np.random.Generator) -> Image:
    return re_encoded(np.ascontiguousarray(image[:, ::-1]), rng)


CHANGES: dict[str, tuple[Callable[[Image, np.random.Generator], Image], str]] = {
    "mirrored exact": (lambda image, rng: np.ascontiguousarray(image[:, ::-1]), ".png"),
    "re-encoded": (re_encoded, ".jpg"),
    "mirrored": (mirrored, ".jpg"),
    "shifted": (shifted, ".jpg"),
}


def changed(payload: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A copy of an encoded image: of the kinds in `COPIES`."""
    if kind == "exact":
        return payload
    change, suffix = CHANGES[kind]
    return cv2.imencode(suffix, change(decode_face(payload, kind, "BGR"), rng), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def plant(faces: FaceDataset, rng: np.random.Generator) -> tuple[Planted, list[tuple[bytes, bytes, bool]]]:
    """The planted set, not in the order of labels, and the pairs of against.bin."""
    labels = faces.labels()
    counts = np.bincount(labels)
    order = rng.permutation(np.flatnonzero(counts >= FEWEST_TO_SPLIT)).tolist()
    taken = {name: [order.pop() for _ in range(max(2, round(share * len(counts) / 2) * 2))] for name, share in SHARES.items()}
    images = {label: [faces.read(i)[0] for i in np.flatnonzero(labels == label).tolist()] for label in range(len(counts))}
    pairs: list[tuple[bytes, bytes, bool]] = []
    for person in (*taken["shared"], *taken["stranger"]):
        shots = [images[person].pop() for _ in range(2 * PAIRS_PER_PERSON)]
        pairs += [(first, second, True) for first, second in zip(shots[::2], shots[1::2], strict=True)]
    strangers = [image for person in taken["stranger"] for image in images.pop(person)]
    other_pairs = list(zip(strangers, rng.permutation(len(strangers)).tolist(), strict=True))
    pairs += [(first, strangers[second], False) for first, second in other_pairs if first != strangers[second]][: len(pairs)]
    for one, two in zip(taken["merged"][::2], taken["merged"][1::2], strict=True):
        images[one] += images.pop(two)
    spare = len(counts)
    for person in taken["split"]:
        half = len(images[person]) // 2
        images[spare], images[person] = images[person][half:], images[person][:half]
        spare += 1
    new_label = {label: number for number, label in enumerate(sorted(images))}
    planted = Planted([(payload, new_label[label]) for label in sorted(images) for payload in images[label]])
    planted.merged = [new_label[label] for label in taken["merged"][::2]]
    planted.split = [(new_label[p], new_label[len(counts) + n]) for n, p in enumerate(taken["split"])]
    planted.shared = [new_label[label] for label in taken["shared"]]
    _plant_copies(planted, len(images), rng)
    _plant_wrong_labels(planted, len(images), rng)
    # Copies of a few other images become different pairs of the verification set.
    untouched = set(range(len(planted.images))) - {i for pair in planted.copies.values() for both in pair for i in both}
    for number in rng.permutation(sorted(untouched - set(planted.wrong)))[: len(taken["shared"])].tolist():
        copy = changed(planted.images[number][0], "re-encoded", rng)
        pairs.append((copy, strangers[int(rng.integers(len(strangers)))], False))
        planted.shared_images.append(number)
    return planted, [pairs[place] for place in rng.permutation(len(pairs)).tolist()]


def _plant_copies(planted: Planted, people: int, rng: np.random.Generator) -> None:
    """Append copies of images; every second one under another label."""
    total = len(planted.images)
    originals = rng.permutation(total).tolist()
    for kind, share in COPIES.items():
        for number in range(max(2, round(share * total))):
            original = originals.pop()
            payload, label = planted.images[original]
            other = (label + 1 + int(rng.integers(people - 1))) % people if number % 2 else label
            planted.copies.setdefault(kind, []).append((len(planted.images), original))
            planted.images.append((changed(payload, kind, rng), other))


def _plant_wrong_labels(planted: Planted, people: int, rng: np.random.Generator) -> None:
    """Move images to other labels; none that has a copy, or that would leave fewer than three behind."""
    copied = {image for pairs in planted.copies.values() for pair in pairs for image in pair}
    left = np.bincount([label for _, label in planted.images], minlength=people)
    wanted = round(WRONG_LABELS * len(planted.images))
    for image in rng.permutation(len(planted.images)).tolist():
        payload, label = planted.images[image]
        if image in copied or left[label] < 4 or len(planted.wrong) == wanted:
            continue
        left[label] -= 1
        planted.images[image] = payload, (label + 1 + int(rng.integers(people - 1))) % people
        planted.wrong.append(image)


def write(planted: Planted, pairs: list[tuple[bytes, bytes, bool]], out: Path) -> None:
    """Write the set, sorted by label, the verification set and the list of errors."""
    labels = np.array([label for _, label in planted.images])
    order = np.argsort(labels, kind="stable")
    place = np.argsort(order).tolist()  # number in `planted.images` -> number in the set that is written
    with new_folder(out) as folder:
        data = folder / "data"
        data.mkdir()
        with ShardWriter(data, len(order)) as writer:
            for number in order.tolist():
                writer.write(planted.images[number][1], planted.images[number][0])
        counts = np.bincount(labels).tolist()
        write_classes(data, [f"{label:07d}" for label in range(len(counts))], counts)
        write_property(data, len(counts), (FACE_SIZE, FACE_SIZE))
        write_bin(folder / "against.bin", [image for *both, _ in pairs for image in both], [same for *_, same in pairs])
        truth = {
            "copies": {kind: [[place[i] for i in pair] for pair in found] for kind, found in planted.copies.items()},
            "wrong": sorted(place[image] for image in planted.wrong),
            "split": planted.split,
            "merged": planted.merged,
            "shared": planted.shared,
            "shared_images": sorted(place[image] for image in planted.shared_images),
        }
        write_file(folder / PLANTED, json.dumps(truth, indent=1))


# ------------------------------------------------------------------------------------------------ scoring


def score(planted: Path, audit: Path) -> PrettyTable:
    """Precision and recall of each kind of finding."""
    truth = json.loads((planted / PLANTED).read_text())
    labels = FaceDataset(planted / "data").labels()
    with open_text(audit, newline="") as file:
        rows = list(csv.DictReader(file))

    def found(kinds: tuple[str, ...], *columns: str) -> set[tuple[int, ...]]:
        return {tuple(sorted(int(row[column]) for column in columns)) for row in rows if row["kind"] in kinds}

    pairs = {kind: {tuple(sorted(pair)) for pair in pairs} for kind, pairs in truth["copies"].items()}
    copies = found(("exact", "near"), "image", "other_image")
    wrong_copies = {copy for pairs in truth["copies"].values() for copy, original in pairs if labels[copy] != labels[original]}
    originals = {original for pairs in truth["copies"].values() for copy, original in pairs if copy in wrong_copies}
    wrong: set[tuple[int, ...]] = {(image,) for image in truth["wrong"]}
    with_shared_image = {(int(labels[image]),) for image in truth["shared_images"]} - {(label,) for label in truth["shared"]}
    suspects = found(("suspect",), "image")
    kinds: dict[str, tuple[set[tuple[int, ...]], set[tuple[int, ...]]]] = {
        "copies, all": (copies, set().union(*pairs.values())),
        "wrong labels": (suspects - {(image,) for image in wrong_copies | originals}, wrong),
        "split": (found(("split",), "label", "other_label"), {tuple(sorted(pair)) for pair in truth["split"]}),
        "merged": (found(("merged",), "label"), {(label,) for label in truth["merged"]}),
        "shared images": (found(("shared_image",), "image"), {(image,) for image in truth["shared_images"]}),
        "shared people": (found(("shared_person",), "label") - with_shared_image, {(label,) for label in truth["shared"]}),
    }
    kinds |= {f"copies, {kind}": (copies & expected, expected) for kind, expected in pairs.items()}
    table = PrettyTable(["planted", "number", "found", "of which right", "precision, %", "recall, %"], align="r")
    table.align["planted"] = "l"
    for name, (listed, expected) in kinds.items():
        right = len(listed & expected)
        precision = "" if name.startswith("copies, ") and name != "copies, all" else f"{100 * right / max(len(listed), 1):.0f}"
        table.add_row([name, len(expected), len(listed), right, precision, f"{100 * right / max(len(expected), 1):.0f}"])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant", help="write a set with errors")
    planting.add_argument("source", type=Path, help="a packed set of people with several images each")
    planting.add_argument("out", type=Path, help="folder to create")
    planting.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score", help="compare an audit with what was planted")
    scoring.add_argument("planted", type=Path, help="folder that `plant` made")
    scoring.add_argument("audit", type=Path, help="audit.csv")
    arguments = parser.parse_args()
    if arguments.command == "plant":
        write(*plant(FaceDataset(arguments.source), np.random.default_rng(arguments.seed)), arguments.out)
    else:
        print(score(arguments.planted, arguments.audit))


if __name__ == "__main__":
    exit_on_user_error(main)
