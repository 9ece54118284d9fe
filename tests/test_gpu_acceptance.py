"""`./run.sh gpu`, as far as a machine without a GPU can try it."""

from __future__ import annotations

import json
import sys

from tests.commands import run

COMMAND = (sys.executable, "-m", "benchmarks.gpu")


def test_without_a_gpu_one_line_says_so(tmp_path):
    done = run(*COMMAND, "--out", str(tmp_path / "gpu"))
    assert done.returncode == 2 and not (tmp_path / "gpu").exists()
    assert done.stderr.startswith("error: torch ") and "finds no GPU" in done.stderr and done.stderr.count("\n") == 1


def test_a_rehearsal_writes_the_whole_page(tmp_path):
    done = run(*COMMAND, "--rehearse", "--out", str(tmp_path / "gpu"))
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "gpu" / "REPORT.md").read_text()
    assert page in done.stdout and "FAILED" not in page
    report = json.loads((tmp_path / "gpu" / "report.json").read_text())
    names = [check["name"] for check in report["checks"]]
    assert names == ["loader", "tests on the GPU", "training in fp32, 2 rank(s)", "kill -9 and resume", "training steps"]
    assert set(report["steps"]["tiny"]) >= {"images/s", "MFU of the step %", "loader %", "encoder %", "GPU GB"}
    again = run(*COMMAND, "--rehearse", "--out", str(tmp_path / "gpu"))
    assert again.returncode == 2 and "is not empty" in again.stderr
