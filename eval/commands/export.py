"""`python -m eval export`: an encoder for use elsewhere."""

from __future__ import annotations

import argparse

from eval.commands.common import Context, add_checkpoint_argument
from utils import dist

NAME = "export"
HELP = "write the encoder as .safetensors or .onnx, with channel order, size and normalisation in its metadata"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="encoder.safetensors or encoder.onnx")


def run(arguments: argparse.Namespace, context: Context) -> None:
    export = context.export
    assert export is not None
    dist.on_first_rank(lambda: print(export(arguments.checkpoint, arguments.out)))
