"""Compare the norms of sharp and degraded faces layer by layer ("Does the norm measure quality?" in docs/EXPERIMENTS.md).

    python -m scripts.norms_by_layer SHARP.bin DEGRADED.bin RUN …

For runs with the encoders `tiny` and `small`. Both sets must consist of the same images; the first image of each pair is used.
For each layer: the probability in % that a degraded face has a smaller norm than a sharp one (AUC; 50 means no information),
and the share in % of faces whose norm is below that of their own sharp twin.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
from pathlib import Path

import numpy as np
import torch
from prettytable import PrettyTable

from eval.roc import roc_curve
from eval.verification import load_bin
from recognition.encoders.load import LoadedEncoder, load_encoder
from utils.errors import UserError, exit_on_user_error
from utils.images import decode_face

LAYERS = {"map": "bn", "fc": "fc", "feature": "features"}
BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharp", metavar="SHARP.bin")
    parser.add_argument("degraded", metavar="DEGRADED.bin")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    options = parser.parse_args()
    sharp, degraded = _first_images(options.sharp), _first_images(options.degraded)
    if len(sharp) != len(degraded):
        found = f"{options.sharp} has {len(sharp)} pairs, {options.degraded} has {len(degraded)}"
        raise UserError(f"{found}; both sets must consist of the same images")
    table = PrettyTable(["run", *LAYERS], align="r")
    for run in options.runs:
        encoder = load_encoder(run, torch.device("cpu"))
        if encoder.card.network not in ("tiny", "small"):
            raise UserError(f"{run}: network={encoder.card.network!r}; this script supports only 'tiny' and 'small'")
        pairs = zip(_norms(encoder, sharp), _norms(encoder, degraded), strict=True)
        table.add_row([Path(run).name, *(_compare(*pair) for pair in pairs)])
    print(table)


def _first_images(path: str) -> torch.Tensor:
    """The first image of each pair, uint8 RGB [pairs, 112, 112, 3]."""
    encoded, _ = load_bin(path)
    return torch.from_numpy(np.stack([decode_face(each, path) for each in encoded[::2]]))


def _norms(encoder: LoadedEncoder, images: torch.Tensor) -> list[np.ndarray]:
    """The norms of n images, float [n] for each of `LAYERS`."""
    assert encoder.module is not None
    norms: dict[str, list[torch.Tensor]] = {layer: [] for layer in LAYERS}

    def record(layer: str, output: torch.Tensor) -> None:
        norms[layer].append(output.float().flatten(1).norm(dim=1))

    modules = {layer: encoder.module.get_submodule(name) for layer, name in LAYERS.items()}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, layer=layer: record(layer, output))
        for layer, module in modules.items()
    ]
    for batch in images.split(BATCH):
        encoder.embed(batch)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts).numpy() for parts in norms.values()]


def _compare(sharp_n: np.ndarray, degraded_n: np.ndarray) -> str:
    auc = roc_curve(np.concatenate([sharp_n, degraded_n]), np.repeat([True, False], len(sharp_n))).auc
    return f"{100 * auc:.1f}, {100 * (degraded_n < sharp_n).mean():.1f}"


if __name__ == "__main__":
    exit_on_user_error(main)
