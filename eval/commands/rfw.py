"""`python -m eval rfw`: Racial Faces in the Wild, four groups and the gaps between them.

Wang et al., *Racial Faces in-the-Wild: Reducing Racial Bias by Information Maximization Adaptation Network* (ICCV 2019).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from eval.commands.common import Figures, ImageSet, Results, add_benchmark_arguments, bin_sets, open_encoder
from eval.commands.common.overlap import add_overlap_arguments
from eval.commands.verify import evaluate_sets
from eval.embedding import check_images
from eval.present import paper
from eval.present.tables import NOT_MEASURED, Table, percent
from recognition.data.pack.commands.pairs import find_image, read_pairs
from recognition.data.pack.landmarks import Points, align_image
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.dist import World
from utils.errors import UserError
from utils.files import numbered_lines
from utils.images import FACE_SIZE, decode_image, read_image_file

NAME = "rfw"
GROUPS = ("African", "Asian", "Caucasian", "Indian")
SETS = (NAME, *(f"{NAME}_{group.lower()}" for group in GROUPS))
HELP = "RFW: ten-fold accuracy of four groups, and the gaps between them"

Group = tuple[ImageSet, np.ndarray]
"""The images, two per pair, and bool [P], whether a pair shows the same person."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    add_overlap_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="holds African.bin …, or the release: data/ and txts/")


def run(arguments: argparse.Namespace, world: World) -> None:
    encoder, figures = open_encoder(arguments, world), Figures(arguments)
    evaluate(arguments, encoder, prepare(Path(arguments.data_root)), figures)
    figures.finish()


def prepare(root: Path) -> list[Group]:
    """Find, decode and align all images of the four groups. Raises UserError if some are missing or damaged."""
    groups = [_find_group(root, group) for group in GROUPS]
    for images, _ in groups:
        check_images(images.count, images.load)
    return groups


def evaluate(arguments: argparse.Namespace, encoder: LoadedEncoder, data: list[Group], figures: Figures) -> None:
    """Embed on all ranks; judge, print and draw on rank 0. Adds `rfw_african` … -> metrics, and `rfw` -> the gaps."""
    evaluate_sets(arguments, encoder, data, figures, NAME)

    def judge() -> Results:
        gaps = compare_groups({name: figures.results[name]["accuracy"] for name in SETS[1:]})
        published = {} if arguments.no_paper else paper.RFW
        below = [_row(source, compare_groups({name: row[name] / 100 for name in SETS[1:]})) for source, row in published.items()]
        headings = ["RFW, accuracy of the groups", "average (%)", "std (%)", "best - worst (%)", "error, worst / best"]
        print(Table(headings, [_row(encoder.label, gaps)], below))
        return {NAME: gaps}

    figures.add(dist.on_first_rank(judge))


def _row(label: str, gaps: Mapping[str, float]) -> list[str]:
    ratio = f"{gaps['error_ratio']:.2f}" if "error_ratio" in gaps else NOT_MEASURED
    return [label, *(percent(gaps[key]) for key in ("average", "std", "gap")), ratio]


def compare_groups(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Average, population standard deviation, and gap of accuracies; ratio of the largest to the smallest error, if not 0."""
    values = np.array(list(accuracies.values()))
    found = {"average": values.mean(), "std": values.std(), "gap": values.max() - values.min()}
    if values.max() < 1:
        found["error_ratio"] = (1 - values.min()) / (1 - values.max())
    return {name: float(value) for name, value in found.items()}


# -------------------------------------------------------------------------------------------------- files


def _find_group(root: Path, group: str) -> Group:
    """A group as GROUP.bin (any letter case, any end of the name), or in the release's folders."""
    name = f"{NAME}_{group.lower()}"
    bins = [path for path in sorted(root.glob("*.bin")) if path.stem.lower().startswith(group.lower())]
    if len(bins) == 1:
        ((images, issame),) = bin_sets(bins)
        return ImageSet(name, images.count, images.load, images.sources), issame
    for base in (root, root / "test"):
        if (base / "txts" / group).is_dir():
            return _read_release(base, group, name)
    found = f"found {', '.join(path.name for path in bins)}" if bins else "found none of them"
    raise UserError(f"{root}: does not contain RFW's {group}: one {group}*.bin, or txts/{group}/ and data/{group}/; {found}")


def _read_release(base: Path, group: str, name: str) -> Group:
    """Images of 112x112 pixels count as aligned; the others are aligned by the landmarks in GROUP_lmk.txt."""
    listing, landmarks = base / "txts" / group / f"{group}_pairs.txt", base / "txts" / group / f"{group}_lmk.txt"
    pairs = read_pairs(listing)
    folder = base / "data" / group
    paths = [find_image(folder, path, pair.where) for pair in pairs for path in (pair.first, pair.second)]
    points = _read_landmarks(landmarks) if landmarks.is_file() else {}
    load = partial(_load, paths, points, landmarks)
    return ImageSet(name, len(paths), load, [listing, folder]), np.array([pair.same for pair in pairs])


def _load(paths: list[Path], points: dict[str, Points], landmarks: Path, index: int) -> np.ndarray:
    path = paths[index]
    image = decode_image(read_image_file(path), path)
    if image.shape[:2] == (FACE_SIZE, FACE_SIZE):
        return image
    if (key := f"{path.parent.name}/{path.stem}") not in points:
        raise UserError(f"{path}: is {image.shape[1]}x{image.shape[0]}, and {landmarks} has no landmarks for it; align it first")
    return align_image(image, points[key], FACE_SIZE, path)


def _read_landmarks(path: Path) -> dict[str, Points]:
    """PERSON/IMAGE without suffix -> float64 [5, 2], from lines `PATH LABEL x1 y1 … x5 y5`."""
    points = {}
    for where, line in numbered_lines(path):
        words = line.split()
        try:
            numbers = np.array(words[2:], np.float64)
        except ValueError as fault:
            raise UserError(f"{where}: {fault}; expected a path, a label and 10 coordinates") from fault
        if len(numbers) != 10 or not np.isfinite(numbers).all():
            raise UserError(f"{where}: {line[:80]!r} is not a path, a label and 10 finite coordinates")
        file = Path(words[0])
        points[f"{file.parent.name}/{file.stem}"] = numbers.reshape(5, 2)
    return points
