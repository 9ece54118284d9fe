"""Degradation of faces and the .bin writer."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.verification import load_bin
from recognition.data.bins import write_bin
from recognition.data.degrade import degrade
from recognition.data.demo_faces import render
from utils.errors import UserError

# Degradation


def test_degrading_depends_only_on_the_generator_and_keeps_colours() -> None:
    image = render(0, 3, 0)
    kept = image.copy()
    poor = degrade(image, np.random.default_rng(5))
    assert poor.shape == image.shape and poor.dtype == np.uint8
    assert np.array_equal(poor, degrade(image, np.random.default_rng(5)))
    assert not np.array_equal(poor, degrade(image, np.random.default_rng(6)))
    assert np.array_equal(image, kept)
    assert np.abs(poor.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 8
    assert cv2.Laplacian(poor, cv2.CV_64F).var() < 0.1 * cv2.Laplacian(image, cv2.CV_64F).var()


def test_degrading_less_keeps_more() -> None:
    image = render(0, 3, 0).astype(float)
    losses = [
        np.mean([np.abs(degrade(image.astype(np.uint8), np.random.default_rng(s), side, side) - image).mean() for s in range(8)])
        for side in (8, 20, 60)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_degrading_keeps_the_shape_of_a_photo_that_is_not_square() -> None:
    assert degrade(np.full((90, 60, 3), 120, np.uint8), np.random.default_rng(0)).shape == (90, 60, 3)


@pytest.mark.parametrize(
    ("image", "low", "high"),
    [
        (np.zeros((8, 8, 3), np.float32), 14, 24),
        (np.zeros((8, 8), np.uint8), 14, 24),
        (np.zeros((8, 8, 3), np.uint8), 24, 14),
        (np.zeros((8, 8, 3), np.uint8), 0, 14),
    ],
)
def test_degrading_refuses_bad_arguments(image: np.ndarray, low: int, high: int) -> None:
    with pytest.raises(ValueError, match="expected a uint8"):
        degrade(image, np.random.default_rng(0), low, high)


# .bin files


def test_a_bin_contains_plain_values_and_is_read_back(tmp_path: Path) -> None:
    images = [bytes([value]) * (value + 1) for value in range(4)]
    write_bin(tmp_path / "a.bin", images, [True, False])
    encoded, issame = load_bin(tmp_path / "a.bin")
    assert [bytes(image) for image in encoded] == images and issame.tolist() == [True, False]
    content = (tmp_path / "a.bin").read_bytes()
    assert content[:2] == b"\x80\x04"  # pickle protocol 4

    class NothingAllowed(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            raise AssertionError(f"the file asks for {module}.{name}")

    assert NothingAllowed(io.BytesIO(content)).load() == (images, [True, False])
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_equal_pairs_give_equal_bytes_even_if_they_share_objects(tmp_path: Path) -> None:
    shared = b"one image, twice"
    write_bin(tmp_path / "a.bin", [shared, shared], list(np.ones(1, bool)))
    write_bin(tmp_path / "b.bin", [shared, bytes(bytearray(shared))], [True])
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize(
    ("images", "issame", "problem"),
    [
        ([b"a", b"b", b"c"], [True], "1 pairs need 2 images, found 3"),
        ([b"a", b""], [True], "image 1 is empty"),
    ],
)
def test_an_inconsistent_bin_is_refused(tmp_path: Path, images: list[bytes], issame: list[bool], problem: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"the old one")
    with pytest.raises(UserError, match=problem):
        write_bin(path, images, issame)
    assert path.read_bytes() == b"the old one"
    with pytest.raises(UserError, match="cannot be written"):
        write_bin(tmp_path / "absent" / "a.bin", [b"a", b"b"], [True])
