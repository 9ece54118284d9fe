"""`python -m eval compare`: are two photographs of one person?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from prettytable import PrettyTable

from eval.commands.common import (
    Context,
    add_checkpoint_argument,
    add_json_argument,
    add_precision_argument,
    write_json,
)
from eval.commands.embed import read_face
from eval.present.tables import NOT_MEASURED
from utils import dist
from utils.errors import UserError

NAME = "compare"
HELP = "two aligned 112x112 photographs: similarity, quality of each, same person or not"

DEFAULT_THRESHOLD = 0.3
"""Cosine. Of no verification run: about where encoders with margins of 0.4 to 0.5 separate sharp faces."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs=2, metavar="IMAGE", help="aligned 112x112 faces")
    add_checkpoint_argument(parser)
    add_precision_argument(parser)
    parser.add_argument("--threshold", type=float, help=f"cosine; default: of the run's verification, else {DEFAULT_THRESHOLD}")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, context: Context) -> None:
    threshold, source = (
        (arguments.threshold, "--threshold")
        if arguments.threshold is not None
        else (threshold_of_run(Path(arguments.checkpoint)))
    )
    images = torch.from_numpy(np.stack([read_face(Path(path)) for path in arguments.images]))
    encoder = context.open_encoder(arguments.checkpoint)
    plain = encoder.embed(images)
    norms = torch.linalg.vector_norm(plain, dim=1).numpy()
    a, b = torch.nn.functional.normalize(plain.double() + encoder.embed(images.flip(2)).double())
    similarity = float(a @ b)
    if not np.isfinite(similarity):
        raise UserError(f"{encoder.label}: the features are not finite; check the checkpoint")
    quality = encoder.quality(norms) if encoder.quality is not None else None

    def show() -> dict[str, dict[str, float]]:
        table = PrettyTable(["image", "norm", "quality u", ""], align="l")
        for index, path in enumerate(arguments.images):
            u = NOT_MEASURED if quality is None else f"{quality[index]:.3f}"
            low = quality is not None and encoder.threshold is not None and quality[index] <= encoder.threshold
            known = quality is not None and encoder.threshold is not None
            table.add_row([path, f"{norms[index]:.2f}", u, ("low quality" if low else "high quality") if known else ""])
        print(table)
        verdict = "same person" if similarity > threshold else "different people"
        print(f"cosine similarity {similarity:.4f}: {verdict} (threshold {threshold:.4f}, {source})")
        figures = {"similarity": similarity, "threshold": threshold, "same": float(similarity > threshold)}
        for name, index in (("a", 0), ("b", 1)):
            figures[f"norm_{name}"] = float(norms[index])
            if quality is not None:
                figures[f"quality_{name}"] = float(quality[index])
        return {NAME: figures}

    write_json(arguments, dist.on_first_rank(show))


def threshold_of_run(run: Path) -> tuple[float, str]:
    """(cosine threshold, where it comes from): the mean over the sets in a run's results.json, else the default."""
    for folder in (run, *run.parents[:2]):  # of a checkpoint: RUN/checkpoints/step-…
        path = folder / "results.json"
        if not path.is_file():
            continue
        try:
            results = json.loads(path.read_text())
            found = {name: float(metrics["similarity_threshold"]) for name, metrics in results.items()
                     if "similarity_threshold" in metrics}  # fmt: skip
        except (OSError, ValueError, TypeError, AttributeError) as fault:
            raise UserError(f"{path}: cannot be read ({fault}); give --threshold") from fault
        if found:
            return float(np.mean(list(found.values()))), f"mean of {', '.join(found)} in {path}"
    return DEFAULT_THRESHOLD, "a default: there is no results.json with thresholds beside the checkpoint"
