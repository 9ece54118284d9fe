"""`python -m recognition.data.pack COMMAND …`: image folders to packed data sets, and back.

Exit codes: 0 done; 2 a mistake that you can fix, explained in one line on stderr; 130 or 143 interrupted. In no case is an
incomplete result left under its final name.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import importlib
import pkgutil

import recognition.data.pack.commands
from recognition.data.parallel import exit_on_signals
from utils.errors import exit_on_user_error, refuse_unknown_command

COMMANDS = [module.name for module in pkgutil.iter_modules(recognition.data.pack.commands.__path__)]


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.run(arguments)` runs the chosen one."""
    parser = argparse.ArgumentParser(
        prog="python -m recognition.data.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"recognition.data.pack.commands.{name}")
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main() -> None:
    refuse_unknown_command(program.arguments(), COMMANDS)
    arguments = make_parser().parse_args(program.arguments())
    exit_on_signals()
    arguments.run(arguments)


if __name__ == "__main__":
    exit_on_user_error(main)
