"""Arguments that several commands have."""

from __future__ import annotations

import argparse

_ENCODERS = "run folder, one of its checkpoints, released weights (.pt .pth .ckpt) or an export (.safetensors .onnx, folder)"


def add_benchmark_arguments(parser: argparse.ArgumentParser, checkpoint_required: bool = True) -> None:
    """Arguments of every benchmark: the encoder, confidence intervals, output files."""
    add_encoder_arguments(parser, checkpoint_required)
    parser.add_argument(
        "--bootstrap", type=positive, default=0, metavar="N", help="95%% confidence intervals from N resamplings, such as 1000"
    )
    add_json_argument(parser)
    parser.add_argument("--plots", metavar="DIR", help="write plots (PNG and SVG) here; default: RUN/eval")
    parser.add_argument("--no-paper", action="store_true", help="leave published figures out of the tables")


def add_encoder_arguments(parser: argparse.ArgumentParser, required: bool = True, positional: bool = False) -> None:
    """Arguments of commands that embed many images."""
    add_checkpoint_argument(parser, required, positional=positional)
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument(
        "--cache", metavar="DIR", help="keep features here and reuse them while the checkpoint and the images do not change"
    )


def add_checkpoint_argument(
    parser: argparse.ArgumentParser, required: bool = True, described: str = _ENCODERS, positional: bool = False
) -> None:
    if positional:
        parser.add_argument("checkpoint", metavar="RUN", help=described)
    else:
        parser.add_argument("--checkpoint", required=required, metavar="RUN", help=described)
    parser.add_argument(
        "--weights", choices=("trained", "ema"), default="trained", help="of a run: ema for the average of its weights"
    )
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="for files that do not state it; default: by family")
    parser.add_argument("--network", help="backbone of released weights that cannot be identified; a name of backbones/")
    parser.add_argument("--mean", type=float, help="input of an .onnx from elsewhere: (pixel - MEAN) / STD; default 127.5 …")
    parser.add_argument("--std", type=float, help="… and 127.5, or 0 and 1 if the graph begins with its own normalisation")


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="number format of the encoder; default: the run's, else bf16 if the hardware supports it",
    )


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=positive, default=128, help="images per batch and rank (default 128)")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number
