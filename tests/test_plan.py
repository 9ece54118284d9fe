"""`train.py --plan`: what a run needs is known before it starts, also without data; and it agrees with what a run has."""

from __future__ import annotations

import json

import pytest
import torch

import train
from benchmarks.plan import allocated
from recognition import build
from recognition.checkpoints.state import capture
from recognition.planning import plan
from recognition.planning.memory import FakeRank
from recognition.planning.probe import real_steps
from tests.arcface_torch import arcface_torch_file
from tests.shared_files import ROOT
from tests.test_dialect import R50
from utils import config, dist
from utils.errors import UserError

TINY = "tests/tiny_config.py"
VGG2 = "configs/vgg2_r34_qg"
SYNTHETIC = ("rec=synthetic", "num_classes=50", "num_image=104", "queue_size=12", "num_workers=0")


@pytest.fixture(autouse=True)
def after():
    yield
    dist.stop()


def planned(monkeypatch, capsys, *arguments: str) -> str:
    """What the command prints."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py", "--plan", *arguments])
    train.main()
    return capsys.readouterr().out


def test_the_papers_run_is_planned_without_data(monkeypatch, capsys, tmp_path):
    out = planned(monkeypatch, capsys, VGG2, "--ranks", "4", "num_image=3100000", "--json", str(tmp_path / "plan.json"))
    for part in (
        "r34, ",
        "4 rank(s) x 128 images, 2 view(s)",
        "6,054 per epoch, 72,648 in all",
        "34.14 M",
        "80 GB",
        "not measured",
    ):
        assert part in out, out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["parameters"] == {"encoder": 34139328, "classifier": 8631 * 512, "classifier, per rank": 2158 * 512}
    assert figures["flops_per_image"] == pytest.approx(2 * 2 * 3 * 4.46e9, rel=0.01)
    assert figures["memory"]["queue"] == pytest.approx(1.1 * (8 * 512 + 8) * 8631 / 4, rel=0.05)  # docs/SCALING.md
    assert 0 < figures["largest_batch"]["24 GB"] < figures["largest_batch"]["80 GB"]
    assert figures["hours"] is None


def test_files_of_arcface_torch_are_planned(monkeypatch, capsys, tmp_path):
    values = {**R50, "network": "tiny", "rec": str(tmp_path / "absent"), "batch_size": 64}
    out = planned(monkeypatch, capsys, arcface_torch_file(tmp_path / "theirs.py", values), "--ranks=8")
    assert "10,116 per epoch, 202,320 in all" in out  # 5179510 images, as the file states


def test_the_time_is_measured_with_data(monkeypatch, capsys, tmp_path):
    out = planned(monkeypatch, capsys, TINY, *SYNTHETIC, f"--json={tmp_path / 'plan.json'}")
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert "minutes of training at" in out and "saving included" in out
    assert figures["total_steps"] == 2 * (104 // 12) and figures["host"] > 100e6
    assert figures["hours"] == pytest.approx(figures["seconds_per_step"] * figures["total_steps"] / 3600)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VGG2, "--ranks=3"), "global_batch_size=512 cannot be divided by 3 ranks"),
        ((VGG2, "--ranks=1024"), "global_batch_size=512 cannot be divided by 1024 ranks"),
        ((VGG2, "--ranks=0"), "--ranks 0: must be at least 1"),
        ((VGG2, "--ranks=four"), "--ranks: invalid int value: 'four'"),
        ((VGG2, "--ranks=4", "num_classes=3"), "--ranks 4: there are only 3 classes to divide among the ranks"),
        ((VGG2, "num_image=500"), "500 images are fewer than one batch of 512 x 1 ranks"),
        ((VGG2, "num_classes=0"), "num_classes is 0 and there are no data at rec='/data/faces_vgg_112x112'; set num_classes"),
        ((VGG2, "--show"), "not allowed with argument"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, monkeypatch, capsys):
    with pytest.raises(UserError) as caught:
        planned(monkeypatch, capsys, *arguments)
    assert len(caught.value.args) == 1 and message in str(caught.value)


def test_options_of_a_plan_need_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", VGG2, "--ranks", "2"])
    with pytest.raises(UserError, match="--ranks and --json need --plan"):
        train.main()


@pytest.mark.parametrize(
    "settings",
    [
        ("batch_size=32", "num_classes=20000"),
        ("batch_size=32", "num_classes=20000", "sample_rate=0.2", "optimizer=adamw", "queue=momentum", "gradient_acc=2"),
        ("batch_size=32", "num_classes=20000", "ema=0.9", "lora_rank=4", "init_from=x"),
    ],
    ids=["plain", "sampled", "LoRA and EMA"],
)
def test_memory_and_checkpoint_are_those_of_a_step(settings, tmp_path):
    world = dist.start()
    loaded = config.load(str(ROOT / TINY), [*SYNTHETIC, "num_image=256", "global_batch_size=0", "queue_size=64", *settings])
    resolved = build.resolve_config(loaded, dataset := build.open_dataset(loaded), 1)
    figures = plan.make_plan(resolved, world, 1)
    states = []

    def two_steps():
        with real_steps(resolved, dataset, world) as (step, batches):
            for _ in range(2):
                step([next(batches) for _ in range(resolved.gradient_acc)])
            states.append(step.state)

    assert figures.peak == pytest.approx(allocated(two_steps), rel=0.10)
    saved = capture(states[0]).tensors.values()
    rows = [value if isinstance(value, torch.Tensor) else value.rows for value in saved]
    assert figures.checkpoint == pytest.approx(sum(row.numel() * row.element_size() for row in rows), rel=0.01)


def test_memory_grows_with_the_batch_and_shrinks_with_the_ranks():
    world = dist.start()
    loaded = config.load(str(ROOT / TINY), ["num_classes=100000", "global_batch_size=0", "batch_size=16"])
    resolved = build.resolve_config(loaded, None, 1)
    one, four = (FakeRank(resolved, world, ranks) for ranks in (1, 4))
    assert four.static["classifier: weights"] * 4 == one.static["classifier: weights"]
    assert one.activations(32)[0] == pytest.approx(2 * one.activations(16)[0], rel=0.01)
    largest = one.largest_batch(1e9)
    assert one.peak(largest) <= 1e9 < one.peak(largest + 1)
    assert one.largest_batch(1e6) == 0
