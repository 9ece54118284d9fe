"""arcface_torch's configuration files, unchanged: what their keys become, what is refused, and that they train the same."""

from __future__ import annotations

import json
import re

import pytest

from configs.base import config as base
from recognition import build
from tests.arcface_torch import arcface_torch_file
from tests.commands import metrics, train
from tests.shared_files import FACES, GOLDEN, ROOT, needs_faces, needs_golden
from utils import config, dialect
from utils.errors import UserError

R50 = {
    "margin_list": (1.0, 0.5, 0.0),
    "network": "r50",
    "resume": False,
    "output": None,
    "embedding_size": 512,
    "sample_rate": 1.0,
    "fp16": True,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "lr": 0.1,
    "verbose": 2000,
    "dali": False,
    "rec": "/train_tmp/ms1m-retinaface-t1",
    "num_classes": 93431,
    "num_image": 5179510,
    "num_epoch": 20,
    "warmup_epoch": 0,
    "val_targets": ["lfw", "cfp_fp", "agedb_30"],
}
CODE = {
    "views": 1,
    "augmentation": "none",
    "queue": "none",
    "quality_threshold": None,
    "accumulation": "sum",
    "clip": "encoder",
    "max_grad_norm": 5.0,
    "decay_norms": True,
    "schedule": "polynomial",
    "polynomial_power": 1.0,
    "filtered_negatives": "zeroed",
    "unsampled_rows": "moved",
}


def _load(tmp_path, values, *arguments):
    """The configuration of a file with these values, and its table."""
    tables: list[str] = []
    return config.load(arcface_torch_file(tmp_path / "theirs.py", values), arguments, tables.append), "".join(tables)


def _row(table: str, key: str) -> str:
    """The lines of a key's last row."""
    return re.split(r"\n\| (?=\w|\()", table.rpartition(f"\n| {key} ")[2])[0]


def _problems(tmp_path, values, *arguments) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        _load(tmp_path, values, *arguments)
    return caught.value.args


# ---------------------------------------------------------------------------------------------------- what becomes of a file


@needs_golden
def test_published_files_load_unchanged(tmp_path):
    files = json.loads((GOLDEN / "arcface_torch_configs.json").read_text())
    their_base = files.pop("base")
    assert {key: dialect.DEFAULTS[key] for key in dialect.DEFAULTS} == {
        key: tuple(value) if key == "margin_list" else value for key, value in their_base.items() if key in dialect.DEFAULTS
    }
    for name, own in files.items():
        loaded = config.load(arcface_torch_file(tmp_path / f"{name}.py", own))
        theirs = {**their_base, **own}
        same = [
            "network",
            "rec",
            "num_classes",
            "batch_size",
            "sample_rate",
            "lr",
            "weight_decay",
            "optimizer",
            "num_epoch",
            "verbose",
        ]
        assert {key: getattr(loaded, key) for key in same} == {key: theirs[key] for key in same}, name
        _, m2, m3 = theirs["margin_list"]
        margin = ("cosface", m3, "exact") if m3 else ("arcface", m2, "straight_through")
        assert (loaded.margin, loaded.margin_m, loaded.margin_gradient) == margin, name
        assert loaded.warmup_epoch == max(0, theirs["warmup_epoch"]) and loaded.val_targets == tuple(theirs["val_targets"])
        assert (loaded.output, loaded.scale) == (f"runs/{name}", 64) and CODE.items() <= vars(loaded).items(), name


def test_keys_that_a_file_leaves_out_have_arcface_torchs_defaults(tmp_path):
    loaded, table = _load(tmp_path, {"fp16": False, "rec": "data", "num_epoch": 3})
    assert (loaded.margin, loaded.network, loaded.lr, loaded.batch_size, loaded.verbose) == ("arcface", "r50", 0.1, 128, 2000)
    assert {*dialect.DEFAULTS, "fp16", "rec", "num_epoch"} <= {line.split()[1] for line in table.splitlines() if line[0] == "|"}


def test_a_file_of_this_toolkit_is_not_translated(tmp_path):
    tables: list[str] = []
    (tmp_path / "ours.py").write_text("config = dict(margin='combined', margin_list=(1, 0.3, 0.2), num_epoch=13)")
    loaded = config.load(str(tmp_path / "ours.py"), explain=tables.append)
    assert not tables and (loaded.views, loaded.margin, loaded.margin_m) == (2, "combined", None)
    (tmp_path / "ours.py").write_text("from configs.base import config\nconfig = {**config, 'fp16': True}")
    with pytest.raises(UserError, match="fp16=True: unknown key"):
        config.load(str(tmp_path / "ours.py"))


