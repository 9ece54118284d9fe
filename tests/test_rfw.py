"""`python -m eval rfw` on fixtures in both layouts; XQLFW's layout through `pack pairs`."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch

from eval.commands import rfw
from eval.verification import load_bin, ten_fold
from recognition.data.bins import write_bin
from tests.eval_commands import run_eval
from tests.pack_tools import pack
from utils import dist
from utils.errors import UserError
from utils.images.alignment import ARCFACE_TEMPLATE

PEOPLE, PAIRS = 5, 20


def picture(images_nHWC: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images_nHWC.float().mean(dim=3)[:, None], 14).flatten(1) - 128


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """RFW's folders: photographs of 150x150 pixels with landmarks, aligned ones for the Indian group."""
    root = tmp_path_factory.mktemp("rfw")
    rng = np.random.default_rng(0)
    shift = np.array([20.0, 25.0])
    for group in rfw.GROUPS:
        lists = root / "test/txts" / group
        lists.mkdir(parents=True)
        landmarks = []
        for person in range(PEOPLE):
            folder = root / "test/data" / group / f"m.0{person}x"
            folder.mkdir(parents=True)
            face = cv2.resize(rng.uniform(40, 215, (7, 7, 3)).astype(np.uint8), (112, 112), interpolation=cv2.INTER_CUBIC)
            for number in range(1, 5):
                change = cv2.resize(rng.normal(0, 60, (7, 7, 3)), (112, 112), interpolation=cv2.INTER_CUBIC)
                photo = np.clip(face + change, 0, 255).astype(np.uint8)
                if group != "Indian":
                    photo = cv2.copyMakeBorder(photo, 25, 13, 20, 18, cv2.BORDER_CONSTANT)
                file = folder / f"m.0{person}x_{number:04d}.jpg"
                cv2.imwrite(str(file), photo, [cv2.IMWRITE_JPEG_QUALITY, 98])
                points = "\t".join(f"{value:.3f}" for value in (ARCFACE_TEMPLATE + shift).reshape(-1))
                landmarks.append(f"/data/RFW/test/data/{group}/{folder.name}/{file.name}\t{person}\t{points}\n")
        same = [f"m.0{place % PEOPLE}x\t{1 + place % 2}\t{3 + place % 2}\n" for place in range(PAIRS // 2)]
        other = [f"m.0{place % PEOPLE}x\t1\tm.0{(place + 1) % PEOPLE}x\t2\n" for place in range(PAIRS // 2)]
        (lists / f"{group}_pairs.txt").write_text("".join(line for both in zip(same, other, strict=True) for line in both))
        if group != "Indian":
            (lists / f"{group}_lmk.txt").write_text("".join(landmarks))
    return root


def evaluate(root, out, *arguments: object) -> dict[str, dict[str, float]]:
    dist.start()
    run_eval(picture, "rfw", "--checkpoint", "x", "--data-root", root, "--json", out, "--plots", out.parent, *arguments)
    dist.stop()
    return json.loads(out.read_text())


def test_the_release_and_its_bins_yield_the_same_groups_and_gaps(release, tmp_path, capsys):
    found = evaluate(release, tmp_path / "release.json")
    assert set(found) == set(rfw.SETS) and (tmp_path / "roc_rfw.png").is_file()
    for images, issame in rfw.prepare(release):
        faces = torch.from_numpy(np.stack([images.load(index) for index in range(images.count)]))
        expected = ten_fold((picture(faces) + picture(faces.flip(2))).numpy(), issame)
        assert found[images.name]["accuracy"] == pytest.approx(expected.accuracy) and found[images.name]["accuracy"] > 0.7
        encoded = [cv2.imencode(".png", np.ascontiguousarray(face[..., ::-1]))[1].tobytes() for face in faces.numpy()]
        group = images.name.removeprefix("rfw_")
        write_bin(tmp_path / f"{group.title()}_test.bin", encoded, issame.tolist())
    shown = capsys.readouterr().out
    assert re.search(r"rfw_african \(ArcFace, RFW's authors\) +\| +84\.93", shown) and "best - worst" in shown
    assert re.search(r"ArcFace, RFW's authors +\| +87\.27 \| +3\.19 \| +8\.17 \| +2\.04 ", shown)
    assert evaluate(tmp_path, tmp_path / "bins.json", "--no-paper") == found
    assert "authors" not in capsys.readouterr().out
    accuracies = [found[name]["accuracy"] for name in rfw.SETS[1:]]
    assert found["rfw"]["gap"] == max(accuracies) - min(accuracies) and found["rfw"]["average"] == pytest.approx(
        np.mean(accuracies)
    )


def test_gaps_follow_from_their_definition():
    found = rfw.compare_groups({"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.9})
    assert found == pytest.approx({"average": 0.85, "std": 0.05, "gap": 0.1, "error_ratio": 2.0})
    assert "error_ratio" not in rfw.compare_groups({"a": 1.0, "b": 0.8})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "test/txts/Asian"), "does not contain RFW's Asian"),
        (lambda root: (root / "test/txts/African/African_lmk.txt").write_text("a/b.jpg\t1\t2\n"), "10 finite coordinates"),
        (lambda root: (root / "test/txts/African/African_lmk.txt").unlink(), "has no landmarks for it; align it first"),
        (lambda root: (root / "test/data/Asian/m.02x/m.02x_0001.jpg").unlink(), "Asian_pairs.txt.*is missing"),
        (lambda root: (root / "test/txts/Indian/Indian_pairs.txt").write_text("m.00x 1\n"), "line 1 is not LFW's"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(release, tmp_path, damage, message):
    shutil.copytree(release, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(UserError, match=message):
        rfw.prepare(tmp_path / "copy")


def test_xqlfws_release_becomes_a_set(release, tmp_path):
    """xqlfw_pairs.txt has LFW's format, xqlfw_aligned_112/ LFW's folders."""
    same, other = "m.00x\t1\t2\n", "m.00x\t1\tm.01x\t2\n"
    (tmp_path / "xqlfw_pairs.txt").write_text("10\t1\n" + (same + other) * 10)
    pack("pairs", tmp_path / "xqlfw_pairs.txt", release / "test/data/Indian", tmp_path / "xqlfw.bin")
    encoded, issame = load_bin(tmp_path / "xqlfw.bin")
    assert len(encoded) == 40 and issame.tolist() == [True, False] * 10
