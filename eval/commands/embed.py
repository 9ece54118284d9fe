"""`python -m eval embed`: features of photographs, for use elsewhere."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.commands.common import ImageSet, add_encoder_arguments, embed, open_encoder, photo_reader
from eval.embedding import check_images
from recognition.data.pack.arguments import add_detector_arguments
from utils import dist
from utils.dist import World
from utils.errors import UserError
from utils.files import new_file
from utils.images import KINDS, LeftOut, find_images

NAME = "embed"
HELP = "features of faces: an .npz with features, norms, names (and quality)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = f"aligned 112x112 faces, or any photographs with --detector: files, or folders at any depth ({KINDS})"
    parser.add_argument("images", nargs="+", metavar="IMAGES", help=help)
    add_detector_arguments(parser)
    add_encoder_arguments(parser)
    parser.add_argument("--out", required=True, metavar="F.npz", help="features float32 [N, D] (raw), norms [N], names [N]")
    parser.add_argument("--flip", action="store_true", help="add the features of the mirror images, as the benchmarks do")


def run(arguments: argparse.Namespace, world: World) -> None:
    if not arguments.out.endswith(".npz"):
        raise UserError(f"--out {arguments.out}: the ending must be .npz")
    paths, read = image_paths(arguments.images), photo_reader(arguments)

    def load(index: int) -> np.ndarray:
        return read(paths[index])

    check_images(len(paths), load)
    encoder = open_encoder(arguments, world)
    name, sources = f"{NAME}_flip" if arguments.flip else NAME, paths
    if arguments.detector is not None:
        name, sources = f"{name}_score{arguments.min_score:g}", [*paths, arguments.detector]
    images = ImageSet(name, len(paths), load, sources)
    features = embed(encoder, images, arguments.batch_size, torch.add if arguments.flip else None, arguments.cache)

    def write() -> None:
        norms = np.linalg.norm(features, axis=1)
        if not np.isfinite(norms).all():
            raise UserError(
                f"{paths[int(np.isfinite(norms).argmin())]}: the norm of its features is not finite; check the encoder"
            )
        arrays = {"features": features, "norms": norms, "names": np.array([str(path) for path in paths])}
        if encoder.card.quality is not None and not arguments.flip:  # its statistics are those of single images
            arrays["quality"] = encoder.card.quality.u(norms)
        with new_file(arguments.out, parents=True, label=f"--out {arguments.out}") as new, new.open("wb") as file:
            np.savez(file, **arrays)
        print(
            f"{arguments.out}: {len(paths):,} features of size {features.shape[1]}, norms {norms.min():.2f} to {norms.max():.2f}"
        )

    dist.on_first_rank(write)


def image_paths(given: list[str]) -> list[Path]:
    """The given files, and the images in the given folders, by path. Rank 0 reports what is left out.

    Raises UserError if no image is left.
    """
    paths: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            left_out = LeftOut()
            inside = find_images(path, left_out)
            if not inside:
                raise UserError(f"{path}: no images in this folder; looked for {KINDS}" + (f"; {left_out}" if left_out else ""))
            dist.on_first_rank(partial(left_out.warn, path))
            paths += inside
        else:
            paths.append(path)
    return paths
