"""What the commands of `python -m eval` share: the encoder, embedding, common arguments, output files.

A command is a module of this folder with `NAME`, `HELP`, `add_arguments(parser)` and `run(arguments, world)`.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from eval.embedding import Embed, MergeFlip, embed_items
from eval.feature_cache import FeatureCache, fingerprint
from eval.present.style import save_figure
from eval.present.tables import write_results
from eval.verification import load_bin
from recognition.data.pack.landmarks import FaceDetector, align_image
from recognition.encoders.load import LoadedEncoder, load_encoder
from utils import dist
from utils.dist import World
from utils.errors import UserError
from utils.files import refuse_address
from utils.images import FACE_SIZE, decode_face, decode_image, read_image_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, dict[str, float]]
"""Set name -> metric -> value: what is printed, written to --json and to a run's results.json."""

_SECONDS_BETWEEN_REPORTS = 5.0


# -------------------------------------------------------------------------------------------------- encoder and features


def open_encoder(arguments: argparse.Namespace, world: World, other: str | None = None) -> LoadedEncoder:
    """Open the encoder of `--checkpoint`, or that of `other`, to which the options about its input and network do not apply.

    Rank 0 prints what is assumed about the input of an .onnx file that does not describe it.
    """
    if other:
        encoder = load_encoder(other, world.device, precision=arguments.precision)
    else:
        described = (arguments.channel_order, arguments.network, arguments.precision, arguments.mean, arguments.std)
        encoder = load_encoder(arguments.checkpoint, world.device, *described)
    if getattr(encoder.embed, "assumed", False) and world.rank == 0:
        print(f"{encoder.path}: does not describe its input; assumed: {encoder.card.input}", file=sys.stderr)
    return encoder


@dataclass(frozen=True)
class ImageSet:
    """Images to embed.

    name: used in progress, messages and the names of cached files. load: index -> uint8 RGB [112, 112, 3]; called from several
    threads. sources: files and folders; if any of them changes, cached features are out of date.
    """

    name: str
    count: int
    load: Callable[[int], np.ndarray]
    sources: Sequence[str | Path]


def bin_sets(paths: Iterable[str | Path]) -> Iterator[tuple[ImageSet, np.ndarray]]:
    """Read verification sets (.bin) one by one: their images, and bool [P], whether a pair shows the same person.

    Raises UserError if two files have the same name, or a file is damaged.
    """
    for path in named_bins(paths).values():
        encoded, issame = load_bin(path)

        def load(index: int, encoded: list[bytes] = encoded, name: str = path.stem) -> np.ndarray:
            return decode_face(encoded[index], f"{name}, image {index}")

        yield ImageSet(path.stem, len(encoded), load, [path]), issame


def named_bins(paths: Iterable[str | Path]) -> dict[str, Path]:
    """Name -> path of verification sets. Raises UserError if two have the same name."""
    files = [Path(path) for path in paths]
    if len({path.stem for path in files}) != len(files):
        raise UserError(f"--bins {' '.join(map(str, files))}: two sets have the same name; rename one")
    return {path.stem: path for path in files}


def photo_reader(arguments: argparse.Namespace) -> Callable[[Path], np.ndarray]:
    """A function that reads the face in an image file, uint8 RGB [112, 112, 3]; threads may share it.

    `--detector` aligns the largest face. Without it, images of another size are a UserError that names the remedies.
    """
    if arguments.detector is None:
        return _read_face
    detector, lock = FaceDetector(arguments.detector, arguments.min_score), threading.Lock()

    def read(path: Path) -> np.ndarray:
        photo = decode_image(read_image_file(path), path, "BGR")
        with lock:
            points = detector.largest_face(photo, path)
        return align_image(photo, points, FACE_SIZE, path)[..., ::-1]

    return read


def _read_face(path: Path) -> np.ndarray:
    face = decode_image(read_image_file(path), path)
    if face.shape[:2] != (FACE_SIZE, FACE_SIZE):
        found, size = f"{face.shape[1]}x{face.shape[0]}", f"{FACE_SIZE}x{FACE_SIZE}"
        remedy = "give --detector YUNET.onnx, or align it first: python -m recognition.data.pack align"
        raise UserError(f"{path}: the image is {found}, expected {size}; {remedy}")
    return face


def embed(
    encoder: LoadedEncoder,
    images: ImageSet,
    batch_size: int,
    merge_flip: MergeFlip | None = torch.add,
    cache: str | Path | None = None,
) -> np.ndarray:
    """Embed a set on all ranks, with progress on stderr, and return its features: float32 [count, any].

    merge_flip: joins the features of the images and of their mirror images; None: no mirror images are embedded.
    cache: folder that keeps the features until the encoder or the images change. Cached features are returned on rank 0 only;
    the other ranks get an empty array.
    """

    def compute() -> np.ndarray:
        total = images.count if merge_flip is None else 2 * images.count
        return embed_items(
            Progress(encoder.embed, images.name, total), images.load, images.count, batch_size, merge_flip, images.name
        )

    if not cache:
        return compute()
    checkpoints = encoder.path / "checkpoints"
    key = fingerprint([checkpoints if checkpoints.is_dir() else encoder.path]) + encoder.card.channel_order + encoder.precision
    return FeatureCache(Path(cache), key).get(images.name, lambda: fingerprint(images.sources), compute)


