"""Finds what is probably wrong with a data set: copies, wrong labels, split and merged identities, and what another set shares.

    python -m recognition.data.pack audit packed/ --checkpoint ENCODER --against lfw.bin
    python -m recognition.data.pack subset packed/ clean/ --drop audit/audit.csv

Writes a folder with audit.csv, which lists the findings, and one contact sheet per kind. Look at the sheets; in audit.csv, a row
whose `drop` is 1 drops its image or, if it has no image, the whole identity. Only what pixels prove is preset to 1; the
rest is for you to decide. The kinds:

  exact          images with the pixels of another, perhaps mirrored (dropped; one is kept)
  near           copies that were re-encoded, mirrored or cropped differently (dropped; one is kept)
  suspect        images that are more similar to another identity than to their own
  split          two identities that look like one person
  merged         an identity that looks like two people
  shared_image   images that the other set contains too (dropped if the pixels are equal)
  shared_person  identities that the other set contains too (dropped if it has one of their images with equal pixels)

Thresholds are derived from the set itself (docs/DATA.md explains how); options replace them.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from prettytable import PrettyTable

from eval.present.tables import write_results
from recognition.data.pack.arguments import add_packed_set_argument
from recognition.data.pack.commands.audit.approximate import MANY, is_possible
from recognition.data.pack.commands.audit.faces import Faces, open_faces
from recognition.data.pack.commands.audit.findings import KINDS, LIST, write_list
from recognition.data.pack.output import new_folder
from recognition.data.parallel import add_workers_argument, progress_bar
from utils.errors import UserError

if TYPE_CHECKING:
    from recognition.data.pack.commands.audit.evidence import Evidence
    from recognition.data.pack.commands.audit.search import Audit
    from recognition.encoders.load import LoadedEncoder

HELP = "copies, wrong labels, split, merged and shared people"
THRESHOLDS = {
    "near_cosine": "features: cosine from which pairs of images are compared by their pixels",
    "near_pixels": "near: correlation of pixels (0.97)",
    "suspect_margin": "suspect: how much larger the cosine with another identity is than with the own",
    "split_score": "split: standard deviations by which the centres are more similar than others",
    "merged_score": "merged: how far apart the two groups are",
    "shared_cosine": "shared_person: cosine with the identity's centre",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_packed_set_argument(parser, pictures=True)
    parser.add_argument("--out", type=Path, default=Path("audit"), help="folder to create: audit.csv and sheets (%(default)s)")
    parser.add_argument(
        "--checkpoint", required=True, metavar="ENCODER", help="run folder, checkpoint, weights or exported encoder"
    )
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="OTHER", help="verification sets (.bin) or data sets"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the counts and thresholds to this file")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the features here, for audits with other thresholds")
    for name, meaning in THRESHOLDS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=meaning)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--batch-size", type=int, default=128, help="images per batch of the encoder (%(default)s)")
    exact = f"compare all pairs, where faiss would be used: from {MANY:,} images on a CPU, if it is installed"
    parser.add_argument("--exact", action="store_true", help=exact)
    add_workers_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    import torch  # here, because it takes seconds and the other commands do not need it

    from recognition.data.pack.commands.audit.search import Audit
    from recognition.data.pack.commands.audit.sheets import write_sheets
    from recognition.encoders.load import load_encoder

    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: must be 1 or more")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU; leave it out")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    faces, *others = (open_faces(path) for path in (arguments.source, *arguments.against))
    if faces.labels().min() < 0:
        raise UserError(f"{arguments.source}: has images without an identity (negative labels); audit a set of labelled images")
    encoder = load_encoder(arguments.checkpoint, device)
    with new_folder(arguments.out) as folder:
        cache = arguments.cache or folder / "evidence"
        gathered = [gather(each, encoder, cache, arguments.batch_size) for each in (faces, *others)]
        given = {name: getattr(arguments, name) for name in THRESHOLDS}
        approximate = not arguments.exact and device.type == "cpu" and len(faces) >= MANY and is_possible()
        audit = Audit(gathered[0], device, arguments.workers, given, approximate)
        audit.run(gathered[1:])
        write_list(folder, faces, audit.findings)
        sheets = write_sheets(folder, faces, audit.findings)
        shutil.rmtree(folder / "evidence", ignore_errors=True)
    results = summary(audit)
    print(table(results, sheets))
    print(f"{arguments.out / LIST}: {len(audit.findings)} findings")
    if arguments.json is not None:
        write_results(arguments.json, results, f"--json {arguments.json}")
        print(f"figures: {arguments.json}")


def gather(faces: Faces, encoder: LoadedEncoder, cache: Path, batch_size: int) -> Evidence:
    """The evidence of a set, from the cache if neither the encoder nor the set has changed since."""
    from eval.feature_cache import fingerprint
    from recognition.data.pack.commands.audit.evidence import Evidence, collect

    source = fingerprint([encoder.path / "checkpoints" if (encoder.path / "checkpoints").is_dir() else encoder.path, faces.path])
    folder = cache / f"{faces.path.stem}-{source[:24]}"
    if not folder.is_dir():
        with new_folder(folder) as partial, progress_bar("images") as progress:
            task = progress.add_task(f"embedding {faces.path.name}", total=2 * len(faces))
            collect(faces, encoder, partial, batch_size, lambda images: progress.advance(task, images))
    return Evidence.load(faces, folder)


def summary(audit: Audit) -> dict[str, dict[str, float]]:
    """The number of findings of each kind and how many of them drop something, and the thresholds."""
    results: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        found = [finding for finding in audit.findings if finding.kind == kind]
        results[kind] = {"found": len(found), "drop": sum(finding.drop for finding in found)}
    return results | {"thresholds": {name: value for name, value in audit.thresholds.items() if math.isfinite(value)}}


def table(results: dict[str, dict[str, float]], sheets: dict[str, str]) -> PrettyTable:
    shown = PrettyTable(["kind", "found", "to drop", "threshold", "sheet"], align="l")
    shown.align["found"] = shown.align["to drop"] = shown.align["threshold"] = "r"
    for kind, (_, threshold) in KINDS.items():
        value = results["thresholds"].get(threshold)
        limit = "" if value is None else f"{value:.3f}"
        shown.add_row([kind, results[kind]["found"], results[kind]["drop"], limit, sheets.get(kind, "")])
    return shown
