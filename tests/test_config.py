"""Configuration: files, overrides, checks; every key is declared once, explained, and read by the code."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import typing
from pathlib import Path

import pytest

from configs.base import config as base
from tests.commands import run
from tests.shared_files import ROOT
from utils import config
from utils.config import Config
from utils.errors import UserError

TYPES = typing.get_type_hints(Config, include_extras=True)


def test_base_file_and_dataclass_have_the_same_keys():
    assert list(base) == [field.name for field in dataclasses.fields(Config)]


def test_defaults_are_in_the_base_file_alone():
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(Config))


def _explanations() -> dict[str, str]:
    """Key -> the comment at the end of its line in configs/base.py, or in the lines above it."""
    found, above = {}, ""
    for line in (ROOT / "configs" / "base.py").read_text().splitlines():
        if assigned := re.match(r"config\.(\w+) = .*?(?:  # (.*))?$", line):
            found[assigned[1]] = assigned[2] or above.strip()
        above = f"{above} {line[2:]}" if line.startswith("# ") and not line.startswith("# ---") else ""
    return found


def test_every_key_is_explained_with_its_choices():
    explanations = _explanations()
    for key in base:
        assert len(explanations[key]) > 4, f"{key} has no explanation in configs/base.py"
        if typing.get_origin(TYPES[key]) is typing.Literal:
            for choice in typing.get_args(TYPES[key]):
                assert re.search(rf"\b{choice}\b", explanations[key]), f"{key}: configs/base.py does not explain {choice!r}"


def _numeric_parts(wanted: object) -> list[object]:
    """The types of numbers in a type, with their ranges."""
    if wanted in (int, float) or typing.get_origin(wanted) is typing.Annotated:
        return [wanted]
    inner = () if typing.get_origin(wanted) is typing.Literal else typing.get_args(wanted)
    return [part for each in inner for part in _numeric_parts(each)]


def test_every_number_has_a_range():
    assert [key for key, wanted in TYPES.items() if any(part in (int, float) for part in _numeric_parts(wanted))] == []
    assert sum(bool(_numeric_parts(wanted)) for wanted in TYPES.values()) > 35


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_every_configuration_file_loads(file):
    assert isinstance(config.load(str(ROOT / "configs" / file)), Config)
    assert isinstance(config.load(str(ROOT / "configs" / Path(file).stem)), Config)


def test_the_papers_setting_is_the_papers():
    paper = config.load(str(ROOT / "configs" / "vgg2_r34_qg"))
    assert (paper.network, paper.batch_size, paper.num_epoch, paper.milestones) == ("r34", 128, 12, (6, 9))
    assert (paper.lr, paper.momentum, paper.weight_decay, paper.optimizer) == (0.2, 0.9, 5e-4, "sgd")
    assert (paper.num_classes, paper.margin, paper.margin_m) == (8631, "adaface", None)  # AdaFace's own m, 0.4
    assert (paper.scale, paper.contrastive_scale) == (64, 64)
    assert (paper.quality_concentration, paper.quality_rate, paper.quality_mean, paper.quality_std) == (0.333, 0.01, 20, 100)
    assert (paper.quality_threshold, paper.queue, paper.contrastive_weight, paper.views) == (0.2, "proxy", 1.0, 2)
    assert (paper.augmentation, paper.contrastive_denominator) == ("qgface", "paper")


def test_every_key_is_read_by_the_code():
    read = set()
    for path in [ROOT / "train.py", *ROOT.glob("recognition/**/*.py"), *ROOT.glob("losses/**/*.py"), *ROOT.glob("utils/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if owner in ("config", "_config", "settings", "c") and path.parent.name != "config":
                    read.add(node.attr)
    assert set(base) - read == set()


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("batchsize=3", "unknown key; did you mean 'batch_size'?"),
        ("zzz=3", "unknown key; configs/base.py lists all keys"),
        ("lr=fast", "must be a number"),
        ("lr=-1", "must be > 0"),
        ("lr=1e999", "must be a finite number"),
        ("batch_size=2.5", "must be a whole number"),
        ("batch_size=True", "must be a whole number"),
        ("val_batch_size=0", "must be > 0"),
        ("max_steps=-1", "must be >= 0"),
        ("seed=9223372036854775808", "must be a whole number below 2**63"),
        ("queue_size=9223372036854775808", "must be a whole number below 2**63"),
        ("scale=0", "must be > 0"),
        ("contrastive_scale=-64.0", "must be > 0"),
        ("quality_std=-1", "must be >= 0"),
        ("weight_decay=-5e-4", "must be >= 0"),
        ("quality_rate=1.5", "must be >= 0 and <= 1"),
        ("resume=1", "must be True or False"),
        ("queue=large", "must be one of 'none'"),
        ("milestones=six", "must be a list in which each entry is a number"),
        ("milestones=(-1,6)", "must be a list in which each entry is >= 0"),
        ("milestones=(6,nine)", "must be a list"),
        ("val_targets=3", "must be a list in which each entry is text"),
        ("val_targets=(1,)", "must be a list in which each entry is text"),
        ("views=3", "must be one of 1, 2"),
        ("views=True", "must be one of 1, 2"),
        ("quality_threshold=2", "must be >= 0 and <= 1"),
        ("margin_list=(1,2)", "must be a list of 3"),
        ("sample_rate=1.5", "must be >= 0 and <= 1"),
        ("interclass_filtering_threshold=1", "must be >= 0 and < 1"),
        ("magface=(10,110)", "must be a list of 5"),
        ("timeout_minutes=1e300", "must be > 0 and <= 525600"),
        ("lr", "expected key=value, such as lr=0.1"),
    ],
)
def test_a_wrong_argument_is_named(argument, complaint):
    with pytest.raises(UserError) as caught:
        config.load(str(ROOT / "configs" / "base"), [argument])
    assert str(caught.value).startswith(f"argument {argument}: {complaint}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["views=1"], "queue='proxy' needs both views: set views=2, or queue='none'"),
        (["views=1", "queue=none", "batch_size=1"], "batch_size=1: BatchNorm needs at least 2 images per rank"),
        (["views=1", "queue=none", "partition=views"], "partition='views' separates augmented from original views: set views=2"),
        (["margin=magface", "map_norm=True"], "map_norm=True: margin='magface' trains the norm; use another margin"),
        (["margin_gradient=straight_through"], "margin_gradient='straight_through': needs margin='arcface', or"),
        (["margin=combined", "margin_list=(1,0.3,0.2)", "margin_gradient=straight_through"], "margin_gradient="),
        (["sample_rate=0.001"], "sample_rate=0.001: must be 0 (the classes of the batch alone) or >= 0.01"),
        (["magface=(110,10,0.45,0.8,35)"], "magface=(110.0, 10.0, 0.45, 0.8, 35.0): must be (l_a, u_a, l_m, u_m, lambda_g)"),
        (["milestones=(9,6)"], "milestones=(9.0, 6.0): must be in increasing order"),
        (["margin_list=(1,0.5,0)"], "margin_list=(1.0, 0.5, 0.0): margin='adaface' does not use it; set margin='combined'"),
        (["milestones=(6,13)"], "milestones=(6.0, 13.0): must all be <= num_epoch=12"),
        (["warmup_epoch=12.5"], "warmup_epoch=12.5: must be <= num_epoch=12"),
        (["partition_warmup_epoch=13"], "partition_warmup_epoch=13.0: must be <= num_epoch=12"),
    ],
)
def test_keys_that_do_not_fit_together_are_named(arguments, complaint):
    with pytest.raises(UserError) as caught:
        config.load(str(ROOT / "configs" / "base"), arguments)
    assert str(caught.value).startswith(complaint) and "\n" not in str(caught.value)


def test_milestones_count_for_their_schedule_alone():
    assert config.load(str(ROOT / "configs" / "base"), ["num_epoch=2", "schedule=cosine"]).num_epoch == 2


def test_all_problems_are_reported_together(tmp_path):
    (tmp_path / "bad.py").write_text("config = dict(netwrok='r50', lr=-1)\n")
    arguments = ["scale=0", "views=1", "nonsense", "num_epoch=x", "milestones=(6, 20)"]
    done = run(sys.executable, "train.py", str(tmp_path / "bad.py"), *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [  # milestones are not compared with num_epoch, which is unknown
        "error: argument nonsense: expected key=value, such as lr=0.1",
        f"error: {tmp_path / 'bad.py'}: netwrok='r50': unknown key; did you mean 'network'?",
        f"error: {tmp_path / 'bad.py'}: lr=-1: must be > 0",
        "error: argument scale=0: must be > 0",
        "error: argument num_epoch=x: must be a whole number",
        "error: queue='proxy' needs both views: set views=2, or queue='none'",
    ]


def test_a_file_need_not_start_from_base(tmp_path):
    (tmp_path / "own.py").write_text("config = dict(network='r50', lr=1)\n")
    assert config.load(str(tmp_path / "own")) == config.from_base(network="r50", lr=1.0, output="runs/own")


def test_changes_are_checked_too():
    with pytest.raises(UserError, match="scale=0: must be > 0"):
        config.from_base(scale=0)
    with pytest.raises(UserError, match="batch_size=0: must be > 0"):
        dataclasses.replace(config.from_base(), batch_size=0)


def test_overrides_are_converted_without_loss():
    loaded = config.load(
        str(ROOT / "configs" / "base"),
        ["lr=1", "quality_threshold=none", "queue=none", "val_targets=['a','b']", "compile=true", "rec=/d/3", "milestones=[1,2]"],
    )
    assert loaded.lr == 1.0 and isinstance(loaded.lr, float)
    assert loaded.quality_threshold is None and loaded.queue == "none" and loaded.compile is True
    assert loaded.val_targets == ("a", "b") and loaded.rec == "/d/3" and loaded.milestones == (1.0, 2.0)


def test_saved_configuration_comes_back_equal(tmp_path):
    loaded = config.load(str(ROOT / "configs" / "vgg2_r34_qg"), ["lr=0.3", "quality_threshold=none"])
    loaded.save(tmp_path / "config.json")
    assert config.load_json(tmp_path / "config.json") == loaded


def test_a_finished_run_can_be_read_whatever_its_schedule(tmp_path):
    config.from_base(num_epoch=2, schedule="cosine").save(tmp_path / "config.json")
    saved = (tmp_path / "config.json").read_text()
    saved = saved.replace('"cosine"', '"multistep"').replace('"margin_list": null', '"margin_list": [1.0, 0.5, 0.0]')
    (tmp_path / "config.json").write_text(saved)
    loaded = config.load_json(tmp_path / "config.json")
    assert (loaded.milestones, loaded.margin, loaded.margin_list) == ((6, 9), "adaface", (1.0, 0.5, 0.0))


def test_file_mistakes_are_named(tmp_path):
    (tmp_path / "no_config.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("config = \n")
    (tmp_path / "unknown.py").write_text("config = dict(netwrok='r50')\n")
    for name, complaint in {
        "no_config": "must define an easydict `config`",
        "broken": "SyntaxError",
        "unknown": "did you mean 'network'?",
        "nonesuch": "no such configuration file",
        "brokn": "did you mean",
    }.items():
        with pytest.raises(UserError, match=complaint.replace("?", r"\?")):
            config.load(str(tmp_path / name))


def test_output_is_named_after_the_file_unless_given():
    assert config.load(str(ROOT / "configs" / "vgg2_r34_qg")).output == "runs/vgg2_r34_qg"
    assert config.load(str(ROOT / "configs" / "vgg2_r34_qg"), ["output=elsewhere"]).output == "elsewhere"


def test_help_without_a_configuration():
    done = run(sys.executable, "train.py")
    assert done.returncode == 2 and done.stderr.startswith("error: usage: train.py CONFIG")


@pytest.mark.parametrize("text", ["val_targets=mine", "val_targets=mine,", "val_targets=('mine',)", "val_targets=['mine']"])
def test_lists_may_be_written_with_commas(text):
    assert config.load(str(ROOT / "configs" / "small_qg"), [text]).val_targets == ("mine",)
    assert config.load(str(ROOT / "configs" / "small_qg"), ["val_targets=lfw, agedb_30"]).val_targets == ("lfw", "agedb_30")
    loaded = config.load(str(ROOT / "configs" / "small_qg"), ["schedule=multistep", "milestones=6"])
    assert loaded.milestones == (6.0,)