class Progress:
    """An `Embed` that reports its progress on stderr, on rank 0, every few seconds."""

    def __init__(self, embed: Embed, name: str, images: int):
        rank, ranks = dist.rank_and_world()
        self.embed, self.name, self.images, self.done = embed, name, -(-images // ranks), 0
        self.active, self.unit = rank == 0, "images" if ranks == 1 else "images per rank"
        self.started = self.reported = time.monotonic()

    def __call__(self, images_nHWC: torch.Tensor) -> torch.Tensor:
        rows = self.embed(images_nHWC)
        self.done += len(images_nHWC)
        now = time.monotonic()
        if self.active and now - self.reported > _SECONDS_BETWEEN_REPORTS:
            self.reported = now
            rate = self.done / (now - self.started)
            left = max(0.0, (self.images - self.done) / rate)
            print(
                f"{self.name}: {self.done:,} of {self.images:,} {self.unit}, {rate:,.0f} per second, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        return rows


# -------------------------------------------------------------------------------------------------- arguments

_ENCODERS = "run folder, one of its checkpoints, released weights (.pt .pth .ckpt) or an exported encoder (.safetensors .onnx)"


def add_benchmark_arguments(parser: argparse.ArgumentParser, checkpoint_required: bool = True) -> None:
    """Arguments of every benchmark: the encoder, confidence intervals, output files."""
    add_encoder_arguments(parser, checkpoint_required)
    parser.add_argument(
        "--bootstrap", type=positive, default=0, metavar="N", help="95%% confidence intervals from N resamplings, such as 1000"
    )
    add_json_argument(parser)
    parser.add_argument("--plots", metavar="DIR", help="write plots (PNG and SVG) here; default: RUN/eval")
    parser.add_argument("--no-paper", action="store_true", help="leave published figures out of the tables")


def add_encoder_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Arguments of commands that embed many images."""
    add_checkpoint_argument(parser, required)
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument(
        "--cache", metavar="DIR", help="keep features here and reuse them while the checkpoint and the images do not change"
    )


def add_checkpoint_argument(
    parser: argparse.ArgumentParser, required: bool = True, described: str = _ENCODERS, positional: bool = False
) -> None:
    if positional:
        parser.add_argument("checkpoint", metavar="RUN", help=described)
    else:
        parser.add_argument("--checkpoint", required=required, metavar="RUN", help=described)
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="for files that do not state it; default: by family")
    parser.add_argument("--network", help="backbone of released weights that cannot be identified; a name of backbones/")
    parser.add_argument("--mean", type=float, help="input of an .onnx from elsewhere: (pixel - MEAN) / STD; default 127.5 …")
    parser.add_argument("--std", type=float, help="… and 127.5, or 0 and 1 if the graph begins with its own normalisation")


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="number format of the encoder; default: the run's, else bf16 if the hardware supports it",
    )


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=positive, default=128, help="images per batch and rank (default 128)")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


# -------------------------------------------------------------------------------------------------- output


def plot_folder(arguments: argparse.Namespace) -> Path | None:
    """The folder for plots: `--plots`, else `eval` in the run's folder, else None."""
    if arguments.plots:
        return Path(arguments.plots)
    if not arguments.checkpoint or not Path(arguments.checkpoint).is_dir():
        return None
    folder = Path(arguments.checkpoint)
    return (folder.parents[1] if folder.parent.name == "checkpoints" else folder) / "eval"


def prepare_outputs(arguments: argparse.Namespace) -> None:
    """Create the folders of `--json`, `--out`, `--cache` and `--plots`, so that a mistake is found before hours of work.

    Raises UserError if a folder cannot be created or written to.
    """
    given = vars(arguments)
    folders = {f"--{name} {given[name]}": Path(given[name]).parent for name in ("json", "out") if given.get(name)}
    if given.get("cache"):
        folders[f"--cache {arguments.cache}"] = Path(arguments.cache)
    if "plots" in given and (plots := plot_folder(arguments)):
        folders[f"--plots {plots}"] = plots
    for option, folder in folders.items():
        refuse_address(folder, option)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UserError(f"{option}: cannot be written ({fault.strerror})") from fault
        if not os.access(folder, os.W_OK):
            raise UserError(f"{option}: cannot be written (no permission for {folder})")


def save_plots(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures, file name -> figure, as PNG and SVG, and print their paths."""
    written = [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]
    print("plots:", ", ".join(map(str, written)))


class Figures:
    """The results of a command, written to `--json`, if it was given, as they become available. On all ranks; rank 0 writes."""

    def __init__(self, arguments: argparse.Namespace):
        self.path, self.results = arguments.json, Results()

    def add(self, results: Results) -> None:
        """Add the results of one or more sets, and write all so far."""
        self.results |= results
        if self.path:
            dist.on_first_rank(lambda: write_results(self.path, self.results, label=f"--json {self.path}"))

    def finish(self) -> None:
        """Print where the results are."""
        if self.path:
            dist.on_first_rank(lambda: print(f"figures: {self.path}"))
