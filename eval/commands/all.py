"""`python -m eval all`: every benchmark in a folder, and one summary with the paper's table I."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from eval.commands import ijb, ijbs, rfw, scface, tinyface, verify
from eval.commands.common import Figures, add_benchmark_arguments, open_encoder
from eval.commands.common.overlap import add_overlap_arguments
from eval.present.tables import summary_table
from eval.protocols.ijb_files import TARGETS
from utils import dist
from utils.dist import World
from utils.errors import UserError

NAME = "all"
HELP = "every benchmark found under a folder: *.bin, IJBB/, IJBC/, tinyface/, scface/, rfw/, ijbs/; one summary table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    add_overlap_arguments(parser)
    parser.add_argument(
        "--data-root", required=True, metavar="DIR", help="holds some of *.bin, IJBB/, IJBC/, tinyface/, scface/, rfw/, ijbs/"
    )
    parser.add_argument("--all-pairs", nargs="+", default=[], metavar="SET", help="labelled sets too, as for `eval verify`")
    ijb.add_setting_arguments(parser)
    ijbs.add_feature_arguments(parser)


def run(arguments: argparse.Namespace, world: World) -> None:
    root = Path(arguments.data_root)
    bins = sorted(root.glob("*.bin"))
    releases = [target for target in TARGETS if (root / target).is_dir()]
    others = [command for command in (tinyface, scface, rfw, ijbs) if (root / command.NAME).is_dir()]
    if not (bins or releases or others):
        raise UserError(f"{root}: no benchmark here; looked for *.bin, IJBB/, IJBC/, tinyface/, scface/, rfw/, ijbs/")
    encoder, figures = open_encoder(arguments, world), Figures(arguments)
    for evaluate in _prepare(arguments, root, bins, releases, others):
        evaluate(arguments, encoder, figures=figures)

    def show() -> None:
        print("\nSummary (%): rank 1 on SCface, TinyFace and IJB-S, TAR@FAR=1e-4 on IJB, accuracy on the others")
        print(summary_table(encoder.label, figures.results, with_paper=not arguments.no_paper))

    dist.on_first_rank(show)
    figures.finish()


def _prepare(
    arguments: argparse.Namespace, root: Path, bins: list[Path], releases: list[str], others: list[ModuleType]
) -> list[Callable[..., None]]:
    """Check everything; return the functions that evaluate it. Raises UserError with one line per unusable benchmark."""
    taken = {*releases, *(name for command in others for name in command.SETS)}
    problems = [f"{path}: has the name of a benchmark of {root}; rename it" for path in bins if path.stem in taken]
    steps: list[tuple[Callable[..., None], str, Callable[[], object]]] = []
    if bins:
        steps.append((verify.evaluate, "bins", lambda: verify.prepare(bins)))
    steps += [(ijb.evaluate, "plan", partial(ijb.prepare, arguments, root / target, target)) for target in releases]
    steps += [(command.evaluate, "data", partial(command.prepare, root / command.NAME)) for command in others]
    if arguments.all_pairs:
        taken |= {path.stem for path in bins}
        steps.append((verify.evaluate_all_pairs, "sets", lambda: verify.labelled_sets(arguments.all_pairs, taken)))
    evaluations: list[Callable[..., None]] = []
    for evaluate, name, prepare in steps:
        try:
            evaluations.append(partial(evaluate, **{name: prepare()}))
        except UserError as error:
            problems += error.args
    if problems:
        raise UserError(*problems)
    return evaluations
