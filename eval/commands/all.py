"""`python -m eval all`: every benchmark in a folder, and one summary with the paper's table I."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.commands import ijb, scface, tinyface, verify
from eval.commands.common import Results, add_benchmark_arguments, open_encoder, write_json
from eval.present.tables import summary_table
from eval.protocols.ijb_files import TARGETS
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "all"
HELP = "every benchmark found under a folder: *.bin, IJBB/, IJBC/, tinyface/, scface/; one summary table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--data-root", required=True, metavar="DIR", help="holds some of *.bin, IJBB/, IJBC/, tinyface/, scface/")
    ijb.add_setting_arguments(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    root = Path(arguments.data_root)
    bins = sorted(root.glob("*.bin"))
    releases = [target for target in TARGETS if (root / target).is_dir()]
    others = [command for command in (tinyface, scface) if (root / command.NAME).is_dir()]
    if not (bins or releases or others):
        raise UserError(f"{root}: no benchmark here; looked for *.bin, IJBB/, IJBC/, tinyface/, scface/")
    encoder = open_encoder(arguments, world)
    results: Results = {}
    if bins:
        results |= verify.evaluate(arguments, encoder, bins)
    for target in releases:
        results |= ijb.evaluate(arguments, encoder, root / target, target)
    for command in others:
        results |= command.evaluate(arguments, encoder, root / command.NAME)

    def show() -> None:
        print("\nSummary (%): rank 1 on SCface and TinyFace, TAR@FAR=1e-4 on IJB, accuracy on the others")
        print(summary_table(encoder.label, results))

    dist.on_first_rank(show)
    write_json(arguments, results)