def test_what_differs_is_in_the_table(tmp_path):
    odd = {"margin_list": (1.0, 0.5, 0.4), "momentum": 0.8, "dali_aug": True, "wandb_key": "secret", "warmup_epoch": -1}
    loaded, table = _load(tmp_path, {**R50, **odd})
    assert (loaded.margin, loaded.margin_m, loaded.momentum, loaded.warmup_epoch) == ("cosface", 0.4, 0.9, 0)
    for key in ("margin_list", "momentum", "dali_aug", "fp16"):
        assert "warning: " in _row(table, key)
    assert "ignored: " in _row(table, "num_image") and "secret" not in table
    assert "warning: " not in _row(_load(tmp_path, {**R50, "margin_list": (1.0, 0.0, 0.4)})[1], "margin_list")


def test_large_networks_recompute_activations_as_there(tmp_path):
    loaded, table = _load(tmp_path, {**R50, "network": "vit_l_dp005_mask_005"})
    assert loaded.gradient_checkpointing and loaded.mask_ratio == 0.1 and "a tenth" in _row(table, "network")
    assert _load(tmp_path, {**R50, "network": "vit_t_dp005_mask0"})[0].mask_ratio is None
    assert not _load(tmp_path, R50)[0].gradient_checkpointing


def test_synthetic_data_have_the_size_of_the_file(tmp_path):
    loaded, _ = _load(tmp_path, {**R50, "rec": "synthetic", "num_classes": 300000, "num_image": 100000, "val_targets": []})
    assert len(build.open_dataset(loaded)) == 100000 and loaded.num_classes == 300000


def test_every_key_is_documented():
    documented = set(re.findall(r"`(\w+)", (ROOT / "docs" / "MIGRATING.md").read_text()))
    assert set(dialect.KEYS) <= documented


def test_fp16_scales_the_loss_on_a_gpu(tmp_path, monkeypatch):
    assert _load(tmp_path, R50)[0].precision == "fp32" and _load(tmp_path, R50, "fp16=False")[0].precision == "fp32"
    assert config.load(str(tmp_path / "theirs.py"), gpu=True).precision == "fp16"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _load(tmp_path, R50)[0].precision == "fp16"


def test_absent_verification_sets_are_left_out(tmp_path):
    (tmp_path / "lfw.bin").touch()
    loaded, table = _load(tmp_path, {**R50, "rec": str(tmp_path)})
    assert loaded.val_targets == ("lfw",) and "warning: not in" in _row(table, "val_targets")


def test_arguments_are_keys_of_either_style(tmp_path):
    loaded, table = _load(
        tmp_path, R50, "margin_list=(1,0,0.35)", "lr=0.02", "precision=bf16", "accumulation=mean", "resume=False"
    )
    assert (loaded.margin, loaded.margin_m, loaded.lr) == ("cosface", 0.35, 0.02)
    assert (loaded.precision, loaded.accumulation, loaded.resume, loaded.schedule) == ("bf16", "mean", False, "polynomial")
    assert _load(tmp_path, R50)[0].resume and _load(tmp_path, R50, "margin=adaface")[0].margin_gradient == "exact"
    assert "accumulation" not in _row(table, "gradient_acc") and "a key of this toolkit" in _row(table, "accumulation")


@pytest.mark.parametrize("margin_list", [(1.0, 0.5, 0.0), (1.0, 0.0, 0.4)])
def test_show_prints_the_same_run_in_our_style(tmp_path, margin_list):
    loaded, _ = _load(tmp_path, {**R50, "margin_list": margin_list})
    (tmp_path / "ours.py").write_text(loaded.as_file("another"))
    tables: list[str] = []
    assert config.load(str(tmp_path / "ours.py"), explain=tables.append) == loaded and not tables
    assert "output=" in loaded.as_file("another") and "output=" not in loaded.as_file(loaded.output.removeprefix("runs/"))


