"""Damaged checkpoints are found, reported and skipped; failed saves leave the earlier checkpoints intact."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path

import pytest

from recognition.checkpoints import manifest, store
from recognition.checkpoints.saver import Saver
from recognition.monitor.progress import verification_history
from tests.plug import Run, assert_same_run
from utils.config import from_base
from utils.errors import UserError

STEPS = 9
SETTINGS = (f"max_steps={STEPS}", "save_every=3", "num_workers=0")


@pytest.fixture(scope="module")
def sound(demo_set, tmp_path_factory) -> Path:
    """A run of two ranks with checkpoints at steps 3, 6 and 9."""
    output = tmp_path_factory.mktemp("sound") / "run"
    Run(demo_set, output, *SETTINGS, ranks=2).succeed()
    return output


@pytest.fixture
def copy(sound, tmp_path) -> Path:
    shutil.copytree(sound, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def _newest(output: Path) -> Path:
    return output / "checkpoints" / f"step-{STEPS:08d}"


def _flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("shard-00002*"))[0]


DAMAGE = {
    "a flipped bit in the header": lambda folder: _flip(_shard(folder), 0.0001),
    "a flipped bit in the middle": lambda folder: _flip(_shard(folder), 0.5),
    "a flipped bit in the last byte": lambda folder: _flip(_shard(folder), 1.0),
    "a flipped bit in state.json": lambda folder: _flip(folder / "state.json", 0.4),
    "a flipped bit in config.json": lambda folder: _flip(folder / "config.json", 0.4),
    "a flipped bit in the manifest": lambda folder: _flip(folder / "manifest.json", 0.7),
    "a truncated file": lambda folder: _shard(folder).write_bytes(_shard(folder).read_bytes()[:-1000]),
    "an empty file": lambda folder: _shard(folder).write_bytes(b""),
    "a longer file": lambda folder: _shard(folder).write_bytes(_shard(folder).read_bytes() + b"\0"),
    "a missing file": lambda folder: _shard(folder).unlink(),
    "a file of another checkpoint": lambda folder: shutil.copy(_shard(folder), folder / "shard-00003.safetensors"),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "a manifest that names a file outside": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "files": {"../../config.json": {"bytes": 1, "blake2b": "0"}}})
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_skipped(copy, kind):
    assert manifest.damage(_newest(copy)) == ""
    DAMAGE[kind](_newest(copy))
    said: list[str] = []
    assert store.newest(copy, said.append) == copy / "checkpoints" / "step-00000006"
    assert len(said) == 1 and "step-00000009 is damaged" in said[0]
    with pytest.raises(UserError, match="damaged"):
        store.find(_newest(copy))


def test_every_bit_of_the_manifest_counts(copy):
    """Whichever byte is damaged, the checkpoint is refused, or the manifest still means the same."""
    folder = _newest(copy)
    good = (folder / "manifest.json").read_bytes()
    expected = json.loads(good)
    for position in range(0, len(good), 3):
        content = bytearray(good)
        content[position] ^= 0x04
        (folder / "manifest.json").write_bytes(content)
        if manifest.damage(folder) == "":
            assert json.loads(content) == expected, position


def test_a_folder_without_a_manifest_is_ignored(copy):
    (_newest(copy) / "manifest.json").unlink()
    said: list[str] = []
    assert store.newest(copy, said.append) == copy / "checkpoints" / "step-00000006"
    assert said == []


def test_ranks_share_the_checking(copy):
    _flip(_shard(_newest(copy)), 0.5)
    found = [manifest.damage(_newest(copy), part, 3) for part in range(3)]
    assert sum(bool(text) for text in found) == 1


def test_a_run_does_not_start_over_damaged_checkpoints(copy, demo_set):
    """If every checkpoint is damaged, the run stops."""
    for folder in (copy / "checkpoints").glob("step-*"):
        _flip(_shard(folder), 0.5)
    with pytest.raises(UserError, match="all 3 checkpoints are damaged"):
        store.newest(copy, lambda text: None)
    run = Run(demo_set, copy, *SETTINGS)
    assert run.wait() == [2] and "all 3 checkpoints are damaged" in run.text


def test_a_run_resumes_from_the_checkpoint_before(copy, sound, demo_set):
    _flip(_shard(_newest(copy)), 0.5)
    text = Run(demo_set, copy, *SETTINGS, "keep_last=1", ranks=2).succeed()
    assert "step-00000009 is damaged" in text and "the checksum of shard-00002" in text
    assert f"resumed from {copy}/checkpoints/step-00000006" in text
    assert (copy / "checkpoints" / "damaged-step-00000009").is_dir()
    assert store.complete_checkpoints(copy) == [_newest(copy)]
    assert_same_run(copy, sound, STEPS)


def test_killed_while_saving(demo_set, sound, tmp_path):
    """A half-written checkpoint is ignored, and removed by the next save."""
    output = tmp_path / "run"
    run = Run(demo_set, output, *SETTINGS, ranks=2)
    run.wait_for_file("checkpoints/.partial-step-00000006*/shard*")
    run.signal(signal.SIGKILL, 1)
    run.wait(60)
    text = Run(demo_set, output, *SETTINGS, ranks=2).succeed()
    assert "resumed from" in text and not list((output / "checkpoints").glob(".partial*"))
    assert_same_run(output, sound, STEPS)


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)) if rank == 1 else None"


@pytest.mark.parametrize("mode", ["async_save=False", "async_save=True"])
def test_a_full_disk_leaves_the_earlier_checkpoints(copy, demo_set, mode):
    """One rank cannot write files of more than 1 MiB: all ranks stop with one line."""
    shutil.rmtree(_newest(copy))
    run = Run(demo_set, copy, *SETTINGS, mode, ranks=2, before=FULL_DISK)
    assert run.wait() == [2, 2], run.text[-3000:]
    complaints = {line for line in run.text.splitlines() if line.startswith("error: ")}
    assert len(complaints) == 1 and "step-00000009: cannot be written" in complaints.pop()
    assert "the checkpoint before it is intact" in run.text
    assert store.newest(copy) == copy / "checkpoints" / "step-00000006"
    assert not list((copy / "checkpoints").glob(".partial*"))


def test_which_checkpoints_are_kept(demo_set, tmp_path):
    """The last one (saved by time), and the best one by metric, with a link to it."""
    output = tmp_path / "run"
    settings = ("max_steps=8", "save_minutes=1e-6", "keep_last=1", "val_targets=['demo_lq']", "verbose=2", "num_workers=0")
    Run(demo_set, output, *settings, "keep_best=demo_lq/accuracy").succeed()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    name = "verification/demo_lq/accuracy"
    accuracies = {line["step"]: line[name] for line in lines if name in line}
    best = min(accuracies, key=lambda step: (-accuracies[step], step))
    assert (output / "checkpoints" / "best").resolve().name == f"step-{best:08d}"
    kept = {folder.name for folder in store.complete_checkpoints(output)}
    assert kept == {f"step-{best:08d}", "step-00000008"}
    assert manifest.damage(output / "checkpoints" / "best") == ""


FAILING = "import recognition.trainer\nrecognition.trainer.verify_bins = lambda *arguments: fail()\n"
FAILS = {
    "bad set": "from utils.errors import UserError\ndef fail(): raise UserError('the set is gone')\n",
    "kill": "import os\ndef fail(): os.kill(os.getpid(), 9)\n",
}


@pytest.mark.parametrize("fault", FAILS)
def test_a_verification_that_fails_costs_no_checkpoint(demo_set, tmp_path, fault):
    """The run resumes after the step, makes up for the verification, and keeps the same best checkpoint."""
    settings = (
        "max_steps=4",
        "save_every=2",
        "verbose=2",
        "num_workers=0",
        "val_targets=['demo_lq.bin']",
        "keep_best=demo_lq/auc",
    )
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "run"
    Run(demo_set, undisturbed, *settings).succeed()
    failed = Run(demo_set, output, *settings, before=FAILS[fault] + FAILING)
    assert failed.wait() != [0]
    assert [folder.name for folder in store.complete_checkpoints(output)] == ["step-00000002"]
    Run(demo_set, output, *settings).succeed()
    found = [verification_history(folder) for folder in (undisturbed, output)]
    assert set(found[0]) == {2, 4} and found[0] == found[1]
    assert (output / "checkpoints/best").resolve().name == (undisturbed / "checkpoints/best").resolve().name


def test_nan_is_never_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr("recognition.checkpoints.saver.CheckpointWriter", lambda *_: None)
    sets = {"lfw": ["accuracy"]}
    saver = Saver(tmp_path, from_base(keep_best="lfw/accuracy"), sets, 10, dict)
    outcomes = [
        saver._is_better(step, {"lfw": {"accuracy": value}}) for step, value in enumerate((math.nan, 0.5, math.nan, 0.4, 0.6))
    ]
    assert outcomes == [False, True, False, False, True] and saver.best_step == 4
    with pytest.raises(UserError, match="lfw has no such metric; it has accuracy"):
        Saver(tmp_path, from_base(keep_best="lfw/acuracy"), sets, 10, dict)


def test_unknown_metrics_are_refused(demo_set, tmp_path):
    for setting, complaint in (("keep_best=lfw/accuracy", "val_targets"), ("keep_best=accuracy", "a set and its metric")):
        run = Run(demo_set, tmp_path / "run", setting)
        assert run.wait() == [2] and complaint in run.text


def test_a_used_output_is_not_mixed_with_a_new_run(copy, demo_set):
    before = (copy / "metrics.jsonl").read_bytes()
    run = Run(demo_set, copy, *SETTINGS, "resume=False")
    assert run.wait() == [2] and "step-00000009 of an earlier run" in run.text
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("num_classes=20", ("num_classes=13", "num_classes=20")),
        ("global_batch_size=24", ("batch_size=12", "batch_size=24")),
        ("network=mbf", ("network='tiny'", "network='mbf'")),
    ],
)
def test_changed_settings_that_the_state_depends_on_are_refused(copy, demo_set, setting, named):
    config = (copy / "config.json").read_bytes()
    run = Run(demo_set, copy, *SETTINGS, setting)
    assert run.wait() == [2] and all(text in run.text for text in named), run.text
    assert "init_from=" in run.text
    assert (copy / "config.json").read_bytes() == config


def test_fine_tuning_from_a_run(sound, demo_set, tmp_path):
    """With other classes, the encoder is loaded, the head is new, and the log says so."""
    output = tmp_path / "run"
    settings = ("max_steps=1", "lr=1e-30", "weight_decay=0", "num_classes=20", "num_workers=0")
    text = Run(demo_set, output, *settings, f"init_from={sound}").succeed()
    assert "trained on 13 classes" in text and "the classifier of 20 classes" in text and "new" in text
    old = store.read_tensors(_newest(sound), "encoder.")
    new = store.read_tensors(output / "checkpoints" / "step-00000001", "encoder.")
    weights = [name for name in old if name.endswith("weight")]
    assert weights and all(old[name].equal(new[name]) for name in weights)
    assert store.read_tensors(output / "checkpoints" / "step-00000001", "classifier.")["weight"].shape[0] == 20
    run = Run(demo_set, tmp_path / "other", "max_steps=1", "embedding_size=64", f"init_from={sound}")
    assert run.wait() == [2] and "embedding_size=32" in run.text and "embedding_size=64" in run.text
