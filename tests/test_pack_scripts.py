"""The shell wrappers: they run from any folder with relative paths, and hand on the exit code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from eval.verification import load_bin
from recognition.data import FaceDataset
from tests.pack_tools import encoded, make_people, picture, write_files
from tests.shared_files import ROOT

POINTS = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"


def _script(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ROOT / "scripts" / name), *arguments], cwd=folder, capture_output=True, text=True, timeout=100)


def _succeeds(folder: Path, name: str, *arguments: str) -> None:
    done = _script(folder, name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_photos_to_rec(tmp_path: Path) -> None:
    files = make_people(tmp_path / "my photos", {"ann": 2, "bob": 1})
    (tmp_path / "points.txt").write_text("".join(f"{path} {POINTS}\n" for path in files if "1" not in path))
    _succeeds(tmp_path, "photos_to_rec.sh", "my photos", "out", "--landmarks", "points.txt")
    assert len(FaceDataset(tmp_path / "out/packed")) == 2 and len(list((tmp_path / "out/aligned").rglob("*.jpg"))) == 2
    assert _script(tmp_path, "photos_to_rec.sh", "my photos", "out", "--landmarks", "points.txt").returncode == 2


def test_folder_to_rec(tmp_path: Path) -> None:
    make_people(tmp_path / "faces", {"ann": 2, "bob": 1})
    _succeeds(tmp_path, "folder_to_rec.sh", "faces", "out", "--min-images", "2")
    assert len(FaceDataset(tmp_path / "out")) == 2


def test_lfw_to_bin(tmp_path: Path) -> None:
    names = ["A/A_0001", "A/A_0002", "B/B_0001"]
    write_files(tmp_path / "lfw", {f"{name}.jpg": encoded(picture(number)) for number, name in enumerate(names)})
    (tmp_path / "pairs.txt").write_text("1\nA\t1\t2\nA\t1\tB\t1\n")
    (tmp_path / "points.txt").write_text("".join(f"{name}\t" + POINTS.replace(" ", "\t") + "\n" for name in names))
    _succeeds(tmp_path, "lfw_to_bin.sh", "lfw", "pairs.txt", "plain.bin")
    _succeeds(tmp_path, "lfw_to_bin.sh", "lfw", "pairs.txt", "aligned.bin", "--landmarks", "points.txt")
    for name in ("plain.bin", "aligned.bin"):
        assert np.array_equal(load_bin(tmp_path / name)[1], [True, False])


def test_benchmark_sets(tmp_path: Path) -> None:
    image = encoded(picture(1))
    write_files(tmp_path / "t", {"Probe/7_1.jpg": image, "Gallery_Match/7_2.jpg": encoded(picture(2)),
                                 "Gallery_Distractor/9_1.jpg": encoded(picture(3))})  # fmt: skip
    write_files(tmp_path / "s", {"001_frontal.jpg": image, "001_cam1_2.jpg": encoded(picture(2))})
    (tmp_path / "all.txt").write_text(f"001_frontal {POINTS}\n001_cam1_2 {POINTS}\n")
    _succeeds(tmp_path, "tinyface_to_rec.sh", "t", "t_rec")
    _succeeds(tmp_path, "scface_to_rec.sh", "s", "s_rec", "all.txt")
    assert len(FaceDataset(tmp_path / "t_rec")) == 3 and len(FaceDataset(tmp_path / "s_rec")) == 2
