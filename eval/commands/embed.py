"""`python -m eval embed`: features of photographs, for use elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from eval.commands.common import Context, Reporting, add_encoder_arguments, feature_cache
from eval.embedding import embed_items
from eval.feature_cache import cached, fingerprint
from utils import dist
from utils.errors import UserError
from utils.files import new_file
from utils.images import decode_face

NAME = "embed"
HELP = "features of aligned 112x112 images: an .npz with features, norms, names (and quality)"

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".pbm")  # of the kinds that utils/images.py decodes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    add_encoder_arguments(parser)
    parser.add_argument("--out", required=True, metavar="F.npz", help="features float32 [N, D] (raw), norms [N], names [N]")
    parser.add_argument("--flip", action="store_true", help="add the features of the mirror images, as the benchmarks do")


def run(arguments: argparse.Namespace, context: Context) -> None:
    if not arguments.out.endswith(".npz"):
        raise UserError(f"--out {arguments.out}: the ending must be .npz")
    paths = find_images(arguments.images)
    encoder = context.open_encoder(arguments.checkpoint)
    flip = torch.add if arguments.flip else None

    def embed() -> np.ndarray:
        reporting = Reporting(encoder.embed, NAME, len(paths) * (2 if flip else 1))
        return embed_items(reporting, lambda index: read_face(paths[index]), len(paths), arguments.batch_size, flip, NAME)

    kept_as = "embed_flip" if flip else NAME
    features = cached(feature_cache(arguments, encoder), kept_as, lambda: fingerprint(paths), embed)

    def write() -> None:
        norms = np.linalg.norm(features, axis=1)
        arrays = {"features": features, "norms": norms, "names": np.array([str(path) for path in paths])}
        if encoder.quality is not None and flip is None:
            arrays["quality"] = encoder.quality(norms)
        with new_file(arguments.out, parents=True, label=f"--out {arguments.out}") as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
        print(f"{arguments.out}: {len(paths):,} features of {features.shape[1]}, norms {norms.min():.2f} to {norms.max():.2f}")

    dist.on_first_rank(write)


def find_images(given: list[str]) -> list[Path]:
    """The files named, and those of the folders named by path; UserError where there are none."""
    paths: list[Path] = []
    for text in given:
        path = Path(text)
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no images in this folder; looked for {', '.join(ENDINGS)}")
        paths += inside
    return paths


def read_face(path: Path) -> np.ndarray:
    """uint8 RGB [112, 112, 3]; UserError for a file that is not there or holds no image of that size."""
    try:
        encoded = path.read_bytes()
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror}") from fault
    return decode_face(encoded, str(path))
