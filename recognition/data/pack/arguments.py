"""Command-line arguments that several packing commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from recognition.data.pack.face_encoding import ENCODINGS, FITS, FaceFormat
from utils.images import FACE_SIZE, MAX_PIXELS


def add_packed_set_argument(parser: argparse.ArgumentParser, pictures: bool = False) -> None:
    """pictures: sets that are not packed are read, too."""
    others = "; also a folder with one folder of images per identity, or a list of image files" if pictures else ""
    parser.add_argument("source", type=Path, help=f"a .rec file, or a folder with train.rec or shards{others}")


def add_out_folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder to create")


def add_shards_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=1, help="number of files to divide the images among (%(default)s)")


def add_on_error_argument(parser: argparse.ArgumentParser) -> None:
    help = "at a bad image: stop (default), or leave it out, count it and list it in skipped.csv"
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=help)


def add_face_format_arguments(parser: argparse.ArgumentParser, fit: bool = True) -> None:
    """Add the options of a `FaceFormat`. fit: images may have any shape, so add `--fit` too."""
    parser.add_argument("--size", type=int, default=FACE_SIZE, help="side in pixels (%(default)s)")
    add_encoding_arguments(parser)
    if fit:
        parser.add_argument("--fit", choices=FITS, default=FITS[0], help="how to make an image square (%(default)s)")
    else:
        parser.set_defaults(fit=FITS[0])
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger images (%(default)s)")


def add_detector_arguments(parser: argparse.ArgumentParser, group: argparse._ActionsContainer | None = None) -> None:
    """The options of a `FaceDetector`. group: of the parser, to which `--detector` belongs."""
    help = "align the faces in photographs with this YuNet .onnx file (docs/DATA.md)"
    (group or parser).add_argument("--detector", type=Path, metavar="YUNET.onnx", help=help)
    parser.add_argument("--min-score", type=float, default=0.6, help="lowest score of a detected face (%(default)s)")


def add_encoding_arguments(parser: argparse.ArgumentParser) -> None:
    help = "encode images as jpeg (default), png (lossless, about four times as large) or raw (needs no decoding, 37.7 kB each)"
    parser.add_argument("--encoding", choices=tuple(ENCODINGS), default="jpeg", help=help)
    parser.add_argument("--png", action="store_const", dest="encoding", const="png", help="the same as --encoding png")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality (%(default)s)")


def face_format_of(arguments: argparse.Namespace) -> FaceFormat:
    """The format that the options ask for. Raises UserError if one is out of range."""
    return FaceFormat(arguments.size, arguments.quality, arguments.encoding, arguments.fit, arguments.max_pixels)
