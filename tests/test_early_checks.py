"""`python -m eval`: mistakes are found before the first image is embedded, NaN is refused, names do not clash."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.feature_cache import FeatureCache
from tests.eval_commands import run_eval
from tests.pack_tools import encoded, picture, write_files
from tests.test_ijb import Release
from utils import dist
from utils.errors import UserError

FACE = encoded(picture(1))


@pytest.fixture(autouse=True)
def alone():
    dist.start()
    yield
    dist.stop()


def refused(message: str, *arguments: object) -> None:
    """The command is refused and has embedded nothing."""
    with pytest.raises(UserError, match=message):
        run_eval(embed, *arguments, "--checkpoint", "r")


def embed(images_nHWC: torch.Tensor) -> torch.Tensor:
    raise AssertionError("embeds images before everything is checked")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("2.jpg", FACE[:-40], r"2\.jpg: the image .* is truncated"),
        ("2.jpg", b"", r"2\.jpg: the image \(0 bytes\) cannot be decoded: it is empty"),
        ("deep/2.png", encoded(picture(1, 100, 112), ".png"), r"deep/2\.png: the image is 112x100, expected 112x112"),
        ("2.jpg", b"\0\0\0\x1cftypavif" + bytes(20), r"2\.jpg: .* it is AVIF, not a JPEG"),
        ("2.jpg", b"<html>not found</html>", r"2\.jpg: .* it is not a JPEG"),
    ],
)
def test_embed_checks_all_images_first(name, content, message, tmp_path):
    write_files(tmp_path / "photos", {"1.jpg": FACE, name: content})
    refused(message, "embed", tmp_path / "photos", "--out", tmp_path / "f.npz", "--batch-size", "1")
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize("threshold", ["nan", "inf", "-1.5", "2"])
def test_a_threshold_is_a_cosine(threshold, tmp_path):
    write_files(tmp_path, {"1.jpg": FACE})
    refused("must be a cosine, from -1 to 1", "compare", tmp_path / "1.jpg", tmp_path / "1.jpg", f"--threshold={threshold}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_cached_features_are_finite(value, tmp_path):
    cache = FeatureCache(tmp_path, "encoder")
    rows = np.array([[1, 2], [3, value]], np.float32)
    np.savez(cache.path("set", "source"), features=rows)
    with pytest.raises(UserError, match=r"set-\w+\.npz: the cached features are not finite numbers .*; remove the file"):
        cache.get("set", lambda: "source", lambda: pytest.fail("computed again"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda release: (release.folder / "loose_crop/299.jpg").unlink(), r"299\.jpg: cannot be read \(No such file"),
        (lambda release: (release.folder / "loose_crop/7.jpg").write_bytes(b""), r"7\.jpg: an empty file or a folder"),
        (
            lambda release: release.write("template_pair_label.txt", ["3 10 1", "3 999 0"]),
            r"label\.txt: line 2: template 999 has no images",
        ),
        (lambda release: release.write("template_pair_label.txt", ["3 10 1"]), "contains no different pairs"),
        (lambda release: release.write_csv("1N_gallery_S2.csv", [0]), "1N_"),
        (
            lambda release: release.write("1N_probe_mixed.csv", ["TEMPLATE,SUBJECT", "87,7", "999,7", "94,8"]),
            r"probe_mixed\.csv: line 3: template 999 has no images",
        ),
    ],
)
def test_ijb_is_checked_first(change, message, tmp_path):
    release = Release(tmp_path / "IJBB")
    write_files(release.folder / "loose_crop", {f"{number}.jpg": FACE for number in range(300)})
    change(release)
    refused(message, "ijb", "--data-root", release.folder)
    refused(message, "all", "--data-root", tmp_path)


def test_settings_of_ijb_are_checked_first(tmp_path):
    release = Release(tmp_path / "IJBB")
    write_files(release.folder / "loose_crop", {f"{number}.jpg": FACE for number in range(300)})
    refused("'N1D1' is not a setting", "ijb", "--data-root", release.folder, "--setting", "N1D1")


def test_sets_with_the_name_of_a_benchmark_are_refused(tmp_path):
    parts = ("Probe/1_1.jpg", "Gallery_Match/1_2.jpg", "Gallery_Distractor/x.jpg")
    write_files(tmp_path / "tinyface", dict.fromkeys(parts, FACE))
    views = [f"{person:03}_{view}.jpg" for person in (1, 2) for view in ("frontal", "cam1_1")]
    write_files(tmp_path / "scface", dict.fromkeys(views, FACE))
    for name in ("tinyface", "scface_d1"):
        (tmp_path / f"{name}.bin").write_bytes(b"")
        refused(rf"{name}\.bin: has the name of a benchmark of .*; rename it", "all", "--data-root", tmp_path)
        (tmp_path / f"{name}.bin").unlink()
