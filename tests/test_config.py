"""Configuration: files, overrides, checks, and that no key is there for nothing."""

from __future__ import annotations

import ast
import dataclasses
import sys
from pathlib import Path

import pytest

from configs.base import config as base
from tests.commands import run
from tests.shared_files import ROOT
from utils import config
from utils.config import Config
from utils.errors import UserError


def test_base_file_documents_every_key_with_the_default_that_the_code_has():
    defaults = dataclasses.asdict(Config())
    assert {key: (tuple(v) if isinstance(v, list) else v) for key, v in base.items()} == defaults


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_every_configuration_file_loads(file):
    assert isinstance(config.load(str(ROOT / "configs" / file)), Config)
    assert isinstance(config.load(str(ROOT / "configs" / Path(file).stem)), Config)


def test_the_papers_setting_is_the_papers():
    paper = config.load(str(ROOT / "configs" / "vgg2_r34_qg"))
    assert (paper.network, paper.batch_size, paper.num_epoch, paper.milestones) == ("r34", 128, 12, (6, 9))
    assert (paper.lr, paper.momentum, paper.weight_decay, paper.optimizer) == (0.2, 0.9, 5e-4, "sgd")
    assert (paper.num_classes, paper.margin, paper.margin_m) == (8631, "adaface", 0.4)
    assert (paper.scale, paper.contrastive_scale) == (64, 64)
    assert (paper.quality_concentration, paper.quality_rate, paper.quality_mean, paper.quality_std) == (0.333, 0.01, 20, 100)
    assert (paper.quality_threshold, paper.queue, paper.contrastive_weight, paper.views) == (0.2, "proxy", 1.0, 2)
    assert (paper.augmentation, paper.contrastive_denominator) == ("qgface", "paper")


def test_every_key_is_read_by_the_code():
    """A key that nothing reads is a lie to the user."""
    read = set()
    for path in [ROOT / "train.py", *(ROOT / "recognition").rglob("*.py"), *(ROOT / "utils").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if owner in ("config", "settings", "c") and path.name != "config.py":
                    read.add(node.attr)
    assert {field.name for field in dataclasses.fields(Config)} - read == set()


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("batchsize=3", "did you mean 'batch_size'?"),
        ("zzz=3", "configs/base.py lists all keys"),
        ("lr=fast", "lr must be a number, not 'fast'"),
        ("lr=-1", "lr=-1.0: must be positive"),
        ("batch_size=2.5", "batch_size must be a whole number"),
        ("batch_size=True", "batch_size must be a whole number"),
        ("resume=1", "resume must be True or False"),
        ("margin=sphere", "margin must be one of 'adaface'"),
        ("milestones=6", "milestones must be a list"),
        ("milestones=(9,6)", "increasing order"),
        ("val_targets=lfw", "val_targets must be a list"),
        ("views=3", "must be 1 or 2"),
        ("views=1", "needs both views"),
        ("quality_threshold=2", "must lie in [0, 1]"),
        ("margin_list=(1,2)", "must be three numbers"),
        ("sample_rate=0.05", "must lie in [0.1, 1]"),
        ("interclass_filtering_threshold=1", "must be a cosine below 1"),
        ("magface=(10,110)", "must be five numbers"),
        ("lr", "expected key=value"),
    ],
)
def test_a_wrong_argument_is_named(argument, complaint):
    with pytest.raises(UserError) as caught:
        config.load(str(ROOT / "configs" / "base"), [argument])
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


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


def test_file_mistakes_are_named(tmp_path):
    (tmp_path / "no_config.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("config = \n")
    (tmp_path / "unknown.py").write_text("config = dict(netwrok='r50')\n")
    for name, complaint in {
        "no_config": "must define an easydict `config`", "broken": "SyntaxError", "unknown": "did you mean 'network'?",
        "nonesuch": "no such configuration file", "brokn": "did you mean",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=complaint.replace("?", r"\?")):
            config.load(str(tmp_path / name))


def test_output_is_named_after_the_file_unless_given():
    assert config.load(str(ROOT / "configs" / "vgg2_r34_qg")).output == "runs/vgg2_r34_qg"
    assert config.load(str(ROOT / "configs" / "vgg2_r34_qg"), ["output=elsewhere"]).output == "elsewhere"


def test_help_without_a_configuration():
    done = run(sys.executable, "train.py")
    assert done.returncode == 2 and done.stderr.startswith("error: usage: train.py CONFIG")
