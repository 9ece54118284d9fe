"""`python -m recognition.data.pack COMMAND …`: from image folders to packed data sets, and back.

Exit codes: 0 done; 2 a mistake that you can mend, in one line on stderr; 130 or 143 interrupted. Nothing half-made stays
under a final name in any case.
"""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

from recognition.data.pack.parallel import stop_on_signals
from utils.errors import exit_on_user_error

COMMANDS = (
    "folder", "align", "pairs", "tinyface", "scface", "unpack", "shuffle", "merge", "subset", "degrade", "verify",
    "reindex", "grid",
)  # fmt: skip


def command_module(name: str) -> ModuleType:
    return importlib.import_module(f"recognition.data.pack.commands.{name}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recognition.data.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = command_module(name)
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    stop_on_signals()
    arguments.run(arguments)


if __name__ == "__main__":
    exit_on_user_error(main)
