"""`python -m eval report`: a run on one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.commands import scface
from eval.commands.common import (
    ImageSet,
    add_batch_argument,
    add_checkpoint_argument,
    add_precision_argument,
    bin_sets,
    embed,
    open_encoder,
    positive,
)
from eval.present.plots import GradientMap
from eval.protocols.scface import find_scface
from eval.report import page, sections
from eval.report.read import Measured, Run, read_run
from eval.verification import judge_set
from recognition.checkpoints import store
from recognition.data.batch import sample_views
from recognition.encoders.card import QualityScale
from recognition.encoders.load import LoadedEncoder
from recognition.monitor.gradient_scale import gradient_map
from utils import dist
from utils.dist import World
from utils.errors import UserError
from utils.files import write_file

NAME = "report"
HELP = "one HTML page of a run: curves, tables, ROC, similarities, HQ and LQ pairs; needs no network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the output folder of a run")
    parser.add_argument("--out", metavar="FILE", help="default: RUN/report.html")
    add_checkpoint_argument(parser, required=False, described="another encoder than the newest, such as RUN/checkpoints/best")
    parser.add_argument("--data-root", metavar="DIR", help="*.bin and scface/ to measure; default: the run's val_dir")
    parser.add_argument("--images", type=positive, default=384, help="number of training images to analyse (default 384)")
    add_precision_argument(parser)
    add_batch_argument(parser)
    parser.add_argument("--compare", action="append", default=[], metavar="RUN", help="also draw this run's queue; repeatable")
    parser.add_argument("--no-encoder", action="store_true", help="use only the run's files, embed nothing")


def run(arguments: argparse.Namespace, world: World) -> None:
    found = read_run(Path(arguments.folder))
    for other in map(Path, arguments.compare):
        found.differences.update(
            {f"{other.resolve().name}: {queue}": each for queue, each in read_run(other).differences.items()}
        )
    measured = _without_encoder() if arguments.no_encoder else _measure(arguments, world, found)
    out = Path(arguments.out) if arguments.out else found.path / "report.html"

    def write() -> None:
        text = _render(found, measured)
        write_file(out, text, parents=True, label=f"--out {out}")
        print(f"report: {out} ({len(text) / 1e6:.1f} MB)")

    dist.on_first_rank(write)


# -------------------------------------------------------------------------------------------------- the page


def _render(run: Run, measured: Measured) -> str:
    parts = (
        sections.results(run),
        sections.training(run),
        sections.verification(run),
        sections.roc(measured),
        sections.by_distance(measured),
        sections.pairs(measured),
        sections.norms(run, measured),
        sections.differences(run),
        sections.gradients(run, _gradient_map(run)),
    )
    about = f"{run.config.get('network', 'encoder')} on {run.config.get('rec', 'unknown data')}"
    return page.page(f"Run {run.path.resolve().name}", about, _facts(run), parts)


def _facts(run: Run) -> list[tuple[str, str]]:
    config, training = run.config, run.training
    counts = {"classes": "num_classes", "images": "num_image"}
    choices = {"margin": "margin", "queue": "queue", "threshold b": "quality_threshold", "augmentation": "augmentation"}
    facts = [(label, f"{config[key]:,}") for label, key in counts.items() if key in config]
    facts += [(label, str(config[key])) for label, key in choices.items() if key in config]
    if len(training.get("step", ())):
        facts += [("steps", f"{int(training['step'][-1]):,}"), ("last loss", f"{training['loss'][-1]:.3f}")]
        if "images_per_second" in training:
            facts.append(("images per second", f"{sorted(training['images_per_second'])[len(training['step']) // 2]:,.0f}"))
    return [*facts, ("skipped steps", str(run.skipped_steps))] if run.skipped_steps else facts


def _gradient_map(run: Run) -> GradientMap | None:
    """The map for the run's margin and last quality statistics; None for margins other than AdaFace's."""
    config, training = run.config, run.training
    needed = ("margin_m", "scale", "num_classes", "quality_concentration")
    if config.get("margin") != "adaface" or not all(config.get(key) for key in needed) or "quality_std" not in training:
        return None
    mean, std = float(training["quality_mean"][-1]), float(training["quality_std"][-1])
    threshold = config.get("quality_threshold") if config.get("partition", "norm") == "norm" else None
    quality = QualityScale(mean, std, config["quality_concentration"], threshold)
    return gradient_map(config["margin_m"], config["scale"], config["num_classes"], quality)


# -------------------------------------------------------------------------------------------------- measurements


def _without_encoder() -> Measured:
    note = "Not measured: the report was written with --no-encoder."
    return Measured(notes={"roc": note, "similarity": note, "pairs": note})


def _measure(arguments: argparse.Namespace, world: World, run: Run) -> Measured:
    """Embed verification sets, SCface and training images on all ranks. What fails becomes a note on the page."""
    root = Path(arguments.data_root) if arguments.data_root else None
    if root is not None and not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    try:
        encoder = open_encoder(arguments, world, None if arguments.checkpoint else arguments.folder)
    except UserError as fault:
        raise UserError(f"{fault}; --no-encoder makes a report from the run's files alone") from fault
    own = Path(run.config.get("val_dir") or run.config.get("rec") or ".")
    if root is not None:
        bins = sorted(root.glob("*.bin"))
    else:
        targets = run.config.get("val_targets", [])
        bins = [Path(target) if target.endswith(".bin") else own / f"{target}.bin" for target in targets]
    scale = encoder.card.quality
    found = Measured(threshold=scale.threshold if scale else None)
    if scale is not None and scale.threshold is not None:
        found.border = scale.norm_of(scale.threshold)
    cache, batch_size = run.path / "eval" / "features", arguments.batch_size
    _verify(found, encoder, [path for path in bins if path.is_file()], batch_size, cache)
    if (photographs := (root or own) / "scface").is_dir():
        _search_scface(found, encoder, photographs, batch_size, cache)
    _look_at_training_images(found, encoder, arguments.folder, arguments.images, batch_size)
    return found


def _verify(found: Measured, encoder: LoadedEncoder, bins: Sequence[Path], batch_size: int, cache: Path) -> None:
    for path in bins:
        try:
            for images, issame in bin_sets([path]):
                rows = embed(encoder, images, batch_size, cache=cache)
                if len(rows):  # rank 0 has them
                    found.folds[path.stem] = judge_set(path.stem, rows, issame)
        except UserError as fault:
            found.notes["roc"] = str(fault)


def _search_scface(found: Measured, encoder: LoadedEncoder, root: Path, batch_size: int, cache: Path) -> None:
    try:
        data = find_scface(root)
        rows = embed(encoder, scface.image_set(data), batch_size, cache=cache)
        if len(rows):
            found.searches = data.evaluate(rows)
    except UserError as fault:
        found.notes["similarity"] = str(fault)


def _look_at_training_images(found: Measured, encoder: LoadedEncoder, run: str, count: int, batch_size: int) -> None:
    """Norms and quality of training images and of their augmented views, without mirror images, as in training."""
    try:
        found.originals, found.augmented = sample_views(store.read_config(store.find(run)), count)
    except (UserError, OSError) as fault:
        found.notes["pairs"] = f"The run's training images cannot be shown: {fault}"
        return
    both = np.concatenate([found.originals, found.augmented])
    rows = embed(encoder, ImageSet("training views", len(both), lambda index: both[index], []), batch_size, merge_flip=None)
    norms = np.linalg.norm(rows, axis=1).reshape(2, -1)
    if not np.isfinite(norms).all():
        found.notes["pairs"] = "The features of training images are not finite; check the checkpoint."
        return
    found.norms = norms
    if encoder.card.quality is not None:
        found.u = encoder.card.quality.u(found.norms.reshape(-1)).reshape(found.norms.shape)
