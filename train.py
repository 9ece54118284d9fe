"""Train a face encoder.

usage: train.py [--show | --plan [--ranks N] [--json FILE]] CONFIG [key=value ...]

CONFIG is a configuration file, also one of arcface_torch (docs/MIGRATING.md); key=value changes a setting, see configs/base.py.
The same command, given again, resumes an interrupted run. --show prints the settings as a file, for GPUs. --plan prints what a
run on N ranks needs (memory, the largest batch, disk, steps …), also without data, and the hours if there are data: it measures
five steps. Neither trains anything. --json writes the plan's figures to FILE. --version prints the version.

  python train.py configs/lfw_qg                                                              # one process
  torchrun --nproc_per_node=4 train.py configs/vgg2_r34_qg rec=/data/faces_vgg_112x112        # one process per GPU
  python train.py configs/vgg2_r34_qg num_image=3100000 --plan --ranks 4                      # what those four would need
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

from recognition import __version__
from recognition.trainer import Trainer
from utils import config, dist
from utils.errors import UserError

USAGE = "usage: train.py CONFIG [key=value ...], such as: train.py configs/vgg2_r34_qg rec=/data/faces_vgg_112x112"


def main() -> None:
    arguments = program.arguments()
    if {"-h", "--help"} & set(arguments):
        print(__doc__, end="")
        return
    options, arguments = _options(arguments)
    if not arguments:
        raise UserError(USAGE)
    explanations: list[str] = []
    settings = config.load(arguments[0], arguments[1:], explanations.append, options.show or None, options.plan)
    if options.show:
        print(*explanations, sep="\n", file=sys.stderr)
        print(settings.as_file(Path(arguments[0]).stem), end="")
        return
    world = dist.start(settings.timeout_minutes)
    if world.is_first and explanations:
        print(*explanations, sep="\n", flush=True)
    if options.plan:
        from recognition.planning import plan  # slow to import

        plan.run(settings, world, options.ranks, options.json)
    else:
        program.keep_freed_memory()
        Trainer(settings, world).run()


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and all other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--version", action="version", version=__version__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--show", action="store_true")
    only.add_argument("--plan", action="store_true")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--json", type=Path)
    try:
        options, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as fault:
        raise UserError(str(fault)) from fault
    if not options.plan and (options.ranks is not None or options.json):
        raise UserError("--ranks and --json need --plan")
    return options, others


if __name__ == "__main__":
    dist.run_command(main)
