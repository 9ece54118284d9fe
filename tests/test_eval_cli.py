"""`python -m eval`, from arguments to tables, JSON and plots: real faces, one and two ranks, the cache, user errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from argparse import Namespace
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval.__main__ import COMMANDS, build_parser
from eval.commands.common import plot_folder
from eval.feature_cache import fingerprint
from eval.present import paper
from eval.present.tables import summary_row, summary_table, verification_table
from recognition.data.pack.__main__ import COMMANDS as PACKING
from tests.commands import run
from tests.eval_commands import run_eval
from tests.shared_files import FACES, GOLDEN, ROOT, needs_faces, needs_golden
from tests.world import run_world
from utils import dist
from utils.errors import UserError, refuse_unknown_command

VAL = FACES / "val"
EMBEDDED: Counter[str] = Counter()


def small_picture(images_nHWC: torch.Tensor) -> torch.Tensor:
    """An encoder without training: the image in 8x8 grey, without its mean."""
    EMBEDDED["images"] += len(images_nHWC)
    grey = images_nHWC.float().mean(dim=3)
    cells = torch.nn.functional.avg_pool2d(grey[:, None], 14).flatten(1)
    return cells - cells.mean(dim=1, keepdim=True)


def evaluate(arguments: list[str]) -> dict[str, dict[str, float]]:
    """Run one command in an existing process group; return what it wrote to --json."""
    run_eval(small_picture, *arguments)
    dist.barrier()
    return json.loads(Path(arguments[arguments.index("--json") + 1]).read_text())


def in_world(size: int, arguments: list[str]) -> dict[str, dict[str, float]]:
    return run_world(size, evaluate, arguments)[0]


@pytest.fixture
def alone():
    """A process group of one process."""
    dist.start()
    yield
    dist.stop()


# -------------------------------------------------------------------------------------------------- the commands


@needs_faces
def test_all_finds_every_set_and_prints_one_summary(alone, tmp_path, capsys):
    out, plots = tmp_path / "out.json", tmp_path / "plots"
    results = evaluate(
        ["all", "--checkpoint", "pixels", "--data-root", str(VAL), "--json", str(out), "--plots", str(plots), "--bootstrap", "50"]
    )
    assert set(results) == {"lfw_hq", "lfw_mixed", "lfw_lq", "IJBB", "tinyface", "scface_d1", "scface_d2", "scface_d3"}
    assert results["lfw_hq"]["accuracy"] > 0.55 and results["scface_d3"]["rank1"] > 0.05  # chance: 0.5 and 0.01
    assert results["lfw_hq"]["accuracy low"] <= results["lfw_hq"]["accuracy"] <= results["lfw_hq"]["accuracy high"]
    for name in ("tinyface", "scface_d1", "scface_d2", "scface_d3"):
        assert results[name]["rank1 low"] <= results[name]["rank1"] <= results[name]["rank1 high"] < 1
    assert results["tinyface"]["mated_probes"] == 189 and results["tinyface"]["gallery"] == 650
    assert results["IJBB"]["same_pairs"] + results["IJBB"]["different_pairs"] == 64_620
    shown = capsys.readouterr().out
    assert len(re.findall(r"\d \[\d+\.\d\d, \d+\.\d\d\]", shown)) == 3 * 2 + 6 + 3 + 3  # sets, FARs, ranks, distances
    summary = shown[shown.index("Summary") :]
    own = next(line for line in summary.splitlines() if "| pixels " in line)
    for name, metric in (("scface_d1", "rank1"), ("tinyface", "rank1"), ("IJBB", "tar@far=1e-4"), ("lfw_lq", "accuracy")):
        assert f" {100 * results[name][metric]:.2f} " in own
    assert re.search(r"E \(paper, table I\) +\| +92\.31 \| +99\.54 \| +100\.00 \| +69\.85 \| +91\.05 \|", summary)
    for name in ("roc_verification", "roc_ijbb", "cmc_tinyface", "cmc_scface", "similarity_scface"):
        assert cv2.imread(str(plots / f"{name}.png")).shape[0] > 300
        assert ElementTree.parse(plots / f"{name}.svg").getroot().tag.endswith("svg")


@needs_faces
def test_two_ranks_equal_one_and_cache_their_features(alone, tmp_path):
    # More than half of the images to a batch: the second rank's share is smaller than one.
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"")
    release = ["ijb", "--data-root", str(VAL / "IJBB"), "--checkpoint", str(weights), "--json", str(tmp_path / "out.json")]
    results = evaluate([*release, "--batch-size", "500"])
    release += ["--batch-size", "500", "--cache", str(tmp_path / "kept")]
    assert in_world(2, release) == results
    (kept,) = (tmp_path / "kept").iterdir()
    written = kept.stat().st_mtime_ns
    assert in_world(2, release) == results
    assert kept.stat().st_mtime_ns == written


@needs_golden
def test_ijb_from_a_feature_file(alone, tmp_path, capsys):
    arguments = ["ijb", "--features", str(GOLDEN / "ijb/features.npz"), "--meta", str(GOLDEN / "ijb/meta"), "--setting", "all"]
    results = evaluate([*arguments, "--json", str(tmp_path / "out.json")])
    for setting, expected in json.loads((GOLDEN / "ijb/expected.json").read_text()).items():
        for far, tar in expected.items():
            assert results[f"IJBB_{setting}"][f"tar@far={float(far):.0e}".replace("e-0", "e-")] == pytest.approx(tar, abs=1e-9)
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "N1D0F1" in line)
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["93.21", "93.21", "95.82", "98.56", "99.74", "100.00"]
    assert "queue: proxy-updated (paper, table II)" in shown and paper.IJBB_CAVEAT in shown
    evaluate([*arguments[:-2], "--no-paper", "--json", str(tmp_path / "out.json")])
    assert "paper" not in capsys.readouterr().out


@needs_faces
def test_scface_with_a_baseline(alone, tmp_path, capsys):
    arguments = ["scface", "--data-root", str(VAL / "scface"), "--checkpoint", "a", "--baseline", "b", "--plots", str(tmp_path)]
    results = evaluate([*arguments, "--json", str(tmp_path / "out.json")])
    assert results["baseline_scface_d2"] == results["scface_d2"]  # the same encoder
    assert "QGFace (paper, table IV)" in capsys.readouterr().out


@needs_faces
def test_features_are_cached_until_checkpoint_or_images_change(alone, tmp_path):
    copy = tmp_path / "lfw_hq.bin"
    copy.write_bytes((VAL / "lfw_hq.bin").read_bytes())
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"first")
    arguments = ["verify", "--bins", str(copy), "--checkpoint", str(weights), "--cache", str(tmp_path / "kept")]
    arguments += ["--json", str(tmp_path / "o.json")]

    def embedded() -> tuple[int, dict]:
        before = EMBEDDED["images"]
        return (lambda results: (EMBEDDED["images"] - before, results))(evaluate(arguments))

    first, results = embedded()
    assert first == 2400  # 600 pairs, and their mirror images
    assert embedded() == (0, results)
    weights.write_bytes(b"second")
    assert embedded()[0] == 2400
    os.utime(copy, ns=(1, 1))
    assert embedded()[0] == 2400
    assert len(list((tmp_path / "kept").glob("lfw_hq-*.npz"))) == 3


def test_fingerprints_depend_on_names_sizes_and_times(tmp_path):
    (tmp_path / "a").write_text("1")
    first = fingerprint([tmp_path])
    assert fingerprint([tmp_path]) == first
    (tmp_path / "a").write_text("12")
    second = fingerprint([tmp_path])
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, fingerprint([tmp_path])}) == 3
    with pytest.raises(UserError, match="none: No such file"):
        fingerprint([tmp_path / "none"])


# -------------------------------------------------------------------------------------------------- the paper's figures


def test_published_accuracies_are_left_out_on_request():
    results = {"lfw": {"accuracy": 0.9}, "xqlfw": {"accuracy": 0.7}}
    shown = str(verification_table(results))
    assert "lfw (QGFace, paper, table II)" in shown and re.search(r"xqlfw \(ArcFace, XQLFW's authors\) +\| +74\.22", shown)
    assert "paper" not in str(verification_table(results, published=False)) + str(summary_table("a", results, with_paper=False))


def test_the_papers_tables_are_consistent():
    method = paper.TABLE_I["E"]
    for same in (paper.TABLE_II["queue: proxy-updated"], paper.TABLE_III["b = 0.2"]):
        assert {column: same[column] for column in method} == method
    assert [paper.TABLE_IV["QGFace"][c] for c in (paper.SC1, paper.SC2, paper.SC3)] == [92.31, 99.54, 100.0]
    assert paper.TABLE_V["QGFace"][paper.TINYFACE] == 69.85
    for row in (*paper.TABLE_II.values(), *paper.TABLE_III.values()):
        assert row[paper.HQ] == pytest.approx(np.mean([row[name] for name in paper.HQ_SETS]), abs=0.011)
    assert [len(table) for table in paper.TABLES.values()] == [6, 4, 4, 16, 15]
    assert all("(paper, table " in name for name, _ in paper.rows(paper.TABLES, [paper.IJBB, paper.TINYFACE, paper.SC1]))


def test_the_summary_averages_the_five_sets_only_if_all_were_measured():
    results = {name: {"accuracy": 0.9 + 0.01 * i} for i, name in enumerate(("lfw", "cfp_fp", "agedb_30", "cplfw"))}
    assert paper.HQ not in summary_row(results)
    results["calfw"] = {"accuracy": 0.5}
    assert summary_row(results)[paper.HQ] == pytest.approx((90 + 91 + 92 + 93 + 50) / 5)
    assert "queue: proxy-updated (paper, table II)" in str(summary_table("mine", results))
    assert "paper" not in str(summary_table("mine", {"own_set": {"accuracy": 0.9}}))
    assert summary_row({"IJBB_N1D1F0": {"tar@far=1e-4": 0.1}, "IJBB_N1D1F1": {"tar@far=1e-4": 0.5}}) == {paper.IJBB: 50}
    assert summary_row({"IJBB": {"rank1": 0.5}}) == {}  # --protocol 1:N


# -------------------------------------------------------------------------------------------------- user mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["all", "--checkpoint", "pixels", "--data-root", "."], r"looked for \*\.bin, IJBB/, IJBC/, tinyface/, scface/"),
        (["ijb", "--data-root", "."], "give either --checkpoint RUN or --features"),
        (["ijb", "--checkpoint", "r"], "give --data-root"),
        (["ijb", "--checkpoint", "r", "--data-root", "."], r"looked for ijbb_face_tid_mid\.txt \(missing\)"),
        (["ijb", "--checkpoint", "r", "--data-root", ".", "--protocol", "both"], r"looked for .*ijbb_1N_probe_mixed\.csv"),
        (["ijb", "--features", "none.npz", "--meta", "."], r"none\.npz: cannot be read"),
        (["verify", "--checkpoint", "r", "--bins", "a/x.bin", "b/x.bin"], "two sets have the same name"),
        (["tinyface", "--checkpoint", "r", "--data-root", "."], "does not contain TinyFace"),
        (["scface", "--checkpoint", "r", "--data-root", "."], "does not contain SCface"),
    ],
)
def test_mistakes_are_explained(alone, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate([*arguments, "--json", "out.json"])


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("IJBC/loose_crop", r"IJBC release is incomplete; looked for ijbc_face_tid_mid\.txt \(missing\).*loose_crop \(found\)"),
        ("tinyface/Probes", "does not contain TinyFace; looked for"),
        ("scface/mugshots", "does not contain SCface; looked for"),
    ],
)
def test_all_does_not_skip_an_incomplete_benchmark(alone, folder, message, tmp_path):
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        evaluate(["all", "--checkpoint", "pixels", "--data-root", str(tmp_path), "--json", "out.json"])


def test_a_json_file_that_cannot_be_written_is_named(alone, tmp_path):
    if not VAL.is_dir():
        pytest.skip("needs the real faces")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--json .*out\.json: cannot be written"):
        evaluate(["scface", "--checkpoint", "r", "--data-root", str(VAL / "scface"), "--json", str(tmp_path / "file/out.json")])


def test_plots_go_to_the_run_also_for_one_of_its_checkpoints(tmp_path):
    checkpoint = tmp_path / "run/checkpoints/best"
    checkpoint.mkdir(parents=True)
    for given in (tmp_path / "run", checkpoint):
        assert plot_folder(Namespace(plots=None, checkpoint=str(given))) == tmp_path / "run/eval"
    assert plot_folder(Namespace(plots=None, checkpoint=str(tmp_path / "weights.pt"))) is None


@pytest.mark.parametrize("argument", ["--json", "--plots", "--cache"])
def test_outputs_are_checked_before_the_work(argument, tmp_path):
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "below" / "it"
    done = run(sys.executable, "-m", "eval", "tinyface", "--checkpoint", "none", "--data-root", "none", argument, str(where))
    assert done.returncode == 2 and done.stderr == f"error: {argument} {where}: cannot be written (Not a directory)\n"


def test_damaged_cached_features_are_an_error_on_all_ranks(alone, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    arguments = ["tinyface", "--data-root", str(tmp_path), "--checkpoint", str(tmp_path / "weights.pt")]
    arguments += ["--cache", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json")]
    face = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8))[1].tobytes()
    for part, name in (("Probe", "1_1"), ("Gallery_Match", "1_2"), ("Gallery_Distractor", "x")):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{name}.png").write_bytes(face)
    evaluate(arguments)
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_bytes(kept.read_bytes()[:-50])
    assert all("the cached features cannot be read" in message for message in run_world(2, error_of, arguments))


def error_of(arguments: list[str]) -> str:
    """The message of this rank's UserError; empty without one."""
    try:
        evaluate(arguments)
    except UserError as fault:
        return str(fault)
    return ""


