"""The examples of docs/EXTENDING.md work as they are printed: in a copy of the packages, with a training and an evaluation."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared_files import ROOT

PAGE = (ROOT / "docs/EXTENDING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r'```python title="([^"]+)"\n(.*?)```', PAGE, flags=re.DOTALL))


def test_there_is_an_example_of_each():
    assert set(EXAMPLES) == {"backbones/mine.py", "losses/margins/mine.py", "my_config.py", "eval/commands/mine.py"}


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the code with the examples in their places."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("recognition", "backbones", "losses", "eval", "utils", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "fuzz_seeds"))
    shutil.copy(ROOT / "train.py", copy)
    for name, text in EXAMPLES.items():
        (copy / name).write_text(text)
    return copy


def _run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_train_resume_evaluate_and_export_with_the_examples(extended, demo_set):
    """One run uses the backbone, the margin and the augmentation; the command evaluates it."""
    keys = (f"rec={demo_set}", "val_targets=('demo_hq',)", "output=run", "network=mine", "margin=mine", "batch_size=8")
    small = ("num_workers=1", "precision=fp32", "diagnose_every=0", "num_epoch=2")
    _run(extended, "train.py", "my_config.py", *keys, *small, "max_steps=2")
    assert "resumed from" in _run(extended, "train.py", "my_config.py", *keys, *small, "max_steps=3")
    bins = str(demo_set / "demo_hq.bin")
    out = _run(extended, "-m", "eval", "mine", "--checkpoint", "run", "--bins", bins, "--json", "figures.json")
    figures = json.loads((extended / "figures.json").read_text())["demo_hq"]
    assert -1 <= figures["different"] <= 1 and f"same {figures['same']:.3f}" in out
    _run(extended, "-m", "eval", "export", "--checkpoint", "run", "--out", "encoder.safetensors")
