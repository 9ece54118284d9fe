"""`python -m eval compare`: do two photographs show the same person?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
from eval.operating import rate_label
from eval.present.tables import NOT_MEASURED, Table
from recognition.data.pack.arguments import add_detector_arguments
from recognition.encoders.thresholds import BALANCED, Threshold, thresholds_of_run
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
        "--threshold", type=float, help=f"cosine; default: the run's or the exported file's, else {DEFAULT_THRESHOLD}"
    )
    parser.add_argument("--fmr", type=float, help="use the encoder's threshold for this false match rate, such as 1e-3")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    if arguments.threshold is not None and not -1 <= arguments.threshold <= 1:
        raise UserError(f"--threshold {arguments.threshold}: must be a cosine, from -1 to 1")
    images = torch.from_numpy(np.stack([*map(photo_reader(arguments), map(Path, arguments.images))]))
    encoder = open_encoder(arguments, world)
    if arguments.threshold is not None:
        threshold = Threshold("--threshold", arguments.threshold, None, None, "")
    else:
        known = thresholds_of_run(Path(arguments.checkpoint), encoder.module, arguments.weights) or encoder.card.thresholds
        threshold = choose_threshold(known, arguments.fmr, encoder.label)
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
    same = similarity >= threshold.cosine
    figures = {"similarity": similarity, "threshold": threshold.cosine, "same": float(same)}
    if threshold.fmr is not None and threshold.fnmr is not None:
        figures |= {"fmr": threshold.fmr, "fnmr": threshold.fnmr}
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
        verdict = "same person" if same else "different people"
        origin = f"{threshold.name}, measured on {threshold.sets}" if threshold.sets else threshold.name
        print(f"cosine similarity {similarity:.4f}: {verdict} (threshold {threshold.cosine:.4f}, {origin})")
        if threshold.rates:
            print(f"error rates at this threshold: {threshold.rates}")

    dist.on_first_rank(show)
    written = Figures(arguments)
    written.add({NAME: figures})
    written.finish()


def choose_threshold(known: Sequence[Threshold], fmr: float | None, label: str) -> Threshold:
    """The threshold for an FMR, or the first of an encoder's thresholds, or the default. UserError if the FMR has none."""
    if fmr is None:
        return known[0] if known else Threshold("the default: the encoder has none of its own", DEFAULT_THRESHOLD, None, None, "")
    for each in known:
        if each.fmr is not None and each.name != BALANCED and rate_label(each.fmr) == rate_label(fmr):
            return each
    listed = ", ".join(each.name for each in known) or "none"
    raise UserError(f"{label}: has no threshold for FMR {rate_label(fmr)} (it has: {listed}); measure it with `eval threshold`")
