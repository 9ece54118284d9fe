"""Trains and evaluates the rows of a table of the paper, or of our own experiments, and prints them beside the paper's:

    python -m scripts.ablation I --data-root /data/val rec=/data/faces_vgg_112x112 --form vgg2_r34 --nproc 4
    python -m scripts.ablation I II III --form lfw --seeds 1 2 3 --data-root ../shared/faces/val
    python -m scripts.ablation own --row "b = 0.4: configs/lfw_qg quality_threshold=0.4" …
    python -m scripts.ablation I II III controls --list                                        # what would run

Each row is a configuration file, configs/FORM_ROW, and a run for each seed in OUTPUT/FORM_ROW-sSEED (with what it changes, if
anything, in its name). A row that several tables share is trained once. Runs that are finished are not repeated, and one that
was interrupted goes on: the same command, given again, does what is left. A run that is there with other settings is an error,
not a figure of the table; one that was evaluated on other benchmarks is evaluated again. OUTPUT/TABLE.json and TABLE.md hold the
tables.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prettytable import PrettyTable, TableStyle

from eval.present import paper
from eval.present.benchmark_tables import summary_row
from scripts.ablation.request import record, recorded, refuse_other_request, request_of
from utils import config as config_file
from utils.errors import UserError, exit_on_user_error

FORMS = ("lfw", "vgg2_r34")


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is called there, its configuration file (without the form), and what is changed in it."""

    name: str
    config: str
    changes: tuple[str, ...] = ()

    def run_name(self, form: str, seed: int) -> str:
        changed = "".join(f"-{re.sub(r'[^A-Za-z0-9.=]+', '_', change)}" for change in self.changes)
        return f"{self._file(form).stem}{changed}-s{seed}"

    def arguments(self, form: str) -> list[str]:
        """The configuration file and `key=value`s, as train.py takes them."""
        return [str(self._file(form)), *self.changes]

    def _file(self, form: str) -> Path:
        return Path(self.config) if "/" in self.config else Path("configs") / f"{form}_{self.config}"


def _changed(name: str, *changes: str, config: str = "qg") -> Row:
    return Row(name, config, changes)


TABLES: dict[str, list[Row]] = {
    "I": [
        Row("Baseline", "baseline"), Row("A", "a"), Row("B", "b"), Row("C", "c"), Row("D", "d"), Row("E", "qg"),
    ],
    "II": [
        Row("queue: no", "queue_none"), Row("queue: batch", "queue_batch"), Row("queue: momentum", "queue_momentum"),
        Row("queue: proxy-updated", "qg"),
    ],
    "III": [
        Row("b: no", "threshold_none"), Row("b = 0.1", "threshold_01"), Row("b = 0.2", "qg"), Row("b = 0.3", "threshold_03"),
    ],
    "controls": [
        Row("D", "d"), Row("D, both views", "d_both"), Row("E", "qg"),
        _changed("E, by views", "partition=views"),
        _changed("E, by views, infonce", "partition=views", "contrastive_denominator=infonce"),
        _changed("b: no, infonce", "contrastive_denominator=infonce", config="threshold_none"),
        _changed("b: no, infonce, lambda = 0.1", "contrastive_denominator=infonce", "contrastive_weight=0.1",
                 config="threshold_none"),
        _changed("b: no, infonce, gradient through the key", "contrastive_denominator=infonce", "contrastive_stop_gradient=False",
                 config="threshold_none"),
        _changed("b = 0.3, infonce", "contrastive_denominator=infonce", config="threshold_03"),
        _changed("b = 0.3, queue of 3,831", "queue_size=3831", config="threshold_03"),
        _changed("b = 0.3, mean over the selected", "loss_average=selected", config="threshold_03"),
        _changed("b = 0.3, warm-up of 4 epochs", "partition_warmup_epoch=4", config="threshold_03"),
        _changed("b = 0.2, c = 1", "quality_concentration=1.0"),
        _changed("mu = 20, sigma = 100 at first", "quality_mean=20.0", "quality_std=100.0"),
    ],
    "own": [],  # the rows of --row alone
}  # fmt: skip

AUC = "AUC"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    rows = {table: list(TABLES[table]) for table in options.tables}
    rows[options.tables[-1]] += [_own_row(text) for text in options.row]
    _check(rows, options)
    runs = {row.run_name(options.form, seed): (row, seed) for seed in options.seeds for rows_ in rows.values() for row in rows_}
    if options.list:
        for name, (row, seed) in runs.items():
            print(f"{name}: train.py {' '.join([*row.arguments(options.form), *options.settings, f'seed={seed}'])}")
        return
    output = Path(options.output)
    for name, (row, seed) in runs.items():
        refuse_other_request(output / name, request_of(_configuration(row, seed, options), options.nproc))
    output.mkdir(parents=True, exist_ok=True)
    _run_all([partial(_one_run, output / name, row, seed, options) for name, (row, seed) in runs.items()], options.jobs)
    for table, table_rows in rows.items():
        measured = {row.name: _results(output, row, options) for row in table_rows}
        _write(output, table, measured)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(TABLES)}; then key=value for all runs")
    parser.add_argument("--form", choices=FORMS, default="lfw", help="the configurations' family (default lfw)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data-root", default="../shared/faces/val", help="benchmarks, as `python -m eval all` takes them")
    parser.add_argument("--output", default="runs/ablation")
    parser.add_argument("--row", action="append", default=[], metavar="'NAME: CONFIG [key=value …]'", help="a further row")
    parser.add_argument("--nproc", type=int, default=1, help="processes (GPUs) a run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--list", action="store_true", help="only say what would run")
    options = parser.parse_intermixed_args(arguments)
    options.settings = [text for text in options.tables if "=" in text]
    options.tables = [text for text in options.tables if "=" not in text]
    unknown = [text for text in options.tables if text not in TABLES]
    if unknown or not options.tables:
        raise UserError(f"table {unknown[0] if unknown else ''!r}: there are {', '.join(TABLES)}")
    return options


