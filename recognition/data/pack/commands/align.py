"""A folder of photos -> a folder of aligned faces, from five landmarks an image (a file's, or a detector's).

    python -m recognition.data.pack align photos/ aligned/ --landmarks landmarks.txt
    python -m recognition.data.pack align photos/ aligned/ --detector face_detection_yunet_2023mar.onnx

--landmarks: a line an image, its path below the folder (the suffix may be absent) and ten numbers x1 y1 … x5 y5 in pixels:
left eye, right eye, nose, left and right corner of the mouth, left and right as one sees them. Blanks, tabs or commas between
(a path with blanks needs one of the latter); an eleventh number, a score, and a first line of names are passed over. An image
that is not listed is an error, or with --on-error skip is left out.

--detector: your copy of OpenCV's YuNet; of several faces the largest is taken. What it found is written to landmarks.csv,
which --landmarks reads.

A similarity transform takes the points to ArcFace's template (utils/alignment.py). Subfolders are kept, so that the result is
what `folder` packs, byte for byte.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from recognition.data.pack.commands.folder import add_on_error_argument, identity_names, image_names, show_skipped, write_skipped
from recognition.data.pack.detector import FaceDetector
from recognition.data.pack.face_encoding import FaceFormat, encode
from recognition.data.pack.landmarks import LandmarkTable, read_landmarks
from recognition.data.pack.output import CsvFile, new_folder, write_new
from recognition.data.pack.parallel import add_workers_argument, in_order, shared_object, warn
from utils.alignment import align_face
from utils.errors import UserError
from utils.images import FACE_SIZE, MAX_PIXELS, SUFFIXES, Image, decode_image, read_image_file

HELP = "photos -> aligned faces, from landmarks or with a detector"
CHUNK = 16
COLUMNS = ("path", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder with images, or with a folder of images an identity")
    parser.add_argument("out", type=Path, help="folder to make")
    points = parser.add_mutually_exclusive_group(required=True)
    points.add_argument("--landmarks", type=Path, help="file with five points an image")
    points.add_argument("--detector", type=Path, help="YuNet as .onnx")
    parser.add_argument("--min-score", type=float, default=0.6, help="of a detected face (%(default)s)")
    parser.add_argument("--size", type=int, default=FACE_SIZE, help="side in pixels (%(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG (%(default)s)")
    parser.add_argument("--png", action="store_true", help="encode as PNG: lossless, about five times as large")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger images (%(default)s)")
    add_on_error_argument(parser)
    add_workers_argument(parser)


@dataclass
class Alignment:
    """What a worker is told. The table of landmarks it inherits (`shared_object`)."""

    source: Path
    folder: Path
    face: FaceFormat
    skip: bool
    detector: Path | None
    min_score: float


Done = tuple[list[tuple[str, npt.NDArray[np.float64]]], list[str]]  # (path, points [5, 2]) made, messages of those skipped


def image_paths(source: Path) -> list[str]:
    """Images in the folder itself and in its folders, in order."""
    own = image_names(source)
    names = [] if own and not any(entry.is_dir() for entry in source.iterdir()) else identity_names(source)
    paths = own + [f"{name}/{file}" for name in names for file in image_names(source / name)]
    if not paths:
        raise UserError(f"{source}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return paths


@lru_cache(maxsize=1)  # one a worker
def _detector(model: Path, min_score: float) -> FaceDetector:
    return FaceDetector(model, min_score)


def align_part(task: Alignment, paths: list[str]) -> Done:
    """Runs in a worker."""
    table: LandmarkTable | None = shared_object()
    made, skipped = [], []
    for path in paths:
        where = task.source / path
        try:
            image = decode_image(read_image_file(where), where, "BGR", task.face.max_pixels)
            if task.detector is not None:
                points = _detector(task.detector, task.min_score).largest_face(image, where)
            else:
                assert table is not None, "landmarks or a detector"
                points = _listed(table, path, where)
            aligned = align_image(image, points, task.face.size, where)
        except UserError as error:
            if not task.skip:
                raise UserError(f"{error} (or leave it out with --on-error skip)") from error
            skipped.append(str(error))
        else:
            write_new(task.folder / aligned_path(path, task.face), encode(aligned, task.face))
            made.append((path, points))
    return made, skipped


def align_image(image: Image, points: npt.NDArray[np.float64], size: int, where: object) -> Image:
    """The face cut out: `image` BGR uint8 [H, W, 3], points float64 [5, 2] -> BGR uint8 [size, size, 3], black outside.

    `UserError`: the points coincide, or lie outside by more than the whole image (where a face is cut off, a little is right).
    """
    height, width = image.shape[:2]
    if (points < [-width, -height]).any() or (points > [2 * width, 2 * height]).any():
        raise UserError(f"{where}: landmarks {points.round(1).tolist()} are far outside the {width}x{height} image; mend them")
    return align_face(image, points, where, size)


def aligned_path(path: str, face: FaceFormat) -> PurePosixPath:
    """An image's path below the new folder: its own, with a suffix more where the kind changes."""
    target = PurePosixPath(path)
    kept = {".png"} if face.png else {".jpg", ".jpeg"}
    return target if target.suffix.lower() in kept else target.with_name(target.name + face.suffix)


def _listed(table: Mapping[str, npt.NDArray[np.float64]], path: str, where: Path) -> npt.NDArray[np.float64]:
    bare = str(PurePosixPath(path).with_suffix(""))
    points = table.get(path, table.get(bare))
    if points is None:
        raise UserError(f"{where}: has no landmarks; list it by {path!r} or {bare!r}")
    return points


def run(arguments: argparse.Namespace) -> None:
    face = FaceFormat(arguments.size, arguments.quality, arguments.png, max_pixels=arguments.max_pixels)
    table = None if arguments.landmarks is None else read_landmarks(arguments.landmarks)
    if arguments.detector is not None:
        FaceDetector(arguments.detector, arguments.min_score)  # a bad model is an error before any work
    paths = image_paths(arguments.source)
    skipped: list[str] = []
    with new_folder(arguments.out) as folder:
        task = Alignment(arguments.source, folder, face, arguments.on_error == "skip", arguments.detector, arguments.min_score)
        parts = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
        with (
            CsvFile(folder / "landmarks.csv", COLUMNS) as found,
            in_order(
                partial(align_part, task), parts, arguments.workers, "aligning", len(paths),
                advance=lambda done: len(done[0]) + len(done[1]), shared=table,
            ) as results,
        ):  # fmt: skip
            for made, messages in results:
                skipped += messages
                for path, points in made:
                    found.row(path, *(f"{value:.2f}" for value in points.ravel()))
        if len(skipped) == len(paths):
            raise UserError(f"{arguments.source}: not one of {len(paths)} images could be aligned; the first: {skipped[0]}")
        write_skipped(folder, skipped)
    print(f"{arguments.out}: {len(paths) - len(skipped)} aligned faces of {face.size}x{face.size}")
    show_skipped(skipped, arguments.out)
    unused = 0 if table is None else len(table) - len(table.keys() & _keys(paths))
    if unused:
        warn(f"{arguments.landmarks}: {unused} of {len(table or ())} lines name no image in {arguments.source}")


def _keys(paths: list[str]) -> set[str]:
    """What a landmark file may call these images."""
    return {*paths, *(str(PurePosixPath(path).with_suffix("")) for path in paths)}
