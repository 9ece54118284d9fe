"""Measure how well a run's partition finds the images that `pack degrade` degraded in its training set.

    python -m scripts.degraded_found RUN …

On 1,200 images of the set, without augmentation: the probability that a degraded image has a smaller norm than an intact one
(AUC), and the shares of both with a quality u <= b, computed with the run's final quality statistics.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from prettytable import PrettyTable

from eval.roc import roc_curve
from recognition.checkpoints import store
from recognition.data.batch import sample_views
from recognition.encoders.load import load_encoder
from utils.errors import UserError, exit_on_user_error
from utils.files import open_text

IMAGES, BATCH = 1200, 100


def _measure(run: str) -> tuple[float, float, float]:
    """The probability that a degraded image has the smaller norm; the shares of degraded and of intact images with u <= b."""
    encoder, config = load_encoder(run, torch.device("cpu")), store.read_config(store.find(run))
    quality = encoder.card.quality
    table = Path(config.data_sets[0]) / "degraded.csv"
    if not table.is_file():
        raise UserError(f"{run}: its set {config.rec} has no degraded.csv, which `pack degrade` writes")
    if quality is None or quality.threshold is None:
        raise UserError(f"{run}: has no partition (quality_threshold=None)")
    with open_text(table) as lines:
        degraded = {int(row["image"]) for row in csv.DictReader(lines)}
    originals, _ = sample_views(config, IMAGES)
    numbers = np.unique(np.linspace(0, config.num_image - 1, IMAGES).astype(np.int64))
    is_degraded = np.isin(numbers, list(degraded))
    parts = [encoder.embed(torch.from_numpy(originals[start : start + BATCH])) for start in range(0, len(originals), BATCH)]
    norm = torch.cat(parts).norm(dim=1).numpy()
    low = quality.u(norm) <= quality.threshold
    roc = roc_curve(np.concatenate([norm[~is_degraded], norm[is_degraded]]), ~np.sort(is_degraded))
    return roc.auc, float(low[is_degraded].mean()), float(low[~is_degraded].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    table = PrettyTable(["run", "AUC of the norm, %", "degraded with u <= b, %", "intact with u <= b, %"], align="r")
    for run in parser.parse_args().runs:
        table.add_row([Path(run).name, *(f"{100 * value:.1f}" for value in _measure(run))])
    print(table)


if __name__ == "__main__":
    exit_on_user_error(main)
