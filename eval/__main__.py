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
from typing import Any

import eval.commands
from eval.commands.common import prepare_outputs
from utils import dist, plugins
from utils.errors import UserError, refuse_unknown_command

# The modules of eval/commands/, as common/ describes them.
COMMANDS = [module.name for module in pkgutil.iter_modules(eval.commands.__path__) if module.name != "common"]

_LONGEST_METRIC_MINUTES = 60.0  # how long the other ranks wait for rank 0


def build_parser(plugin: str = "") -> argparse.ArgumentParser:
    """plugin: a command from outside the repository, `module:name`; an object like the modules of eval/commands/."""
    parser = argparse.ArgumentParser("python -m eval", description="Standard face-recognition benchmarks for a trained encoder.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"eval.commands.{name}")
        _add(commands, module.NAME, module)
    if plugin:
        plugins.trust([plugin])
        command = plugins.load(plugin, f"command {plugin}")
        if lacking := [name for name in ("HELP", "add_arguments", "run") if not hasattr(command, name)]:
            raise UserError(f"command {plugin}: has no {', '.join(lacking)}; see docs/EXTENDING.md")
        _add(commands, plugin, command)
    return parser


def _add(commands: Any, name: str, module: Any) -> None:
    command = commands.add_parser(name, help=module.HELP, description=module.HELP)
    module.add_arguments(command)
    command.set_defaults(run=module.run)


def main() -> None:
    given = next(iter(program.arguments()), "")
    plugin = given if plugins.is_plugin(given) else ""
    refuse_unknown_command(program.arguments(), [*COMMANDS, plugin] if plugin else COMMANDS)
    arguments = build_parser(plugin).parse_args(program.arguments())
    world = dist.start(_LONGEST_METRIC_MINUTES)
    dist.on_first_rank(lambda: prepare_outputs(arguments))
    arguments.run(arguments, world)


if __name__ == "__main__":
    dist.run_command(main)
