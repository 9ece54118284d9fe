"""The encoder of a command, the images that it embeds, and their features."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eval.embedding import Embed, MergeFlip, embed_items
from eval.feature_cache import FeatureCache, fingerprint
from eval.verification import load_bin
from recognition.data.pack.landmarks import FaceDetector, align_image
from recognition.encoders.load import LoadedEncoder, load_encoder
from utils import dist
from utils.dist import World
from utils.errors import UserError
from utils.images import FACE_SIZE, decode_face, decode_image, read_image_file

_SECONDS_BETWEEN_REPORTS = 5.0


def open_encoder(arguments: argparse.Namespace, world: World, other: str | None = None) -> LoadedEncoder:
    """Open the encoder of `--checkpoint`, or that of `other`, to which the options about its input and network do not apply.

    Rank 0 prints what is assumed about the input of an .onnx file that does not describe it.
    """
    if other:
        encoder = load_encoder(other, world.device, precision=arguments.precision)
    else:
        described = (arguments.channel_order, arguments.network, arguments.precision, arguments.mean, arguments.std)
        encoder = load_encoder(arguments.checkpoint, world.device, *described, weights=arguments.weights)
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

    return cached(encoder, images.name, images.sources, compute, cache)


def cached(
    encoder: LoadedEncoder,
    name: str,
    sources: Sequence[str | Path],
    compute: Callable[[], np.ndarray],
    cache: str | Path | None,
) -> np.ndarray:
    """Return `compute()`, or what it returned before for this encoder and unchanged `sources`. Cached rows: on rank 0 only."""
    if not cache:
        return compute()
    checkpoints = encoder.path / "checkpoints"
    key = fingerprint([checkpoints if checkpoints.is_dir() else encoder.path]) + encoder.card.channel_order + encoder.precision
    key += encoder.weights.removeprefix("trained")
    return FeatureCache(Path(cache), key).get(name, lambda: fingerprint(sources), compute)


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
