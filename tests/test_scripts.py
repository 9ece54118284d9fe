"""run.sh and the scripts in scripts/: help, usage, exit codes, and packing from any folder with relative paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.verification import load_bin
from recognition.data import FaceDataset
from tests.commands import run
from tests.pack_tools import encoded, make_people, picture, write_files
from tests.shared_files import ROOT

POINTS = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"


@pytest.mark.parametrize("word", ["help", "-h", "--help"])
def test_run_sh_prints_its_help(word):
    done = run("./run.sh", word, VENV="/absent")
    assert (done.returncode, done.stderr) == (0, "") and "./run.sh train CONFIG [key=value]" in done.stdout
    assert done.stdout.rstrip().endswith("the number of training processes.")


def test_run_sh_names_its_commands():
    done = run("./run.sh", "trian", VENV="/absent")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown command 'trian'; known: demo")


def test_run_sh_runs_the_python_of_its_environment(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    stamp = subprocess.run(["cksum"], stdin=(ROOT / "requirements.txt").open(), capture_output=True, check=True)
    (tmp_path / ".requirements").write_bytes(stamp.stdout)
    done = run("./run.sh", "python", "-c", "import sys; print(sys.argv); sys.exit(5)", "a b", VENV=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (5, "['-c', 'a b']\n", "")


@pytest.mark.parametrize("script", ["eval.sh", "pack.sh", "ablation.sh", "train_two_nodes.sh"])
def test_scripts_print_their_usage(script, tmp_path):
    helped = run("bash", f"scripts/{script}", "--help")
    assert (helped.returncode, helped.stderr) == (0, "") and f"  scripts/{script} " in helped.stdout
    assert "set -e" not in helped.stdout and not any(line.startswith("#") for line in helped.stdout.splitlines())
    refused = run("bash", f"scripts/{script}")
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", helped.stdout)
    lost = run("bash", f"scripts/{script}", "a", "b", "c", VENV=str(tmp_path))
    assert lost.returncode == 2 and lost.stderr.startswith("error: there is no ") and "run.sh setup" in lost.stderr


@pytest.mark.parametrize(("script", "what"), [("eval.sh", "benchmark"), ("pack.sh", "kind")])
def test_an_unknown_kind_is_named(script, what):
    done = run("bash", f"scripts/{script}", "lwf", "b", "c")
    assert done.returncode == 2 and done.stderr.startswith(f"error: unknown {what} 'lwf'; known: ")


def _pack(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "eval").mkdir(exist_ok=True)  # names of the project in the current folder do no harm
    (folder / "eval/__init__.py").write_text("raise ImportError\n")
    return subprocess.run(
        [str(ROOT / "scripts/pack.sh"), *arguments], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=100
    )


def _packs(folder: Path, *arguments: str) -> None:
    done = _pack(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_people(tmp_path / "my photos", {"ann": 4, "bob": 4, "cy": 4, "deb": 4})
    monkeypatch.setenv("HELD_OUT", "0.5")
    monkeypatch.setenv("PAIRS", "10")
    (tmp_path / "points.txt").write_text("".join(f"{path} {POINTS}\n" for path in files if "1" not in path))
    _packs(tmp_path, "photos", "my photos", "out", "--landmarks", "points.txt")
    assert len(FaceDataset(tmp_path / "out/packed")) == 12 and len(list((tmp_path / "out/aligned").rglob("*.jpg"))) == 12
    assert FaceDataset(tmp_path / "out/train").num_classes == 2 and len(load_bin(tmp_path / "out/train/held_out_lq.bin")[1]) == 10
    assert _pack(tmp_path, "photos", "my photos", "out", "--landmarks", "points.txt").returncode == 2


def test_faces(tmp_path: Path) -> None:
    make_people(tmp_path / "faces", {"ann": 2, "bob": 1})
    _packs(tmp_path, "faces", "faces", "out", "--min-images", "2")
    assert len(FaceDataset(tmp_path / "out")) == 2


def test_lfw(tmp_path: Path) -> None:
    names = ["A/A_0001", "A/A_0002", "B/B_0001"]
    write_files(tmp_path / "lfw", {f"{name}.jpg": encoded(picture(number)) for number, name in enumerate(names)})
    (tmp_path / "pairs.txt").write_text("1\nA\t1\t2\nA\t1\tB\t1\n")
    (tmp_path / "points.txt").write_text("".join(f"{name}\t" + POINTS.replace(" ", "\t") + "\n" for name in names))
    _packs(tmp_path, "lfw", "lfw", "plain.bin", "pairs.txt")
    _packs(tmp_path, "lfw", "lfw", "aligned.bin", "pairs.txt", "--landmarks", "points.txt")
    for name in ("plain.bin", "aligned.bin"):
        assert np.array_equal(load_bin(tmp_path / name)[1], [True, False])


def test_benchmark_sets(tmp_path: Path) -> None:
    image = encoded(picture(1))
    names = ("Probe/7_1.jpg", "Gallery_Match/7_2.jpg", "Gallery_Distractor/9_1.jpg")
    write_files(tmp_path / "t", {name: encoded(picture(number)) for number, name in enumerate(names, 1)})
    write_files(tmp_path / "s", {"001_frontal.jpg": image, "001_cam1_2.jpg": encoded(picture(2))})
    (tmp_path / "all.txt").write_text(f"001_frontal {POINTS}\n001_cam1_2 {POINTS}\n")
    _packs(tmp_path, "tinyface", "t", "t_rec")
    _packs(tmp_path, "scface", "s", "s_rec", "--landmarks", "all.txt")
    assert len(FaceDataset(tmp_path / "t_rec")) == 3 and len(FaceDataset(tmp_path / "s_rec")) == 2
