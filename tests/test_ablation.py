"""The paper's tables as configurations, and the command that runs and prints them."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from eval.present import paper
from scripts.ablation.record import DATA_ROOT, SETTINGS, add_to_record, read_record, refuse_other_settings, settings_of
from scripts.ablation.rows import FORMS, LONGEST_NAME, TABLES, parse_row
from scripts.ablation.tables import read_figures, write_table
from tests.commands import run
from tests.shared_files import ROOT
from utils import config
from utils.errors import UserError

ONE_VIEW = {"baseline", "a", "b", "d"}

# views, augmentation, b, queue, views of the momentum encoder of each row, as the paper describes it (docs/METHOD.md)
KEYS = ("views", "augmentation", "quality_threshold", "queue", "momentum_views")
ROWS = {
    "baseline": (1, "none", None, "none", "both"),
    "a": (1, "adaface", None, "none", "both"),
    "b": (1, "adaface", 0.2, "none", "both"),
    "c": (2, "adaface", 0.2, "proxy", "both"),
    "d": (1, "qgface", None, "none", "both"),
    "d_both": (2, "qgface", None, "none", "both"),
    "qg": (2, "qgface", 0.2, "proxy", "both"),
    "queue_none": (2, "qgface", 0.2, "none", "both"),
    "queue_batch": (2, "qgface", 0.2, "batch", "both"),
    "queue_momentum": (2, "qgface", 0.2, "momentum", "augmented"),
    "threshold_none": (2, "qgface", None, "proxy", "both"),
    "threshold_01": (2, "qgface", 0.1, "proxy", "both"),
    "threshold_03": (2, "qgface", 0.3, "proxy", "both"),
}


@pytest.mark.parametrize("table", ["I", "II", "III"])
def test_every_row_of_the_paper_has_its_configuration(table):
    assert [row.name for row in TABLES[table] if row.name != "D, both views"] == list(paper.TABLES[table])
    assert all(row.config in ROWS and not row.changes for row in TABLES[table])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_changes_its_subject_and_nothing_else(name, form):
    row, method = (dataclasses.asdict(config.load(str(ROOT / "configs" / f"{form}_{n}"))) for n in (name, "qg"))
    assert tuple(row[key] for key in KEYS) == ROWS[name]
    allowed = {*KEYS, "output"}
    if form == "lfw" and name in ONE_VIEW:  # as many encoder passes and steps as with two views
        assert row["global_batch_size"] == 2 * method["global_batch_size"]
        assert row["num_epoch"] == 2 * method["num_epoch"] and row["warmup_epoch"] == 2 * method["warmup_epoch"]
        allowed |= {"num_epoch", "warmup_epoch", "global_batch_size"}
    assert {key for key in row if row[key] != method[key]} <= allowed


def test_rows_with_many_changes_have_folders_that_can_be_made(tmp_path):
    """One per row, also if only the last of many changes differs; a short name has every change."""
    many = " ".join(f"unlabelled=../faces/camera/{number:04d}" for number in range(12))
    rows = [parse_row(f"long: configs/lfw_qg {many} contrastive_weight={weight}") for weight in ("0.1", "0.3")]
    names = {row.run_name("lfw", seed) for row in rows for seed in (1, 22)}
    assert len(names) == 4 and all(len(name) <= LONGEST_NAME and name.startswith("lfw_qg-unlabelled=") for name in names)
    for name in names:
        (tmp_path / name).mkdir()
    assert parse_row("short: configs/lfw_qg lr=0.1 seed=3").run_name("lfw", 2) == "lfw_qg-lr=0.1-seed=3-s2"


def test_a_table_shows_the_papers_figures_and_is_valid_markdown(tmp_path, capsys):
    write_table(tmp_path, "III", {"b: no": {"SC d1": [30.0, 31.0]}, "b = 0.1": {"SC d1": [20.0, 20.0]}})
    assert "30.50 ± 0.71" in capsys.readouterr().out
    lines = (tmp_path / "III.md").read_text().splitlines()
    assert [":--" in line for line in lines] == [False, True, False, False, False, False]
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["30.50 ± 0.71", "90.77", "20.00 ± 0.00", "86.00"]


def test_all_pairs_are_columns_if_measurable(tmp_path):
    measured = {"identities": 9, "fnmr@fmr=1e-3": 0.25, "fnmr@fmr=1e-4": None, "impostor_p99.99": -0.125, "auc": 0.9}
    (tmp_path / "eval.json").write_text(
        json.dumps({"hq": {"same_pairs": 9}, "lq": measured, "lq high": {"impostor_p99.99": 0.5}})
    )
    assert read_figures([tmp_path / "eval.json"]) == {"TAR@1e-3 lq": [75.0], "99.99 % lq": [-12.5]}


def _ablation(*arguments: str):
    return run(sys.executable, "-m", "scripts.ablation", *arguments)


def test_rows_are_trained_evaluated_and_printed_once(demo_set, tmp_path):
    arguments = ("own", "--row", "tiny: tests/tiny_config queue=none", "--seeds", "1", "2", "--data-root", str(demo_set))
    arguments += ("--output", str(tmp_path), f"rec={demo_set}", "max_steps=2")
    first = _ablation(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("training") == 2 and "over 2 seed(s)" in first.stdout
    figures = json.loads((tmp_path / "own.json").read_text())["tiny"]
    assert set(figures) >= {"demo_hq", "demo_lq", "AUC demo_mixed"} and all(len(values) == 2 for values in figures.values())
    for seed in (1, 2):
        folder = tmp_path / f"tiny_config-queue=none-s{seed}"
        saved = json.loads((folder / "config.json").read_text())
        assert (saved["queue"], saved["seed"], saved["max_steps"]) == ("none", seed, 2)
        accuracy = json.loads((folder / "eval.json").read_text())["demo_hq"]["accuracy"]
        assert figures["demo_hq"][seed - 1] == pytest.approx(100 * accuracy)
    again = _ablation(*arguments, "frequent=3")
    assert again.returncode == 0 and "training" not in again.stdout
    assert again.stdout.strip() == first.stdout[first.stdout.index("Table") :].strip()
    refused = _ablation(*arguments, "max_steps=3")
    assert refused.returncode == 2 and "Table" not in refused.stdout
    assert "this run has max_steps=2, the table asks for max_steps=3" in refused.stderr
    fewer = tmp_path / "val"
    fewer.mkdir()
    (fewer / "demo_hq.bin").symlink_to(demo_set / "demo_hq.bin")
    other = (str(fewer) if argument == str(demo_set) else argument for argument in arguments)
    other = _ablation(*other, "--seeds", "1", "--all-pairs", str(demo_set))
    assert other.returncode == 0 and "training" in other.stdout, "evaluated again on other benchmarks"
    assert set(json.loads((tmp_path / "own.json").read_text())["tiny"]) == {"demo_hq", "AUC demo_hq"}
    record = read_record(tmp_path / "tiny_config-queue=none-s1")
    assert record["all_pairs"] == [str(demo_set)]
    evaluated = json.loads((tmp_path / "tiny_config-queue=none-s1/eval.json").read_text())
    assert evaluated[demo_set.stem]["same_pairs"] == 13 * 28, "too few pairs for the table's rates"


def test_a_run_with_other_settings_is_not_mistaken_for_this_one(tmp_path):
    def settings(processes: int = 1, **changes: object) -> dict:
        return settings_of(config.from_base(rec="/data/x", **changes), processes)

    refuse_other_settings(tmp_path, settings())  # nothing is recorded
    add_to_record(tmp_path, SETTINGS, settings())
    add_to_record(tmp_path, DATA_ROOT, "/data/val")
    assert read_record(tmp_path) == {SETTINGS: settings(), DATA_ROOT: "/data/val"}
    refuse_other_settings(tmp_path, settings(num_workers=7, verbose=3, output="elsewhere"))
    for other, named in (
        (settings(2), "--nproc=2"),
        (settings(lr=0.5), "lr=0.5"),
        (settings(queue_size=7), "queue_size=7"),
        (settings(milestones=(1.0,)), r"the table asks for milestones=\[1.0\]"),
    ):
        with pytest.raises(UserError, match=named):
            refuse_other_settings(tmp_path, other)
    (tmp_path / "ablation.json").write_text("{")
    with pytest.raises(UserError, match=r"ablation\.json: cannot be read"):
        refuse_other_settings(tmp_path, settings())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IX"], "table 'IX': unknown; known tables: I, II, III"),
        (["own"], "table 'own' has no rows"),
        (["own", "--row", "nonsense"], "expected 'NAME: CONFIG"),
        (["own", "--row", "absent: configs/absent"], "no such configuration file"),
        (["own", "--row", "wrong: tests/tiny_config lrr=1"], "did you mean 'lr'"),
        (["I", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["I", "--nproc", "0"], "--nproc 0: must be at least 1"),
        (["I", "--data-root", "/absent"], "--data-root /absent: no such folder"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(arguments, message, tmp_path):
    done = _ablation(*arguments, "--output", str(tmp_path / "out"))
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_failure_ends_the_table_and_names_its_log(tmp_path):
    rows = ("--row", "lost: tests/tiny_config rec=/absent", "--row", "never begun: tests/tiny_config rec=/absent max_steps=1")
    done = _ablation("own", *rows, "--seeds", "1", "--data-root", str(tmp_path), "--output", str(tmp_path))
    assert done.returncode == 2 and "/absent" in done.stderr and "-s1.log" in done.stderr
    assert done.stdout.count("training") == 1
