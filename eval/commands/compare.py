"""`python -m eval compare`: do two photographs show the same person?"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from eval.commands.common import (
    Figures,
    add_checkpoint_argument,
    add_json_argument,
    add_precision_argument,
    open_encoder,
    photo_reader,
)
from eval.present.tables import NOT_MEASURED, Table, read_results
from recognition.data.pack.arguments import add_detector_arguments
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "compare"
HELP = "two photographs: similarity, quality of each, same person or not"

DEFAULT_THRESHOLD = 0.3
"""Cosine, for encoders without verification results: about where margins of 0.4 to 0.5 separate sharp faces."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs=2, metavar="IMAGE", help="aligned 112x112 faces, or any photographs with --detector")
    add_detector_arguments(parser)
    add_checkpoint_argument(parser)
    add_precision_argument(parser)
    parser.add_argument(
        "--threshold", type=float, help=f"cosine; default: from the run's verification results, else {DEFAULT_THRESHOLD}"
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    threshold, origin = arguments.threshold, "--threshold"
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"--threshold {threshold}: must be a cosine, from -1 to 1")
    if threshold is None:
        threshold, origin = threshold_of_run(Path(arguments.checkpoint))
    images = torch.from_numpy(np.stack([*map(photo_reader(arguments), map(Path, arguments.images))]))
    encoder = open_encoder(arguments, world)
    plain = encoder.embed(images)
    if not plain.isfinite().all():
        raise UserError(f"{encoder.label}: the features are not finite; check the checkpoint")
    norms = torch.linalg.vector_norm(plain, dim=1).numpy()
    a, b = torch.nn.functional.normalize(plain.double() + encoder.embed(images.flip(2)).double())
    similarity = float(a @ b)
    if not np.isfinite([similarity, *norms]).all():
        raise UserError(f"{encoder.label}: the features are not finite; check the checkpoint")
    scale = encoder.card.quality
    quality = None if scale is None else scale.u(norms)
    figures = {"similarity": similarity, "threshold": threshold, "same": float(similarity > threshold)}
    rows = []
    for index, (letter, path) in enumerate(zip("ab", arguments.images, strict=True)):
        figures[f"norm_{letter}"] = float(norms[index])
        shown, verdict = NOT_MEASURED, ""
        if scale is not None and quality is not None:
            figures[f"quality_{letter}"] = float(quality[index])
            shown = f"{quality[index]:.3f}"
            if scale.threshold is not None:
                verdict = "low quality" if quality[index] <= scale.threshold else "high quality"
        rows.append([path, f"{norms[index]:.2f}", shown, verdict])

    def show() -> None:
        print(Table(["image", "norm", "quality u", "verdict"], rows))
        verdict = "same person" if similarity > threshold else "different people"
        print(f"cosine similarity {similarity:.4f}: {verdict} (threshold {threshold:.4f}, {origin})")

    dist.on_first_rank(show)
    written = Figures(arguments)
    written.add({NAME: figures})
    written.finish()


def threshold_of_run(run: Path) -> tuple[float, str]:
    """Cosine threshold and its origin: the mean over the verification sets in the run's results.json, else the default."""
    for folder in (run, *run.parents[:2]):  # a checkpoint is RUN/checkpoints/step-…
        path = folder / "results.json"
        if not path.is_file():
            continue
        try:
            key, results = "similarity_threshold", read_results(path)
        except UserError as fault:
            raise UserError(f"{fault}; or give --threshold") from fault
        found = {name: metrics[key] for name, metrics in results.items() if key in metrics}
        if found:
            return float(np.mean(list(found.values()))), f"mean of {', '.join(found)} in {path}"
    return DEFAULT_THRESHOLD, "the default: the checkpoint has no results.json with thresholds"