def _check(rows: Mapping[str, Sequence[Row]], options: argparse.Namespace) -> None:
    """Says what would fail before hours of training have gone into it."""
    for name in ("jobs", "nproc"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    for table, rows_ in rows.items():
        if not rows_:
            raise UserError(f"table {table!r} has no rows of its own: give them, as --row 'NAME: CONFIG [key=value …]'")
        for row in rows_:
            _configuration(row, 0, options)
    if not options.list and not Path(options.data_root).is_dir():
        raise UserError(f"--data-root {options.data_root}: no such folder; it holds what the runs are evaluated on")


def _configuration(row: Row, seed: int, options: argparse.Namespace) -> config_file.Config:
    file, *changes = row.arguments(options.form)
    return config_file.load(file, [*changes, *options.settings, f"seed={seed}"])


def _own_row(text: str) -> Row:
    name, colon, rest = text.partition(":")
    config, *changes = rest.split() or [""]
    if not (colon and config) or any("=" not in change for change in changes):
        raise UserError(f"--row {text!r}: expected 'NAME: CONFIG [key=value …]', such as 'b = 0.4: configs/lfw_qg lr=0.2'")
    return Row(name.strip(), config, tuple(changes))


# ------------------------------------------------------------------------------------------------ running


def _run_all(runs: Sequence[Callable[[], None]], jobs: int) -> None:
    """`jobs` at a time. After a failure or an interruption none begins any more; those that are under way end by themselves."""
    failed = threading.Event()

    def run(one: Callable[[], None]) -> None:
        try:
            if not failed.is_set():
                one()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for finished in [pool.submit(run, one) for one in runs]:
                finished.result()
        except BaseException:
            failed.set()
            raise


def _one_run(folder: Path, row: Row, seed: int, options: argparse.Namespace) -> None:
    """Trains and evaluates, where that is not done yet (on these benchmarks). What the programs print goes to FOLDER.log."""
    evaluation, data_root = folder / "eval.json", str(Path(options.data_root).resolve())
    if evaluation.is_file() and recorded(folder).get("data_root", data_root) == data_root:
        return
    log = folder.with_name(f"{folder.name}.log")
    print(f"{folder.name}: training, {log}", flush=True)
    launcher = [sys.executable]
    if options.nproc > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.nproc}"]
    train = [*launcher, "train.py", *row.arguments(options.form), *options.settings, f"seed={seed}", f"output={folder}"]
    record(folder, request=request_of(_configuration(row, seed, options), options.nproc))
    unfinished = folder / "eval.unfinished.json"
    evaluate = [
        *launcher, "-m", "eval", "all", "--checkpoint", str(folder), "--data-root", options.data_root, "--json", str(unfinished)
    ]  # fmt: skip
    environment = dict(os.environ)
    if options.jobs > 1:  # runs side by side, each with its share of the processor
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
    with open(log, "a", encoding="utf-8") as sink:
        for command in (train, evaluate):
            code = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=environment).returncode
            if code:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise UserError(f"{' '.join(command[1:])}: ended with code {code}: {' '.join(last)} (all of it: {log})")
    record(folder, data_root=data_root)
    unfinished.rename(evaluation)


# ------------------------------------------------------------------------------------------------ tables


def _results(output: Path, row: Row, options: argparse.Namespace) -> dict[str, list[float]]:
    """Column -> a figure (%) for each seed."""
    columns: dict[str, list[float]] = {}
    for seed in options.seeds:
        results = json.loads((output / row.run_name(options.form, seed) / "eval.json").read_text(encoding="utf-8"))
        for column, value in _figures(results).items():
            columns.setdefault(column, []).append(value)
    return columns


def _figures(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The summary's columns, then the AUC of each verification set, in %."""
    areas = {f"{AUC} {name}": 100 * metrics["auc"] for name, metrics in results.items() if "accuracy" in metrics}
    return {**summary_row(results), **areas}


def _write(output: Path, table: str, measured: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Prints the table and leaves TABLE.json and TABLE.md."""
    seeds = max((len(values) for row in measured.values() for values in row.values()), default=0)
    print(f"\nTable {table}, in %: mean ± standard deviation over {seeds} seed(s); under it the paper's row, on its own data")
    print(_shown(table, measured, lines=True).get_string())
    (output / f"{table}.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    markdown = _shown(table, measured, lines=False)  # which knows no lines between rows
    markdown.set_style(TableStyle.MARKDOWN)
    (output / f"{table}.md").write_text(markdown.get_string() + "\n", encoding="utf-8")


def _shown(table: str, measured: Mapping[str, Mapping[str, list[float]]], lines: bool) -> PrettyTable:
    columns = list(dict.fromkeys(column for row in measured.values() for column in row))
    shown = PrettyTable([f"table {table}", *columns], align="r")
    shown.align[f"table {table}"] = "l"
    for name, row in measured.items():
        shown.add_row([name, *(_mean_and_std(row.get(column, [])) for column in columns)])
        figures = paper.TABLES.get(table, {}).get(name)
        if figures:
            printed = [f"{figures[column]:.2f}" if column in figures else "" for column in columns]
            shown.add_row([f"  {paper.PAPER}", *printed], divider=lines)
    return shown


def _mean_and_std(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


if __name__ == "__main__":
    exit_on_user_error(main)
