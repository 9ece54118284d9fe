"""`python -m eval export`: an encoder for use elsewhere."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from eval.commands.common import add_checkpoint_argument, bin_sets, embed
from eval.commands.verify import prepare
from eval.present.tables import Table, percent
from eval.verification import TenFold, judge_set
from recognition.encoders.export import export_encoder
from recognition.encoders.hub import publish
from recognition.encoders.load import LoadedEncoder, load_encoder
from recognition.encoders.precision import PRECISIONS, calibration_images
from recognition.encoders.thresholds import thresholds_of_run
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "export"
HELP = "write the encoder as .safetensors, .onnx or a folder for the Hugging Face Hub, with all that its users need to know"

_BATCH = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    parser.add_argument("--out", required=True, metavar="OUT", help="encoder.safetensors, encoder.onnx, or a new folder")
    parser.add_argument("--format", choices=("hub",), help="hub: a folder with a model card; default: by the ending of --out")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="number format of an .onnx (default fp32)")
    parser.add_argument("--calibrate", metavar="SET", help="training faces that set the ranges of int8: what `rec` accepts")
    parser.add_argument("--bins", nargs="+", metavar="FILE", help="verification sets: compare the accuracy with PyTorch's fp32")


def run(arguments: argparse.Namespace, world: World) -> None:
    _check(arguments)
    bins = prepare(arguments.bins or [])
    dist.on_first_rank(lambda: print(_export(arguments)))
    if bins:
        names = ("fp32", "exported" if arguments.precision == "fp32" else arguments.precision)
        encoders = dict(zip(names, (_open(arguments, world.device), _reopen(arguments, world.device)), strict=True))
        table = _comparison(encoders, bins)
        dist.on_first_rank(lambda: print(table))


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError if options contradict one another."""
    precision, onnx = arguments.precision, arguments.out.endswith(".onnx") and arguments.format is None
    if precision != "fp32" and not onnx:
        raise UserError(f"--precision {precision}: only an .onnx can have it; give --out ENCODER.onnx")
    if arguments.format == "hub" and arguments.weights == "ema":
        raise UserError("--format hub: publishes the weights that results.json measured; leave out --weights ema")
    if (precision == "int8") != (arguments.calibrate is not None):
        raise UserError("--precision int8 and --calibrate SET belong together; give both, or neither")


def _open(arguments: argparse.Namespace, device: torch.device) -> LoadedEncoder:
    described = (arguments.channel_order, arguments.network, "fp32", arguments.mean, arguments.std)
    if arguments.checkpoint.endswith(".onnx"):
        raise UserError(f"--checkpoint {arguments.checkpoint}: is an .onnx already; export from the run or its weights")
    return load_encoder(arguments.checkpoint, device, *described, weights=arguments.weights)


def _reopen(arguments: argparse.Namespace, device: torch.device) -> LoadedEncoder:
    if arguments.out.endswith(".onnx"):
        return load_encoder(arguments.out, device)
    return load_encoder(arguments.out, device, network=arguments.network, precision="fp32")


def _export(arguments: argparse.Namespace) -> str:
    """Write the file or folder; return a description of it."""
    loaded, out = _open(arguments, torch.device("cpu")), Path(arguments.out)
    assert loaded.module is not None
    found = thresholds_of_run(loaded.path, loaded.module, loaded.weights) or loaded.card.thresholds
    card = replace(loaded.card, thresholds=found)
    if arguments.format == "hub":
        publish(loaded.module, card, loaded.path, out)
        written, checked = sum(file.stat().st_size for file in out.iterdir()), "fill in the licence and the gaps in README.md"
    else:
        faces = calibration_images(arguments.calibrate) if arguments.calibrate else None
        difference = export_encoder(loaded.module, card, out, arguments.precision, faces)
        written = out.stat().st_size
        checked = f"onnxruntime agrees with PyTorch to {difference:.1e}" if out.suffix == ".onnx" else "read back bit for bit"
    share = written / sum(value.nbytes for value in loaded.module.state_dict().values())
    smaller = "" if arguments.precision == "fp32" else f" in {arguments.precision}, {share:.0%} of fp32"
    return (
        f"{out}: {card.network}, {written / 1e6:.1f} MB{smaller}; features of size {card.embedding_size}; input "
        f"{card.input}; thresholds: {', '.join(each.name for each in found) or 'none, no results.json has any'}; {checked}"
    )


def _comparison(encoders: dict[str, LoadedEncoder], bins: dict[str, Path]) -> Table:
    """Accuracy and AUC of two encoders on verification sets, and the differences in points. Collective."""
    rows = []
    for images, issame in bin_sets(bins.values()):
        before, after = (judge_set(images.name, embed(each, images, _BATCH), issame) for each in encoders.values())
        rows.append([images.name, *_cells(before, after, "accuracy"), *_cells(before, after, "auc"), f"{len(issame)}"])
    headings = [f"{metric}, {name}" for metric in ("accuracy", "AUC") for name in (*encoders, "difference")]
    return Table(["set (%)", *headings, "pairs"], rows)


def _cells(before: TenFold, after: TenFold, metric: str) -> list[str]:
    first, second = getattr(before, metric), getattr(after, metric)
    return [percent(first), percent(second), f"{100 * (second - first):+.2f}"]
