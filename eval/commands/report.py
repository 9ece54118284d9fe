"""`python -m eval report`: a run on one page."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from eval.commands.common import Context, add_batch_argument, add_checkpoint_argument, add_precision_argument, positive
from eval.report import diagnostics, page, sections
from eval.report.measure import Measured, measure
from eval.report.read import Run, read_run
from utils import dist
from utils.errors import UserError

NAME = "report"
HELP = "one HTML page of a run: curves, tables, ROC, similarities, HQ and LQ pairs; it needs no network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the output folder of a run")
    parser.add_argument("--out", metavar="FILE", help="default: RUN/report.html")
    add_checkpoint_argument(parser, required=False, described="another encoder than the newest, such as RUN/checkpoints/best")
    parser.add_argument("--data-root", metavar="DIR", help="*.bin and scface/ to measure; default: the run's val_dir")
    parser.add_argument("--images", type=positive, default=384, help="training images looked at (default 384)")
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument("--compare", action="append", default=[], metavar="RUN", help="lay this run's queue beside; repeatable")
    parser.add_argument("--no-encoder", action="store_true", help="from the run's files alone, nothing is embedded")


def run(arguments: argparse.Namespace, context: Context) -> None:
    found = read_run(Path(arguments.folder))
    for other in map(Path, arguments.compare):
        found.differences.update(_named_after(other.resolve().name, read_run(other).differences))
    measured = _without_encoder() if arguments.no_encoder else _measure(arguments, context, found)
    out = Path(arguments.out) if arguments.out else found.path / "report.html"

    def write() -> None:
        text = render(found, measured)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text, encoding="utf-8")
        except OSError as fault:
            raise UserError(f"--out {out}: cannot be written ({fault.strerror})") from fault
        print(f"report: {out} ({len(text) / 1e6:.1f} MB)")

    dist.on_first_rank(write)


def _named_after(run: str, differences: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    return {f"{run}: {queue}": curves for queue, curves in differences.items()}


def render(run: Run, measured: Measured) -> str:
    """The page."""
    parts = (
        sections.results(run), sections.training(run), sections.verification(run), sections.roc(measured),
        sections.by_distance(measured), sections.pairs(measured), diagnostics.norms(run, measured),
        diagnostics.differences(run), diagnostics.gradients(run),
    )  # fmt: skip
    config = run.config
    about = f"{config.get('network', 'encoder')} on {config.get('rec', 'unknown data')}"
    return page.page(f"Run {run.path.resolve().name}", about, _facts(run), parts)


def _facts(run: Run) -> list[tuple[str, str]]:
    config, training = run.config, run.training
    facts = [(label, f"{config[key]:,}") for label, key in (("classes", "num_classes"), ("images", "num_image")) if key in config]
    facts += [(label, str(config[key])) for label, key in
              (("margin", "margin"), ("queue", "queue"), ("threshold b", "quality_threshold"), ("augmentation", "augmentation"))
              if key in config]  # fmt: skip
    if len(training.get("step", ())):
        facts += [("steps", f"{int(training['step'][-1]):,}"), ("last loss", f"{training['loss'][-1]:.3f}")]
        if "images_per_second" in training:
            facts.append(("images a second", f"{sorted(training['images_per_second'])[len(training['step']) // 2]:,.0f}"))
    return [*facts, ("skipped steps", str(run.events))] if run.events else facts


def _without_encoder() -> Measured:
    note = "Not measured: the report was written with --no-encoder."
    return Measured(notes={"roc": note, "similarity": note, "pairs": note})


def _measure(arguments: argparse.Namespace, context: Context, run: Run) -> Measured:
    root = Path(arguments.data_root) if arguments.data_root else None
    if root is not None and not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    try:
        encoder = context.open_encoder(arguments.checkpoint or arguments.folder)
    except UserError as fault:
        raise UserError(f"{fault}; --no-encoder reports what the run's files say") from fault
    assert context.training_views is not None
    views = partial(context.training_views, arguments.folder, arguments.images)
    own = Path(run.config.get("val_dir") or run.config.get("rec") or ".")
    if root is not None:
        bins = sorted(root.glob("*.bin"))
    else:
        targets = run.config.get("val_targets", [])
        bins = [Path(target) if target.endswith(".bin") else own / f"{target}.bin" for target in targets]
    scface = (root or own) / "scface"
    here = [path for path in bins if path.is_file()]
    return measure(
        encoder, here, scface if scface.is_dir() else None, views, run.path / "eval" / "features", arguments.batch_size
    )
