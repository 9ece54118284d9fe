"""wandb and MLflow, offline, with the real packages if they are installed; a tracker that fails does not stop a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from recognition.monitor.hooks import Hooks
from recognition.monitor.trackers import build_trackers
from tests.commands import metrics, train
from utils.config import from_base, load
from utils.errors import UserError


def _track(tmp_path: Path, name: str, **options) -> Hooks:
    """A short run's calls."""
    output = tmp_path / "run"
    output.mkdir(exist_ok=True)
    config = from_base(output=str(output), trackers=("tensorboard", name), tracker_options={name: options} if options else {})
    hooks = Hooks((), True, build_trackers(config))
    hooks("start", config, output)
    hooks("step", 10, {"loss": 3.5})
    hooks("verification", 20, {"lfw": {"accuracy": 0.9, "tar@far=1e-3": 0.5, "threshold@fmr=1e-6": None}})
    hooks("end", 20, {})
    return hooks


def test_wandb_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = _track(tmp_path, "wandb", project="faces")
    same = (tmp_path / "run/wandb.id").read_text()
    _track(tmp_path, "wandb", project="faces")  # as after a restart
    assert (tmp_path / "run/wandb.id").read_text() == same and first._hooks
    assert len(list((tmp_path / "run").rglob(f"*{same}.wandb"))) >= 1
    assert "warning" not in capsys.readouterr().err


def test_mlflow_offline(tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _track(tmp_path, "mlflow", experiment_name="faces")
    assert "warning" not in capsys.readouterr().err
    (found,) = mlflow.search_runs(experiment_names=["faces"], output_format="list")
    assert found.data.metrics == {"loss": 3.5, "verification/lfw/accuracy": 0.9, "verification/lfw/tar_at_far_1e-3": 0.5}
    assert found.data.params["network"] == "r34"


def test_a_run_without_tensorboard(demo_set, tmp_path):
    done = train(
        "tests/tiny_config", f"rec={demo_set}", f"output={tmp_path}/run", "max_steps=2", "trackers=()", "diagnose_every=1"
    )
    assert done.returncode == 0, done.stderr
    assert len(metrics(tmp_path / "run")) == 2 and not (tmp_path / "run/tensorboard").exists()


def test_mistakes_are_named():
    with pytest.raises(UserError, match="trackers: 'wandbb': unknown; known names: tensorboard, wandb, mlflow"):
        build_trackers(from_base(trackers=("wandbb",)))


def test_a_package_that_is_not_installed(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"trackers: 'wandb': needs the package wandb, .*: pip install -r requirements/wandb.txt"):
        build_trackers(from_base(trackers=("wandb",)))


def test_keys_of_arcface_torch(tmp_path):
    keys = {"margin_list": (1.0, 0.5, 0.0), "num_epoch": 1, "using_wandb": True, "wandb_entity": "me", "wandb_project": "faces"}
    (tmp_path / "theirs.py").write_text(f"config = {json.dumps(keys).replace('true', 'True')}")
    config = load(str(tmp_path / "theirs.py"))
    assert config.trackers == ("tensorboard", "wandb")
    assert config.tracker_options == {"wandb": {"entity": "me", "project": "faces"}}
    assert "secret" not in str(dataclasses.asdict(config))