def test_a_recipe_moves_to_our_style_key_by_key(tmp_path):
    expected, _ = _load(tmp_path, {**R50, "gradient_acc": 2})
    moving = {**R50, "gradient_acc": 2}
    for key, settings in [
        ("fp16", {"precision": "fp32"}),
        ("gradient_acc", {"gradient_acc": 2, "accumulation": "sum"}),
        ("num_image", {}),
        ("dali", {}),
        ("output", {"output": "runs/theirs"}),
    ]:
        del moving[key]
        moving.update(settings)
        assert _load(tmp_path, moving)[0] == expected, key
    ours = {**base, **vars(expected)}
    assert dialect.is_dialect(moving) and not dialect.is_dialect(ours) and _load(tmp_path, ours)[0] == expected


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"margin_list": (1.35, 0.5, 0.0)}, "margin_list=(1.35, 0.5, 0.0): arcface_torch trains only with m1 = 1 and m3 = 0"),
        ({"margin_list": (1.0, 0.5, -0.1)}, "margin_list=(1.0, 0.5, -0.1): arcface_torch trains only with m1 = 1 and m3 = 0"),
        ({"margin_list": 0.5}, "margin_list=0.5: must be a list of 3 numbers"),
        ({"margin_list": (1.0, -0.5, 0.0)}, "margin_list=(1.0, -0.5, 0.0): must be >= 0"),
        ({"use_adaface_loss": True}, "use_adaface_loss=True: not a key of arcface_torch or of this toolkit; remove it"),
        (
            {"embeding_size": 512},
            "embeding_size=512: not a key of arcface_torch or of this toolkit; did you mean 'embedding_size'?",
        ),
        ({"fp16": "yes"}, "fp16='yes': must be True or False"),
        ({"optimizer": "lamb"}, "optimizer='lamb': must be one of 'sgd', 'adamw'"),
        ({"warmup_epoch": 30}, "warmup_epoch=30.0: must be <= num_epoch=20"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path, values, complaint):
    (problem,) = _problems(tmp_path, {**R50, **values})
    assert problem.removeprefix(f"{tmp_path / 'theirs.py'}: ").startswith(complaint)


def test_all_problems_are_reported_at_once(tmp_path):
    without = {key: value for key, value in R50.items() if key != "num_epoch"}
    fork = {"margin_list": (2.0, 0.5, 0.0), "sub_center": 3, "loss": "arcface", "lr": "high"}
    problems = _problems(tmp_path, {**without, **fork}, "batch_size=many", "augmentaion=none")
    words = ["num_epoch", "margin_list", "sub_center", "loss", "augmentaion", "lr='high'", "argument batch_size=many"]
    assert len(problems) == len(words) and all(any(word in problem for problem in problems) for word in words)


@needs_faces
def test_an_unknown_network_is_one_line(tmp_path):
    file = arcface_torch_file(
        tmp_path / "theirs.py", {**R50, "rec": str(FACES / "lfw_train"), "network": "r51", "num_classes": 430}
    )
    result = train(file, f"output={tmp_path / 'out'}")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "network='r51'" in result.stderr


# ---------------------------------------------------------------------------------------------------- training

SMALL = {
    **R50,
    "network": "mbf",
    "batch_size": 8,
    "gradient_acc": 2,
    "interclass_filtering_threshold": 0.1,
    "sample_rate": 0.5,
    "rec": str(FACES / "lfw_train"),
    "num_classes": 430,
    "frequent": 1,
    "num_epoch": 1,
    "warmup_epoch": 0.01,
}
PLAIN = f"""
from configs.base import config as base
config = dict(base, rec={SMALL["rec"]!r}, network="mbf", batch_size=8, gradient_acc=2, accumulation="sum", views=1,
    augmentation="none", queue="none", quality_threshold=None, margin="arcface", margin_m=0.5, margin_gradient="straight_through",
    interclass_filtering_threshold=0.1, filtered_negatives="zeroed", sample_rate=0.5, unsampled_rows="moved", precision="fp32",
    schedule="polynomial", polynomial_power=1.0, lr=0.1, weight_decay=5e-4, decay_norms=True, clip="encoder", max_grad_norm=5.0,
    num_epoch=1, warmup_epoch=0.01, frequent=1)
"""


@needs_faces
@pytest.mark.parametrize("ranks", [0, 2])
def test_it_trains_as_the_same_recipe_in_our_style(tmp_path, ranks):
    (tmp_path / "plain.py").write_text(PLAIN)
    lines = []
    for file in (arcface_torch_file(tmp_path / "theirs.py", SMALL), str(tmp_path / "plain.py")):
        output = tmp_path / f"{len(lines)}"
        result = train(file, f"output={output}", "max_steps=4", ranks=ranks)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("| margin_list ") == 1 - len(lines), "the table is printed once, for arcface_torch's file"
        lines.append([{key: line[key] for key in ("step", "loss", "lr", "gradient_norm")} for line in metrics(output)])
    assert lines[0] == lines[1] and len(lines[0]) == 4


def test_show_needs_no_data(tmp_path):
    file = arcface_torch_file(tmp_path / "theirs.py", R50)
    result = train(file, "--show", "lr=0.02")
    assert result.returncode == 0 and "lr=0.02" in result.stdout and "| margin_list" in result.stderr
