"""What fine-tuning on degraded images gains on such images, and what it costs on sharp ones: docs/EXPERIMENTS.md.

    python -m scripts.fine_tuning ../shared/faces runs/fine_tuning --seeds 1 2 3 --json docs/experiments/fine_tuning.json

For each seed, an encoder is trained on the first 330 people of lfw_train, then adapted in several ways to degraded images of the
other 100. Runs that have ended are not repeated. About two minutes for an encoder and one for each adaptation on a CPU core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from prettytable import PrettyTable

from eval.present.tables import read_results
from recognition.encoders.thresholds import EMA_SUFFIX
from utils.files import write_file

SETS = ("lfw_hq", "lfw_mixed", "lfw_lq")
PRETRAINED = "pretrained"
COMMON = ("verbose=100000", "diagnose_every=0", "trackers=()", "num_workers=0")
ADAPT = ("head_from=means", "num_epoch=5", "warmup_epoch=0", "global_batch_size=48", "ema=0.97")
WAYS = {  # row of the table -> settings
    "full": ("lr=0.02",),
    "lora": ("lr=0.05", "lora_rank=8"),
    "distilled": ("lr=0.02", "teacher={pretrained}", "distillation_weight=20"),
}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="folder with lfw_train/ and val/")
    parser.add_argument("out", type=Path, help="folder for sets and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path, help="write accuracy and AUC of every run, in %%")
    arguments = parser.parse_args(given)
    faces, out = arguments.faces, arguments.out
    make_sets(faces, out)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for seed in arguments.seeds:
        settings = (f"val_dir={faces / 'val'}", f"seed={seed}", *COMMON)
        pretrained = out / f"{PRETRAINED}_seed{seed}"
        train(pretrained, f"rec={out / 'pretraining'}", "num_epoch=10", "warmup_epoch=1", *settings)
        figures[pretrained.name] = read_figures(pretrained)
        for way, more in WAYS.items():
            run = out / f"{way}_seed{seed}"
            own = [text.format(pretrained=pretrained) for text in more]
            train(run, f"rec={out / 'adaptation'}", f"init_from={pretrained}", *ADAPT, *own, *settings)
            figures[run.name] = read_figures(run)
    if arguments.json:
        write_file(arguments.json, json.dumps(figures, indent=1) + "\n")
    print(table(figures))


def make_sets(faces: Path, out: Path) -> None:
    """pretraining/: 330 people. adaptation/: the other 100, all images degraded."""
    out.mkdir(parents=True, exist_ok=True)
    for name, labels in (("pretraining", range(330)), ("sharp", range(330, 430))):
        if not (out / name).exists():
            (out / f"{name}.txt").write_text("\n".join(map(str, labels)))
            call("-m", "recognition.data.pack", "subset", faces / "lfw_train", out / name, "--identities", out / f"{name}.txt")
    if not (out / "adaptation").exists():
        call("-m", "recognition.data.pack", "degrade", out / "sharp", out / "adaptation", "--share", "1")


def train(run: Path, *settings: str) -> None:
    if not (run / "results.json").exists():
        call("train.py", "configs/lfw_baseline", f"output={run}", *settings)


def call(*command: str | Path) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True)


def read_figures(run: Path) -> dict[str, dict[str, float]]:
    """Set -> accuracy and AUC, in %."""
    results = read_results(run / "results.json")
    return {name: {key: round(100 * found[key], 2) for key in ("accuracy", "auc")} for name, found in results.items()}


def table(figures: dict[str, dict[str, dict[str, float]]]) -> PrettyTable:
    """AUC of each way, mean over the seeds, with and without the EMA."""
    shown = PrettyTable(["way", *SETS], align="l")
    for way in (PRETRAINED, *WAYS):
        runs = [found for name, found in figures.items() if name.startswith(f"{way}_seed")]
        for label, suffix in ((way, ""), (f"{way}, EMA", EMA_SUFFIX)):
            if runs and SETS[0] + suffix in runs[0]:
                cells = [[found[name + suffix]["auc"] for found in runs] for name in SETS]
                shown.add_row([label, *(f"{mean(each):.2f} ({', '.join(map(str, each))})" for each in cells)])
    return shown


if __name__ == "__main__":
    main()
