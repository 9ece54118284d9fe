"""`python -m eval export`: an encoder for use elsewhere."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from eval.commands.common import add_checkpoint_argument
from recognition.encoders.export import export_encoder
from recognition.encoders.load import load_encoder
from recognition.encoders.thresholds import thresholds_of_run
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "export"
HELP = "write the encoder as .safetensors or .onnx, with channel order, size, normalisation and thresholds in its metadata"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="encoder.safetensors or encoder.onnx")


def run(arguments: argparse.Namespace, world: World) -> None:
    dist.on_first_rank(lambda: print(_export(arguments)))


def _export(arguments: argparse.Namespace) -> str:
    """Write the file; return a description of it."""
    described = (arguments.channel_order, arguments.network, None, arguments.mean, arguments.std)
    loaded = load_encoder(arguments.checkpoint, torch.device("cpu"), *described, weights=arguments.weights)
    if loaded.module is None:
        raise UserError(f"--checkpoint {arguments.checkpoint}: is an .onnx already; export from the run or its weights")
    found = thresholds_of_run(loaded.path, loaded.module, loaded.weights) or loaded.card.thresholds
    out, card = arguments.out, replace(loaded.card, thresholds=found)
    difference = export_encoder(loaded.module, card, out)
    checked = f"onnxruntime agrees with PyTorch to {difference:.1e}" if out.endswith(".onnx") else "read back bit for bit"
    return (
        f"{out}: {card.network}, {Path(out).stat().st_size / 1e6:.1f} MB; features of size {card.embedding_size}; input "
        f"{card.input}; thresholds: {', '.join(each.name for each in found) or 'none, no results.json has any'}; {checked}"
    )
