"""The benchmarks from the command line: `python -m eval COMMAND …`; `python -m eval --help` lists the commands.

`torchrun --nproc_per_node=4 -m eval COMMAND …` embeds on all ranks; rank 0 computes, prints and draws.
"""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from pathlib import Path

import torch

from eval.cli import Context, Encoder
from eval.feature_cache import fingerprint
from recognition.encoder import load_run
from utils import dist
from utils.errors import exit_on_user_error

# One module a command; each has NAME, HELP, add_arguments(parser) and run(arguments, context).
COMMANDS = (
    "eval.cli_verify",
    "eval.cli_ijb",
    "eval.cli_tinyface",
    "eval.cli_scface",
    "eval.cli_all",
)

_LONGEST_METRIC_MINUTES = 60.0  # how long the other ranks wait for rank 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m eval", description="The field's benchmarks for a trained encoder.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(name)
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def open_encoder(device: torch.device, path: str) -> Encoder:
    """The encoder of `--checkpoint`."""
    embed, config = load_run(path, device)
    of_run = Path(path) / "checkpoints"
    key = fingerprint([of_run if of_run.is_dir() else path])
    return Encoder(embed, f"{Path(path).resolve().name} ({config.network})", key)


def main() -> None:
    arguments = build_parser().parse_args()
    world = dist.start(_LONGEST_METRIC_MINUTES)
    try:
        arguments.run(arguments, Context(world, partial(open_encoder, world.device)))
    finally:
        dist.stop()


if __name__ == "__main__":
    exit_on_user_error(main)
