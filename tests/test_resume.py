"""An output folder is never silently taken over by another experiment: what may change when a run is started again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recognition import __version__
from recognition.checkpoints import resume, store
from recognition.data.dataset import FaceDataset
from recognition.data.fingerprint import difference, fingerprint
from recognition.data.records.reader import RecordReader
from tests.plug import Run
from utils import config
from utils.errors import UserError

LAST = 4
SETTINGS = ("save_every=2", "num_workers=0")
FINISHED = (f"max_steps={LAST}", *SETTINGS)


def test_every_key_is_classified():
    """A new key is refused, reported or free when a run resumes: whoever adds it decides."""
    keys = [field.name for field in dataclasses.fields(config.Config)]
    groups = [resume.REFUSED, resume.REPORTED, resume.FREE]
    missing = [key for key in keys if sum(key in group for group in groups) != 1]
    assert missing == [], f"put these into one group of recognition/checkpoints/resume.py: {missing}"
    assert set.union(*groups) == set(keys)


@pytest.fixture(scope="module")
def finished(demo_set, tmp_path_factory) -> Path:
    """A finished run of one rank, with checkpoints at steps 2 and 4."""
    output = tmp_path_factory.mktemp("finished") / "run"
    Run(demo_set, output, *FINISHED).succeed()
    return output


@pytest.fixture
def done(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture
def half(done) -> Path:
    """The run as a kill after step 2 leaves it."""
    shutil.rmtree(store.folder_of(done, LAST))
    (done / "results.json").unlink()
    return done


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts}


def _refused(output: Path, demo_set: Path, *settings: str, ranks: int = 1) -> str:
    """The error line of a start that is refused and leaves every file as it was."""
    before = _files(output)
    run = Run(demo_set, output, *settings, ranks=ranks)
    assert run.wait() == [2] * ranks, run.text
    before[str(output / ".lock")] = (output / ".lock").read_bytes()
    assert _files(output) == before
    return next(line for line in run.text.splitlines() if line.startswith("error: "))


@pytest.mark.parametrize(
    "change",
    [
        "channel_order: 'RGB' 'BGR'",
        "margin: 'adaface' 'arcface'",
        "scale: 64.0 32.0",
        "queue: 'proxy' 'none'",
        "quality_threshold: 0.2 0.3",
        "augmentation: 'qgface' 'adaface'",
        "dropout: 0.0 0.1",
    ],
)
def test_another_experiment_is_refused(half, change):
    """Data, losses and encoder; compared before any tensor is read."""
    key, _, values = change.partition(": ")
    before, now = values.split()
    folder = store.folder_of(half, 2)
    saved = store.read_config(folder)
    changed = dataclasses.replace(saved, **{key: type(getattr(saved, key))(now.strip("'"))}, lr=0.01)
    with pytest.raises(UserError) as error:
        resume.check_changes(folder, changed, 1, store.read_state(folder)["data"], LAST)
    assert f"{key}={before}, now {key}={now}" in str(error.value) and "lr=0.05, now lr=0.01" in str(error.value)


@pytest.mark.parametrize("start", ["half", "done"])
def test_all_changes_are_named_together(start, demo_set, request):
    output = request.getfixturevalue(start)
    line = _refused(output, demo_set, *FINISHED, "margin=arcface", "channel_order=BGR", "lr=0.01", "num_workers=1")
    for text in (
        "margin='adaface', now margin='arcface'",
        "channel_order='RGB', now channel_order='BGR'",
        "lr=0.05, now lr=0.01",
        "num_workers=0, now num_workers=1",
    ):
        assert text in line
    assert "use the same settings, or another output=" in line


def test_optimiser_and_schedule_are_reported(half, demo_set):
    """The run goes on, and every change is on the console, in metrics.jsonl and in config.json."""
    text = Run(demo_set, half, *FINISHED, "lr=0.01", "weight_decay=0", "shuffle=windowed", "save_every=3").succeed()
    changes = (
        "lr=0.05, now lr=0.01",
        "weight_decay=0.0005, now weight_decay=0.0",
        "shuffle='full', now shuffle='windowed'",
        "save_every=2, now save_every=3",
    )
    lines = [json.loads(line) for line in (half / "metrics.jsonl").read_text().splitlines()]
    for change in changes:
        assert f"changed since step-00000002: {change}" in text
        assert any(line.get("note") == f"changed since step-00000002: {change}" for line in lines)
    assert json.loads((half / "config.json").read_text())["lr"] == 0.01


def test_init_from_may_be_left_out_on_resuming(demo_set, finished, tmp_path):
    """It is read at the start of a run only."""
    output = tmp_path / "tuned"
    Run(demo_set, output, *SETTINGS, f"init_from={finished}", "max_steps=2").succeed()
    text = Run(demo_set, output, *SETTINGS, "max_steps=3").succeed()
    assert f"init_from='{finished}', now init_from=''" in text and "max_steps=2, now max_steps=3" in text


@pytest.mark.parametrize("change", ["lr=0.01", "max_steps=3", "val_targets=['demo_lq']", "keep_best=demo_lq/auc"])
def test_a_finished_run_keeps_its_settings(done, demo_set, change):
    settings = [*FINISHED, change, *(["val_targets=['demo_lq']"] if "keep_best" in change else [])]
    line = _refused(done, demo_set, *settings)
    assert "with nothing left to train, settings may not change" in line and change.partition("=")[0] in line, line


def test_a_finished_run_may_be_started_again_and_extended(done, demo_set):
    """With settings that no figure depends on, config.json stays; with more steps, the changes are reported."""
    before = (done / "config.json").read_bytes()
    text = Run(demo_set, done, *FINISHED[:-1], "num_workers=1").succeed()
    assert "changed since step-00000004: num_workers=0, now num_workers=1" in text
    assert (done / "config.json").read_bytes() == before
    text = Run(demo_set, done, *SETTINGS, "max_steps=5").succeed()
    assert (done / "results.json").exists() and (done / "results.previous.json").exists()
    assert "max_steps=4, now max_steps=5" in text and json.loads((done / "config.json").read_text())["max_steps"] == 5


def test_results_without_a_checkpoint_are_kept(done, demo_set):
    shutil.rmtree(done / "checkpoints")
    assert "holds the results of an earlier run, but no checkpoint" in _refused(done, demo_set, *FINISHED)


def _exchange(source: Path, target: Path, what: str) -> Path:
    """A copy of a data set with the same counts and sizes, in which two images have each other's label, or other bytes."""
    shutil.copytree(source, target)
    reader = RecordReader(source / "train.rec")
    content = bytearray((source / "train.rec").read_bytes())
    first, last = (int(reader.offsets[position]) for position in (1, 104))
    if what == "labels":  # a label follows magic, length and flag
        one, other = slice(first + 12, first + 16), slice(last + 12, last + 16)
        content[one], content[other] = content[other], content[one]
    else:
        content[first + 400] ^= 1
    (target / "train.rec").write_bytes(content)
    return target


