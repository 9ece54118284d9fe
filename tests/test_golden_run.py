"""A small run whose losses are written down here: whoever changes the arithmetic by accident is told.

fp32, one process, one thread, on the tests' demo set. After a change that is meant, print the new numbers with
`python -m tests.test_golden_run` and say in the commit why they moved.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from recognition.data.demo_faces import make_demo_set
from tests.commands import metrics, train

ARGUMENTS = ("tests/tiny_config", "lr=0.002", "max_steps=4")
NAMES = ("loss_classification", "loss_contrastive", "quality_mean", "norm_mean")
GOLDEN = [
    (40.39626, -0.35697, 5.00375, 5.37470),
    (41.56469, 0.39040, 5.00805, 5.43447),
    (40.50525, 0.00000, 5.01250, 5.45302),
    (41.93793, 0.00000, 5.01716, 5.47811),
]


def _run(rec: Path, output: Path) -> list[tuple[float, ...]]:
    done = train(*ARGUMENTS, f"rec={rec}", f"output={output}", fresh=True)
    assert done.returncode == 0, done.stderr
    return [tuple(line[name] for name in NAMES) for line in metrics(output)]


def test_losses_are_those_of_the_golden_run(demo_set, tmp_path):
    series = _run(demo_set, tmp_path / "run")
    assert len(series) == len(GOLDEN)
    for step, (actual, expected) in enumerate(zip(series, GOLDEN, strict=True)):
        # Convolutions round differently from one processor to another; a changed equation is far outside.
        assert actual == pytest.approx(expected, rel=2e-3, abs=5e-3), f"step {step + 1}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make_demo_set(Path(folder) / "set", identities=13, images_per_identity=8, unseen=6, pairs=20)
        for row in _run(Path(folder) / "set", Path(folder) / "run"):
            print("    (" + ", ".join(f"{value:.5f}" for value in row) + "),")
