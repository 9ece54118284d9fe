"""The benchmarks from the command line: `python -m eval COMMAND …`; `python -m eval --help` lists the commands.

`torchrun --nproc_per_node=4 -m eval COMMAND …` embeds on all ranks; rank 0 computes, prints and draws.
"""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from pathlib import Path

import torch

from eval.commands.common import Context, Encoder, TrainingViews, prepare_outputs
from eval.feature_cache import fingerprint
from recognition.checkpoints import store
from recognition.data.batch import sample_views
from recognition.encoders.export import export_encoder
from recognition.encoders.load import load_encoder
from utils import dist
from utils.errors import UserError, exit_on_user_error

# One module a command; each has NAME, HELP, add_arguments(parser) and run(arguments, context).
COMMANDS = (
    "eval.commands.verify",
    "eval.commands.ijb",
    "eval.commands.tinyface",
    "eval.commands.scface",
    "eval.commands.all",
    "eval.commands.embed",
    "eval.commands.compare",
    "eval.commands.quality",
    "eval.commands.export",
    "eval.commands.report",
    "eval.commands.runs",
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


def open_encoder(arguments: argparse.Namespace, device: torch.device, path: str) -> Encoder:
    """The encoder of `--checkpoint`, to which `--channel-order` and `--network` apply, or of another argument. `--precision`
    applies to both."""
    order = network = None
    if path == getattr(arguments, "checkpoint", None):
        order, network = arguments.channel_order, arguments.network
    loaded = load_encoder(path, device, order, network, arguments.precision)
    of_run = Path(path) / "checkpoints"
    key = fingerprint([of_run if of_run.is_dir() else path]) + loaded.card.channel_order + loaded.precision
    scale = loaded.card.quality
    return Encoder(
        loaded.embed, loaded.label, key,
        scale.u if scale else None, scale.threshold if scale else None,
    )  # fmt: skip


def export(arguments: argparse.Namespace, path: str, out: str) -> str:
    """Writes the encoder of `--checkpoint` to a file; returns what was done."""
    loaded = load_encoder(path, torch.device("cpu"), arguments.channel_order, arguments.network)
    if loaded.module is None:
        raise UserError(f"--checkpoint {path}: is an .onnx already; export from the run or its weights")
    difference = export_encoder(loaded.module, loaded.card, out)
    card, size = loaded.card, Path(out).stat().st_size / 1e6
    checked = f"onnxruntime agrees with PyTorch to {difference:.1e}" if out.endswith(".onnx") else "read back to the bit"
    return (
        f"{out}: {card.network}, {size:.1f} MB; features of {card.embedding_size}; input {card.channel_order} "
        f"{card.input_size}x{card.input_size}, (pixel - {card.mean:g}) / {card.std:g}; {checked}"
    )


def training_views(run: str, count: int) -> TrainingViews:
    """Images from all over a run's training set, and their augmented views."""
    return TrainingViews(*sample_views(store.read_config(store.find(run)), count))


def main() -> None:
    arguments = build_parser().parse_args()
    world = dist.start(_LONGEST_METRIC_MINUTES)
    try:
        dist.on_first_rank(partial(prepare_outputs, arguments))
        context = Context(world, partial(open_encoder, arguments, world.device), partial(export, arguments), training_views)
        arguments.run(arguments, context)
    except Exception as fault:
        if not isinstance(fault, UserError):
            dist.end_after_fault()
        raise
    finally:
        dist.stop()


if __name__ == "__main__":
    exit_on_user_error(main)
