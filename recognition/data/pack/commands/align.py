"""Folder of photos -> folder of aligned faces, by five landmarks per image from a file or a detector.

    python -m recognition.data.pack align photos/ aligned/ --landmarks landmarks.txt
    python -m recognition.data.pack align photos/ aligned/ --detector face_detection_yunet_2023mar.onnx

--landmarks: one line per image, with its path below the folder (the suffix is optional) and ten numbers x1 y1 … x5 y5 in pixels:
left eye, right eye, nose, left and right corner of the mouth, left and right as the viewer sees them. Separators are spaces, tabs
or commas; a path that contains spaces needs tabs or commas. An eleventh number (a score) and a header line are ignored. An image
that is not listed is an error; --on-error skip leaves it out.

--detector: your copy of OpenCV's YuNet. Of several faces the largest is used. The detected points are written to landmarks.csv,
which --landmarks reads.

A similarity transform moves the points to ArcFace's template (utils/images/alignment.py). Subfolders are kept, so that `folder`
can pack the result, byte for byte.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from recognition.data.pack.arguments import (
    add_detector_arguments,
    add_face_format_arguments,
    add_on_error_argument,
    add_out_folder_argument,
    face_format_of,
)
from recognition.data.pack.face_encoding import FaceFormat, encode
from recognition.data.pack.landmarks import FaceDetector, LandmarkTable, Points, align_image, read_landmarks
from recognition.data.pack.listing import LANDMARKS, warn_of_skipped, write_skipped
from recognition.data.pack.output import CsvFile, new_folder, write_new
from recognition.data.parallel import add_workers_argument, chunks, in_order, shared_object
from utils.errors import UserError, warn
from utils.images import KINDS, SUFFIXES_OF, LeftOut, decode_image, image_names, read_image_file, scan_folder

HELP = "photos -> aligned faces, by landmarks or with a detector"
CHUNK = 16
COLUMNS = ("path", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder of images, or of one folder of images per identity")
    add_out_folder_argument(parser)
    points = parser.add_mutually_exclusive_group(required=True)
    points.add_argument("--landmarks", type=Path, help="file with five points per image")
    add_detector_arguments(parser, points)
    add_face_format_arguments(parser, fit=False)
    add_on_error_argument(parser)
    add_workers_argument(parser)


@dataclass
class Alignment:
    """What a worker needs, apart from the landmark table, which is its `shared_object`."""

    source: Path
    folder: Path
    face_format: FaceFormat
    skip: bool
    detector: Path | None
    min_score: float


Done = tuple[list[tuple[str, Points]], list[str]]  # path and points of the images made; why the others were skipped


def image_paths(source: Path, left_out: LeftOut) -> list[str]:
    """The images in the folder itself and in its folders, in order."""
    own, folders = scan_folder(source, left_out)
    paths = own + [f"{name}/{file}" for name in folders for file in image_names(source / name, left_out)]
    if not paths:
        raise UserError(f"{source}: contains no images ({KINDS}, by suffix)" + (f"; {left_out}" if left_out else ""))
    return paths


@lru_cache(maxsize=1)  # one per worker
def _detector(model: Path, min_score: float) -> FaceDetector:
    return FaceDetector(model, min_score)


def align_part(task: Alignment, paths: list[str]) -> Done:
    """Runs in a worker: writes the aligned faces of some images."""
    table: LandmarkTable | None = shared_object()
    made, skipped = [], []
    for path in paths:
        where = task.source / path
        try:
            image = decode_image(read_image_file(where), where, "BGR", task.face_format.max_pixels)
            if task.detector is not None:
                points = _detector(task.detector, task.min_score).largest_face(image, where)
            else:
                assert table is not None, "landmarks or a detector"
                points = _listed_points(table, path, where)
            aligned = align_image(image, points, task.face_format.size, where)
        except UserError as error:
            if not task.skip:
                raise UserError(f"{error} (or leave it out with --on-error skip)") from error
            skipped.append(str(error))
        else:
            write_new(task.folder / aligned_path(path, task.face_format), encode(aligned, task.face_format))
            made.append((path, points))
    return made, skipped


def aligned_path(path: str, face_format: FaceFormat) -> PurePosixPath:
    """An image's path below the new folder: its own, with one more suffix if the kind of image changes."""
    target = PurePosixPath(path)
    return (
        target if target.suffix.lower() in SUFFIXES_OF[face_format.kind] else target.with_name(target.name + face_format.suffix)
    )


def _listed_points(table: LandmarkTable, path: str, where: Path) -> Points:
    bare = str(PurePosixPath(path).with_suffix(""))
    points = table.get(path, table.get(bare))
    if points is None:
        raise UserError(f"{where}: has no landmarks; list it as {path!r} or {bare!r}")
    return points


def run(arguments: argparse.Namespace) -> None:
    face_format = face_format_of(arguments)
    table = None if arguments.landmarks is None else read_landmarks(arguments.landmarks)
    if arguments.detector is not None:
        FaceDetector(arguments.detector, arguments.min_score)  # reports a bad model before any work is done
    left_out = LeftOut()
    paths = image_paths(arguments.source, left_out)
    left_out.warn(arguments.source)
    parts = [paths[start:stop] for start, stop in chunks(len(paths), CHUNK)]
    skipped: list[str] = []
    with new_folder(arguments.out) as folder:
        skip = arguments.on_error == "skip"
        task = Alignment(arguments.source, folder, face_format, skip, arguments.detector, arguments.min_score)
        work = partial(align_part, task)
        with (
            CsvFile(folder / LANDMARKS, COLUMNS) as found,
            in_order(work, parts, arguments.workers, "aligning", len(paths), advance=_count, shared=table) as results,
        ):
            for made, messages in results:
                skipped += messages
                for path, points in made:
                    found.row(path, *(f"{value:.2f}" for value in points.ravel()))
        if len(skipped) == len(paths):
            raise UserError(f"{arguments.source}: none of {len(paths)} images could be aligned; the first: {skipped[0]}")
        write_skipped(folder, skipped)
    print(f"{arguments.out}: {len(paths) - len(skipped)} aligned faces of {face_format.size}x{face_format.size}")
    warn_of_skipped(skipped, arguments.out)
    if table is not None:
        _warn_of_unused_lines(arguments, table, paths)


def _count(done: Done) -> int:
    made, skipped = done
    return len(made) + len(skipped)


def _warn_of_unused_lines(arguments: argparse.Namespace, table: LandmarkTable, paths: list[str]) -> None:
    names = {*paths, *(str(PurePosixPath(path).with_suffix("")) for path in paths)}
    unused = len(table.keys() - names)
    if unused:
        warn(f"{arguments.landmarks}: {unused} of {len(table)} lines name no image in {arguments.source}")