@pytest.mark.parametrize("what", ["labels", "the bytes of 64 images"])
@pytest.mark.parametrize("start", ["half", "done"])
def test_other_data_with_the_same_counts_are_refused(start, what, demo_set, tmp_path, request):
    output, other = request.getfixturevalue(start), _exchange(demo_set, tmp_path / "set", what)
    line = _refused(output, other, *FINISHED)
    assert f"rec='{other}' holds other data: " in line and what in line, line


def test_moved_data_go_on(half, demo_set, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(demo_set, moved)
    text = Run(moved, half, *FINISHED).succeed()
    assert "resumed from" in text and f"rec='{demo_set}', now rec='{moved}'" in text


def test_fingerprints(demo_set, tmp_path):
    """They depend on counts, sizes, labels and images, not on paths; what is unknown is not compared."""
    whole = fingerprint(FaceDataset(demo_set))
    assert whole["images"] == 104 and whole["bytes"] == [(demo_set / "train.rec").stat().st_size]
    assert difference(whole, fingerprint(FaceDataset(demo_set / "train.rec"))) == ""
    assert difference({}, whole) == difference(whole, {**whole, "labels": None}) == ""
    other = fingerprint(FaceDataset(_exchange(demo_set, tmp_path / "labels", "labels")))
    assert difference(whole, other) == f"the labels ({whole['labels']}, now {other['labels']})"
    assert "…" in difference(whole, {**whole, "bytes": [10**9] * 50})
    assert "the number of images (104, now 105)" in difference(whole, {**whole, "images": 105})


def test_fingerprints_of_large_sets_are_quick(demo_set):
    dataset = FaceDataset(demo_set)
    dataset.__dict__["_labels"] = np.zeros(10_000_000, np.int64)
    assert len(fingerprint(dataset)["labels"]) == 32


def test_a_checkpoint_without_a_fingerprint_resumes(half):
    """As an earlier version wrote it."""
    folder = store.folder_of(half, 2)
    state = store.read_state(folder)
    del state["data"]
    (folder / store.STATE).write_text(json.dumps(state))
    assert resume.check_changes(folder, store.read_config(folder), 1, {"images": 1}, LAST) == []


def test_a_checkpoint_of_a_newer_version(half):
    """It resumes with a note if everything in it is known; otherwise the error names both versions."""
    folder = store.folder_of(half, 2)
    saved, state = store.read_config(folder), store.read_state(folder)
    assert state["version"] == __version__
    (folder / store.STATE).write_text(json.dumps({**state, "version": "99.1.0"}))
    (note,) = resume.check_changes(folder, saved, 1, state["data"], LAST)
    assert f"version='99.1.0', now '{__version__}'" in note
    newer = rf"\(written by version 99.1.0, this is {__version__}: update this software\)"
    (folder / store.CONFIG).write_text(json.dumps({**dataclasses.asdict(saved), "key_of_the_future": 1}))
    with pytest.raises(UserError, match=f"key_of_the_future.*{newer}"):
        store.read_config(folder)
    (folder / store.STATE).write_text(json.dumps({**state, "version": "99.1.0", "format": 3}))
    with pytest.raises(UserError, match=f"checkpoint format 3, this version reads 2 {newer}"):
        store.read_state(folder)


def test_another_number_of_ranks_needs_the_same_images_per_step(demo_set, tmp_path):
    output = tmp_path / "run"
    per_rank = ("global_batch_size=0", "batch_size=4", "sync_bn=True", *SETTINGS)
    Run(demo_set, output, *per_rank, "max_steps=2", ranks=2).succeed()
    line = _refused(output, demo_set, *per_rank, "max_steps=3", ranks=3)
    assert "this run had 2 rank(s) x batch_size=4 = 8 images per step; now 3 x batch_size=4 = 12" in line
    assert "set global_batch_size=8 on a number of ranks that divides it, or start 2 rank(s) with batch_size=4" in line
    line = _refused(output, demo_set, *per_rank, "max_steps=3")
    assert "now 1 x batch_size=4 = 4: set global_batch_size=8, or start 2 rank(s)" in line
    text = Run(demo_set, output, *per_rank, "global_batch_size=8", "max_steps=3").succeed()
    assert "resumed from" in text and "batch_size=4, now batch_size=8" in text
    starts = json.loads((output / "environment.json").read_text())
    assert [(start["step"], start["ranks"]) for start in starts] == [(0, 2), (2, 1)]


def test_each_start_is_recorded(finished):
    (start,) = json.loads((finished / "environment.json").read_text())
    assert {"time", "command", "version", "commit", "python", "torch", "numpy", "opencv", "hosts", "devices"} <= start.keys()
    assert start["command"].startswith("train.py ") and start["time"].endswith("+00:00")
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert lines and all(start["time"] <= line["time"] for line in lines)


@pytest.mark.parametrize("output", ["s3://bucket/run", "gs://bucket", "file:///tmp/run"])
def test_addresses_are_refused_as_output(output):
    with pytest.raises(UserError, match=f"output='{output}': is an address"):
        config.load("tests/tiny_config", [f"output={output}"])