def test_every_command_has_a_description():
    text = build_parser().format_help()
    assert len(COMMANDS) >= 5
    for name in ("verify", "ijb", "tinyface", "scface", "all"):
        assert re.search(rf"^ +{name} +\w", text, re.MULTILINE)


def test_the_nearest_command_is_named():
    for commands, given, near in ((COMMANDS, "verfy", "verify"), (PACKING, "alig", "align")):
        refuse_unknown_command([near, given], commands)
        refuse_unknown_command(["--help"], commands)
        with pytest.raises(UserError, match=f"^{given}: no such command; did you mean {near}\\?; commands: a"):
            refuse_unknown_command([given], commands)


# -------------------------------------------------------------------------------------------------- a real run


@needs_faces
def test_a_shell_script_evaluates_a_real_run_from_any_folder(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    training = [sys.executable, "train.py", "configs/lfw_qg", f"output={tmp_path}/run", f"rec={FACES}/lfw_train"]
    training += ["max_steps=1", "global_batch_size=4", "num_workers=0", "val_targets=()"]
    subprocess.run(training, cwd=ROOT, env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    command = [ROOT / "scripts/eval.sh", "scface", "run", VAL / "scface", "--json", "out.json", "--batch-size", "64"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "run (tiny)" in answer.stdout and "QGFace (paper, table IV)" in answer.stdout
    assert 0 <= json.loads((tmp_path / "out.json").read_text())["scface_d1"]["rank1"] <= 1
    assert (tmp_path / "run/eval/similarity_scface.svg").is_file()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [ROOT / "scripts/eval.sh", "all", tmp_path / "nothing", tmp_path]
    (tmp_path / "lfw.bin").write_bytes(b"")
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and "no such run" in answer.stderr and answer.stderr.count("\n") == 1
