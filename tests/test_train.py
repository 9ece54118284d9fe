"""train.py end to end: real processes, real RecordIO faces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import backbones
from recognition.momentum_encoder import MomentumEncoder
from tests.commands import metrics, train
from tests.plug import Run

CONFIG = "tests/tiny_config"
SMALL_LR = "lr=0.002"  # large steps would amplify rounding, which depends on the number of ranks
LOSSES = ("loss", "loss_classification", "loss_contrastive", "high_quality_share", "low_quality_pair_share", "gradient_norm")


def _series(output: Path) -> list[list[float]]:
    return [[line[name] for name in LOSSES] for line in metrics(output)]


def _train(demo_set: Path, output: Path, *arguments: str, ranks: int = 0, fresh: bool = False) -> str:
    done = train(CONFIG, f"rec={demo_set}", f"output={output}", *arguments, ranks=ranks, fresh=fresh)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _assert_same_training(actual: list[float], expected: list[float], when: str) -> None:
    """Equal except for rounding: shares of features exactly, losses to 1 % of the loss, gradient norm to 2 %."""
    assert actual[3:5] == expected[3:5], when
    tolerance = 0.01 * abs(expected[0])
    assert actual[:3] == pytest.approx(expected[:3], abs=tolerance), when
    assert actual[5] == pytest.approx(expected[5], rel=0.02), when


def _tensors(checkpoint: Path) -> dict[tuple[str, str], torch.Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    return {(file.name, name): value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("configs/demo_qg", "--help")])
def test_help(arguments):
    done = train(*arguments)
    assert done.returncode == 0 and not done.stderr
    assert "usage: train.py [--show | --plan" in done.stdout and "configs/base.py" in done.stdout


def test_no_arguments_are_a_usage_error():
    done = train()
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: usage: train.py CONFIG") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def one_process(demo_set, tmp_path_factory) -> tuple[Path, str]:
    """Output folder and console output of a complete run of one process with synchronised BatchNorm."""
    output = tmp_path_factory.mktemp("one") / "run"
    printed = _train(demo_set, output, "sync_bn=True", SMALL_LR, "max_steps=10", "val_targets=['demo_hq', 'demo_lq']")
    return output, printed


def test_a_run_leaves_table_results_curves_and_checkpoint(one_process):
    output, printed = one_process
    assert "demo_hq" in printed and "accuracy" in printed
    results = json.loads((output / "results.json").read_text())
    assert set(results) == {"demo_hq", "demo_lq"} and 0 <= results["demo_hq"]["accuracy"] <= 1
    assert [line["step"] for line in metrics(output)] == list(range(1, 11))
    assert {"images_per_second", "lr", "norm_mean"} <= set(metrics(output)[0])
    assert (output / "plots" / "roc.png").stat().st_size > 1000
    assert (output / "checkpoints" / "step-00000010" / "state.json").is_file()
    assert list((output / "tensorboard").glob("events*"))
    config = json.loads((output / "config.json").read_text())
    assert config["num_classes"] == 13 and config["num_image"] == 104 and config["batch_size"] == 12


def test_both_losses_take_part(one_process):
    """Otherwise the tests of invariance would compare zeros."""
    lines = metrics(one_process[0])
    assert any(line["loss_contrastive"] != 0 for line in lines)
    assert any(0 < line["high_quality_share"] < 1 for line in lines)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_number_of_ranks_trains_the_same(one_process, demo_set, tmp_path, ranks):
    arguments = ("sync_bn=True", SMALL_LR, "max_steps=6", f"num_workers={ranks % 3}")
    _train(demo_set, tmp_path / "run", *arguments, ranks=ranks, fresh=ranks == 2)
    alone, together = _series(one_process[0])[:6], _series(tmp_path / "run")
    assert len(together) == 6
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for step, (expected, actual) in enumerate(zip(alone, together, strict=True)):
        _assert_same_training(actual, expected, f"step {step + 1} at {ranks} ranks")


@pytest.mark.parametrize(("ranks", "queue", "mixed"), [(1, "proxy", False), (2, "proxy", True), (2, "momentum", True)])
def test_resumed_run_is_bit_identical(demo_set, unlabelled, tmp_path, ranks, queue, mixed):
    """2N steps = N steps, stop in the middle of an epoch, N steps; with everything that has state, and with unlabelled images."""
    arguments = ("save_every=5", "val_targets=['demo_lq']", "verbose=4", f"queue={queue}", "queue_momentum=0.9")
    arguments += (f"unlabelled={unlabelled}", "colour_transfer=0.5") if mixed else ()
    _train(demo_set, tmp_path / "whole", "max_steps=10", *arguments, ranks=ranks)
    _train(demo_set, tmp_path / "parts", "max_steps=5", *arguments, ranks=ranks)
    printed = _train(demo_set, tmp_path / "parts", "max_steps=10", *arguments, ranks=ranks)
    assert "resumed from" in printed
    assert _series(tmp_path / "parts") == _series(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts")]
    assert results[0] == results[1]
    whole, parts = (_tensors(tmp_path / name / "checkpoints" / "step-00000010") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert {"queue.feature", "quality.mean", "optimiser.classifier.weight.momentum_buffer"} <= {key[1] for key in whole}
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    assert any(name.startswith("momentum_encoder.") for _, name in whole) == (queue == "momentum")


def test_momentum_encoder_follows_slowly():
    """theta_m <- m theta_m + (1 - m) theta, three times, from the encoder's initial weights."""
    encoder = backbones.build("tiny", embedding_size=16)
    momentum = MomentumEncoder(encoder, 0.75)
    expected = [parameter.detach().clone() for parameter in encoder.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter))
        momentum.follow(encoder, torch.tensor(True))
        expected = [0.75 * slow + 0.25 * fast.detach() for slow, fast in zip(expected, encoder.parameters(), strict=True)]
    for actual, wanted in zip(momentum.copy.parameters(), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
        assert not actual.requires_grad
    momentum.follow(backbones.build("tiny", embedding_size=16), torch.tensor(False))  # after a step that was skipped
    torch.testing.assert_close(list(momentum.copy.parameters()), expected)
    before = momentum.copy.bn1.running_mean.clone() if hasattr(momentum.copy, "bn1") else None
    features = momentum(torch.rand(4, 3, 112, 112))
    assert not features.requires_grad and features.shape == (4, 16)
    assert before is None or not torch.equal(before, momentum.copy.bn1.running_mean)


def test_momentum_queue_trains_the_same_on_any_number_of_ranks(demo_set, tmp_path):
    arguments = ("sync_bn=True", SMALL_LR, "max_steps=4", "queue=momentum", "queue_momentum=0.5")
    for ranks in (1, 3):
        _train(demo_set, tmp_path / str(ranks), *arguments, ranks=ranks)
    alone, together = _series(tmp_path / "1"), _series(tmp_path / "3")
    assert any(line[2] != 0 for line in alone)
    for step, (expected, actual) in enumerate(zip(alone, together, strict=True)):
        _assert_same_training(actual, expected, f"step {step + 1}")


def test_partition_warm_up(demo_set, tmp_path):
    """In the first epoch everything is classified and nothing contrasted; then the partition applies."""
    _train(demo_set, tmp_path / "run", "max_steps=12", "partition_warmup_epoch=1")
    shares = [(line["high_quality_share"], line["low_quality_pair_share"]) for line in metrics(tmp_path / "run")]
    steps = 104 // 12
    assert shares[:steps] == [(1.0, 0.0)] * steps
    assert any(high < 1 and low > 0 for high, low in shares[steps:])


def test_a_run_in_which_nothing_is_contrasted_says_so(one_process, demo_set, tmp_path):
    printed = _train(demo_set, tmp_path / "run", "max_steps=2", "partition_warmup_epoch=1")
    assert "warning: nothing was contrasted in 2 steps" in printed and f"{demo_set}: train.rec\n" in printed
    assert "nothing was contrasted" not in one_process[1]


FIRST_BATCH_ONLY = """
import itertools
from losses.quality import Partition
selected, call = Partition.low_quality_pairs, itertools.count()
Partition.low_quality_pairs = lambda self, quality: selected(self, quality) | True if next(call) % 2 == 0 else quality[0] < -9
"""


def test_every_batch_of_a_step_counts_as_contrasted(demo_set, tmp_path):
    run = Run(demo_set, tmp_path / "run", "max_steps=2", "gradient_acc=2", "diagnose_every=0", before=FIRST_BATCH_ONLY)
    assert "nothing was contrasted" not in run.succeed()
    assert [line["low_quality_pair_share"] for line in metrics(tmp_path / "run")] == [0, 0]


def test_resume_at_another_number_of_ranks(one_process, demo_set, tmp_path):
    """Saved by one process, resumed by three: the classifier, its momentum and the queue are divided anew, unevenly."""
    shutil.copytree(one_process[0], tmp_path / "run")
    _train(demo_set, tmp_path / "run", "sync_bn=True", SMALL_LR, "max_steps=13", ranks=3)
    _train(demo_set, tmp_path / "alone", "sync_bn=True", SMALL_LR, "max_steps=13")
    expected, actual = _series(tmp_path / "alone")[10:], _series(tmp_path / "run")[10:]
    assert len(actual) == 3
    for step, (one, three) in enumerate(zip(expected, actual, strict=True)):
        _assert_same_training(three, one, f"step {step + 11}")


def test_accumulated_gradients_are_averaged(demo_set, tmp_path):
    """A step of two batches of 12 has the gradient scale of one batch of 24, not twice that."""
    _train(demo_set, tmp_path / "sum", "gradient_acc=2", "max_steps=2", "queue=none", "max_grad_norm=0")
    _train(demo_set, tmp_path / "one", "global_batch_size=24", "max_steps=2", "queue=none", "max_grad_norm=0")
    accumulated, single = metrics(tmp_path / "sum")[0], metrics(tmp_path / "one")[0]
    assert accumulated["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=0.35)


def test_changed_setting_is_refused_on_resume(one_process, demo_set, tmp_path):
    shutil.copytree(one_process[0], tmp_path / "run")
    done = train(CONFIG, f"rec={demo_set}", f"output={tmp_path / 'run'}", "max_steps=13", "embedding_size=64")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and "embedding_size=32" in done.stderr and "embedding_size=64" in done.stderr


def test_bfloat16_runs(demo_set, tmp_path):
    _train(demo_set, tmp_path / "run", "precision=bf16", "max_steps=2", "channels_last=False")
    assert len(metrics(tmp_path / "run")) == 2
