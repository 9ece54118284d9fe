"""Trains and evaluates the rows of a table of the paper, or rows of your own, and prints them next to the paper's figures:

    python -m scripts.ablation I II III --form lfw --seeds 1 2 3 --data-root ../shared/faces/val
    python -m scripts.ablation I --form vgg2_r34 --nproc 4 --data-root /data/val rec=/data/faces_vgg_112x112
    python -m scripts.ablation own --row "b = 0.4: configs/lfw_qg quality_threshold=0.4"
    python -m scripts.ablation I II III controls --list                                        # what would run

Each row is a configuration file, configs/FORM_ROW, and one run per seed, in OUTPUT/FORM_ROW-CHANGES-sSEED. A row that several
tables share is trained once. Finished runs are not repeated and interrupted ones continue, so the same command completes a
table. A run that exists with other settings is an error; one that was evaluated on other benchmarks is evaluated again. The
tables are written to OUTPUT/TABLE.json and TABLE.md.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable

from scripts.ablation.record import refuse_other_settings
from scripts.ablation.rows import FORMS, TABLES, Row, parse_row
from scripts.ablation.runs import EVALUATION, Run, execute_all
from scripts.ablation.tables import read_figures, write_table
from utils.errors import UserError, exit_on_user_error


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(program.arguments() if arguments is None else arguments)
    tables = {name: list(TABLES[name]) for name in options.tables}
    tables[options.tables[-1]] += [parse_row(text) for text in options.row]
    runs = _runs([row for rows in tables.values() for row in rows], options)
    _check(tables, runs, options)
    if options.list:
        print(_list(tables, runs).get_string())
        return
    options.output.mkdir(parents=True, exist_ok=True)
    execute_all([run.execute for run in runs], options.jobs)
    for name, rows in tables.items():
        figures = {row.name: read_figures(_evaluations(row, options)) for row in rows}
        write_table(options.output, name, figures)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(TABLES)}; then key=value for all runs")
    parser.add_argument("--form", choices=FORMS, default="lfw", help="the family of configurations (default lfw)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data-root", type=Path, default="../shared/faces/val", help="benchmarks, as for `python -m eval all`")
    parser.add_argument(
        "--all-pairs", nargs="+", default=[], metavar="SET", help="labelled sets too, as for `python -m eval all`"
    )
    parser.add_argument("--output", type=Path, default="runs/ablation")
    parser.add_argument("--row", action="append", default=[], metavar="'NAME: CONFIG [key=value …]'", help="an additional row")
    parser.add_argument("--nproc", type=int, default=1, help="processes (GPUs) per run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--list", action="store_true", help="only print what would run")
    options = parser.parse_intermixed_args(arguments)
    options.settings = [text for text in options.tables if "=" in text]
    options.tables = [text for text in options.tables if "=" not in text]
    unknown = [text for text in options.tables if text not in TABLES]
    if unknown or not options.tables:
        raise UserError(f"table {unknown[0] if unknown else ''!r}: unknown; known tables: {', '.join(TABLES)}")
    for name in ("jobs", "nproc"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    return options


def _runs(rows: Sequence[Row], options: argparse.Namespace) -> list[Run]:
    """All runs of these rows, each once, by seed."""
    threads = max(1, (os.cpu_count() or 1) // options.jobs) if options.jobs > 1 else None
    runs = {}
    for seed in options.seeds:
        for row in rows:
            folder = options.output / row.run_name(options.form, seed)
            runs[folder] = Run(
                row=row,
                form=options.form,
                seed=seed,
                settings=tuple(options.settings),
                folder=folder,
                data_root=options.data_root,
                all_pairs=tuple(options.all_pairs),
                processes=options.nproc,
                threads=threads,
            )
    return list(runs.values())


def _check(tables: dict[str, list[Row]], runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Raise UserError for anything that would fail after hours of training."""
    for name, rows in tables.items():
        if not rows:
            raise UserError(f"table {name!r} has no rows: give them as --row 'NAME: CONFIG [key=value …]'")
    if not options.list and not options.data_root.is_dir():
        raise UserError(f"--data-root {options.data_root}: no such folder; it must hold the benchmarks for the evaluation")
    for run in runs:
        settings = run.recorded_settings()
        if not options.list:
            refuse_other_settings(run.folder, settings)


def _list(tables: dict[str, list[Row]], runs: Sequence[Run]) -> PrettyTable:
    """One line per run: the tables and row that it belongs to, its state, its output folder and its command."""
    listed = PrettyTable(["table", "row", "seed", "state", "output", "command"], align="l")
    for run in runs:
        names = ", ".join(name for name, rows in tables.items() if run.row in rows)
        listed.add_row([names, run.row.name, run.seed, run.state, run.folder, f"train.py {' '.join(run.arguments)}"])
    return listed


def _evaluations(row: Row, options: argparse.Namespace) -> list[Path]:
    return [options.output / row.run_name(options.form, seed) / EVALUATION for seed in options.seeds]


if __name__ == "__main__":
    exit_on_user_error(main)
