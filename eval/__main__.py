"""The benchmarks from the command line: `python -m eval COMMAND …`; `python -m eval --help` lists the commands.

`torchrun --nproc_per_node=4 -m eval COMMAND …` embeds on all ranks; rank 0 computes, prints and draws.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import importlib
import pkgutil

import eval.commands
from eval.commands.common import prepare_outputs
from utils import dist
from utils.errors import refuse_unknown_command

# The modules of eval/commands/, as common.py describes them.
COMMANDS = [module.name for module in pkgutil.iter_modules(eval.commands.__path__) if module.name != "common"]

_LONGEST_METRIC_MINUTES = 60.0  # how long the other ranks wait for rank 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m eval", description="Standard face-recognition benchmarks for a trained encoder.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"eval.commands.{name}")
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main() -> None:
    refuse_unknown_command(program.arguments(), COMMANDS)
    arguments = build_parser().parse_args(program.arguments())
    world = dist.start(_LONGEST_METRIC_MINUTES)
    dist.on_first_rank(lambda: prepare_outputs(arguments))
    arguments.run(arguments, world)


if __name__ == "__main__":
    dist.run_command(main)
