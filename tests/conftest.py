"""A small real set that every test can train on: procedural faces, packed once per test run. Skips GPU tests without a GPU."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from recognition.data import FaceDataset
from recognition.data.demo_faces import make_demo_set

os.environ["VENV"] = sys.prefix  # the environment that scripts/*.sh use

for number in (signal.SIGINT, signal.SIGHUP):  # ignored under `nohup … &`, which the commands that are tested would inherit
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.rec (13 identities, 104 images) and demo_hq.bin, demo_mixed.bin, demo_lq.bin (20 pairs each)."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    make_demo_set(folder, identities=13, images_per_identity=8, unseen=6, pairs=20, workers=2)
    return folder


@pytest.fixture(scope="session")
def unlabelled(demo_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 faces without labels."""
    folder, faces = tmp_path_factory.mktemp("unlabelled"), FaceDataset(demo_set)
    for number in range(20):
        (folder / f"{number:02d}.jpg").write_bytes(faces.read(5 * number)[0])
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
