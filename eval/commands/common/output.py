"""Output files of a command: figures as JSON, plots."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eval.present.style import save_figure
from eval.present.tables import write_results
from recognition.encoders.card import MODEL
from utils import dist
from utils.errors import UserError
from utils.files import refuse_address

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, dict[str, float]]
"""Set name -> metric -> value: what is printed, written to --json and to a run's results.json."""


def plot_folder(arguments: argparse.Namespace) -> Path | None:
    """The folder for plots: `--plots`, else `eval` in the run's folder, else None."""
    if arguments.plots:
        return Path(arguments.plots)
    folder = Path(arguments.checkpoint or "")
    if not arguments.checkpoint or not folder.is_dir() or (folder / MODEL).is_file():
        return None
    return (folder.parents[1] if folder.parent.name == "checkpoints" else folder) / "eval"


def prepare_outputs(arguments: argparse.Namespace) -> None:
    """Create the folders of `--json`, `--out`, `--cache` and `--plots`, so that a mistake is found before hours of work.

    Raises UserError if a folder cannot be created or written to.
    """
    given = vars(arguments)
    folders = {f"--{name} {given[name]}": Path(given[name]).parent for name in ("json", "out") if given.get(name)}
    if given.get("cache"):
        folders[f"--cache {arguments.cache}"] = Path(arguments.cache)
    if "plots" in given and (plots := plot_folder(arguments)):
        folders[f"--plots {plots}"] = plots
    for option, folder in folders.items():
        refuse_address(folder, option)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UserError(f"{option}: cannot be written ({fault.strerror})") from fault
        if not os.access(folder, os.W_OK):
            raise UserError(f"{option}: cannot be written (no permission for {folder})")


def save_plots(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures, file name -> figure, as PNG and SVG, and print their paths."""
    written = [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]
    print("plots:", ", ".join(map(str, written)))


class Figures:
    """The results of a command, written to `--json`, if it was given, as they become available. On all ranks; rank 0 writes."""

    def __init__(self, arguments: argparse.Namespace):
        self.path, self.results = arguments.json, Results()

    def add(self, results: Results) -> None:
        """Add the results of one or more sets, and write all so far."""
        self.results |= results
        if self.path:
            dist.on_first_rank(lambda: write_results(self.path, self.results, label=f"--json {self.path}"))

    def finish(self) -> None:
        """Print where the results are."""
        if self.path:
            dist.on_first_rank(lambda: print(f"figures: {self.path}"))
