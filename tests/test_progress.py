"""The speed and the time left that a run reports."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from recognition.monitor.progress import Progress
from recognition.monitor.verification_time import VerificationTime

LOSSES = ("loss", "loss_classification", "loss_contrastive", "high_quality_share", "low_quality_pair_share", "norm_mean", "lr")
VALUES = dict.fromkeys(LOSSES, 1.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_speed_counts_all_steps_since_the_last_report_and_no_verification(tmp_path: Path, clock, capsys) -> None:
    with Progress(tmp_path, True, total_steps=30, first_step=0) as progress:
        clock[0] += 5.0
        progress.steps(10, 0.9, 96, VALUES)
        clock[0] += 4.0
        with progress.clock_stopped():  # such as between two epochs
            clock[0] += 60.0
        clock[0] += 1.0
        progress.steps(20, 1.8, 96, VALUES)
        with pytest.raises(ZeroDivisionError), progress.clock_stopped():
            clock[0] += 7.0
            raise ZeroDivisionError
        clock[0] += 10.0
        progress.steps(30, 2.7, 96, VALUES)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_per_second"] for line in lines] == pytest.approx([192, 192, 96])
    shown = capsys.readouterr().out.splitlines()
    assert [line[line.index("left") :] for line in shown] == ["left 0:00:10", "left 0:00:05", "left 0:00:00"]


def test_verification_keeps_within_its_share(clock) -> None:
    """A minute of training per epoch; verification takes two: after the first one, only every eighth epoch can afford it."""
    spent = VerificationTime(0.2)
    verified = []
    for epoch in range(1, 41):
        clock[0] += 60.0
        if spent.is_affordable():
            with spent.measured():
                clock[0] += 120.0
            verified.append(epoch)
    assert verified == [1, 16, 24, 32, 40]
    assert spent.left(40, 480.0) == 120.0 + 0.25 * 480.0 and spent.left(1, 480.0) == 120.0 and spent.left(0, 480.0) == 0.0
    always = VerificationTime(1.0)
    with always.measured():
        clock[0] += 120.0
    assert always.is_affordable() and always.left(3, 1.0) == 360.0


def test_the_time_left_counts_verification(tmp_path: Path, clock, capsys) -> None:
    with Progress(tmp_path, True, total_steps=30, first_step=0) as progress:
        clock[0] += 10.0
        progress.steps(10, 0.9, 96, VALUES, lambda training_seconds: 5 * training_seconds)
    assert capsys.readouterr().out.endswith("left 0:02:00\n")
