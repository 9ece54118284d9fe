"""`python -m eval runs`: the table of finished runs."""

from __future__ import annotations

import json
import sys

from tests.commands import run


def _command(*folders):
    return run(sys.executable, "-m", "eval", "runs", *map(str, folders))


def _finished(folder, **accuracies):
    folder.mkdir()
    results = {name: {"accuracy": value, "auc": value / 2, "pairs": 60} for name, value in accuracies.items()}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_one_row_per_run_and_their_difference(tmp_path):
    plain, guided = _finished(tmp_path / "plain", hq=0.9, lq=0.625), _finished(tmp_path / "guided", hq=0.875, lq=0.75, more=0.5)
    done = _command(plain, guided)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines}
    assert rows["accuracy (AUC), %"] == ["hq", "lq", "more"]
    assert rows["plain"] == ["90.00 (45.00)", "62.50 (31.25)", "–"]
    assert rows["guided"] == ["87.50 (43.75)", "75.00 (37.50)", "50.00 (25.00)"]
    assert rows["guided - plain"] == ["-2.50 (-1.25)", "+12.50 (+6.25)", "–"]


def test_an_unfinished_run_is_an_error(tmp_path):
    done = _command(_finished(tmp_path / "plain", hq=0.9), tmp_path / "gone")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "gone/results.json: cannot be read" in done.stderr and "give the output folder of a finished run" in done.stderr
    (tmp_path / "plain" / "results.json").write_text("{}")
    assert "has no verification results" in _command(tmp_path / "plain").stderr
