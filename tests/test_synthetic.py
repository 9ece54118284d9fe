"""Random images and labels: a function of seed and sizes, the same for all ranks and workers, and never mistaken for data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recognition import build
from recognition.data.batch import BatchSpec, sample_views
from recognition.data.fingerprint import fingerprint
from recognition.data.loader import Loader
from recognition.data.sets.synthetic import SyntheticFaces
from tests.commands import metrics, train
from utils.config import from_base
from utils.errors import UserError

SIZES = ("rec=synthetic", "num_classes=13", "num_image=104")


def _settings(**changes):
    return from_base(**{"rec": "synthetic", "num_classes": 5, "num_image": 48, "batch_size": 8, "seed": 1, **changes})


def test_images_are_a_function_of_seed_and_sizes():
    faces = build.open_dataset(_settings())
    assert (len(faces), faces.num_classes, sorted(np.bincount(faces.labels()))) == (48, 5, [9, 9, 10, 10, 10])
    assert sorted(SyntheticFaces(4, 100, 1).labels()) == [0, 25, 50, 75]
    assert fingerprint(faces) == fingerprint(SyntheticFaces(48, 5, 1))
    assert len({str(fingerprint(SyntheticFaces(*sizes))) for sizes in ((48, 5, 1), (48, 5, 2), (47, 5, 1), (48, 6, 1))}) == 4
    payloads = [faces.read(image)[0] for image in range(48)]
    assert len(set(payloads)) == 48 and 4000 < np.mean([len(payload) for payload in payloads]) < 7000
    assert [faces.read(image)[1] for image in range(48)] == faces.labels().tolist()
    assert sample_views(_settings(), 4)[0].shape == (4, 112, 112, 3)


@pytest.mark.parametrize("shuffle", ["full", "windowed", "none"])
def test_ranks_and_workers_divide_the_same_batches(shuffle):
    def rows(world, workers):
        config = _settings(shuffle=shuffle, batch_size=8 // world, shuffle_window=1000)
        loaders = [Loader(build.open_dataset(config), BatchSpec.of(config, rank, world), workers) for rank in range(world)]
        batches = [
            [(batch.images_VBHWC.copy(), batch.labels_B.copy(), batch.indices_B.copy()) for batch in loader.epoch(1, 2)]
            for loader in loaders
        ]
        for loader in loaders:
            loader.close()
        by_image = {}
        for images, labels, indices in (batch for rank in batches for batch in rank):
            by_image |= {index: (labels[row], images[:, row].tobytes()) for row, index in enumerate(indices.tolist())}
        return by_image

    one = rows(1, 0)
    assert len(one) == 32 and one == rows(2, 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_image": 0}, r"set num_image \(now 0\) and num_classes \(now 5"),
        ({"num_classes": 0}, r"such as num_image=100000 num_classes=93431"),
        ({"num_classes": 1}, "at least 2"),
        ({"num_image": 10**12}, "at most 2147483648 synthetic images"),
        ({"num_classes": 1 << 25}, "labels are stored as float32"),
    ],
)
def test_sizes_are_checked(changes, problem):
    with pytest.raises(UserError, match=problem):
        build.open_dataset(_settings(**changes))


def test_training_resumes_and_the_log_says_that_the_data_are_random(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ("tests/tiny_config.py", *SIZES, "save_every=2", "val_targets=()")
    done = train(*common, "max_steps=4", f"output={whole}", ranks=2)
    assert done.returncode == 0, done.stderr
    assert "synthetic: 104 images, 13 classes" in done.stdout and "images and labels are RANDOM" in done.stdout
    for steps in (2, 4):
        done = train(*common, f"max_steps={steps}", "num_workers=0", f"output={parts}", ranks=2)
        assert done.returncode == 0, done.stderr
    assert [line["loss"] for line in metrics(parts)] == [line["loss"] for line in metrics(whole)]
    other = train(*common[:1], "rec=synthetic", "num_classes=13", "num_image=120", "max_steps=5", f"output={parts}")
    assert other.returncode == 2 and "num_image=104, now num_image=120" in other.stderr
    assert json.loads((whole / "config.json").read_text())["rec"] == "synthetic"
