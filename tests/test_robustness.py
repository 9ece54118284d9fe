"""`python -m eval robustness`: degradations, figures, pictures, user errors."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.commands.common import ImageSet
from eval.commands.robustness import _chosen
from eval.verification import load_bin, ten_fold
from recognition.data.bins import write_bin
from recognition.data.degrade import AXES
from tests.eval_commands import run_eval
from tests.shared_files import FACES, needs_faces
from tests.world import run_world
from utils import dist
from utils.errors import UserError
from utils.images import decode_face

HQ = FACES / "val" / "lfw_hq.bin"


def small_picture(images_nHWC: torch.Tensor) -> torch.Tensor:
    cells = torch.nn.functional.avg_pool2d(images_nHWC.float().mean(dim=3)[:, None], 14).flatten(1)
    return cells - cells.mean(dim=1, keepdim=True)


def robustness(*arguments: object) -> None:
    run_eval(small_picture, "robustness", *arguments)


def _figures(out: Path, *arguments: object) -> dict[str, dict[str, float]]:
    robustness("a", "b", "--bins", HQ, "--json", out, "--plots", out.parent, *arguments)
    dist.barrier()
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", AXES)
def test_a_degradation_keeps_shape_grows_and_repeats(name):
    axis = AXES[name]
    rng = np.random.default_rng(0)
    image = np.clip(np.cumsum(np.cumsum(rng.normal(0, 1, (112, 112, 3)), 0), 1) / 3 + 128, 0, 255).astype(np.uint8)
    found = {level: axis(image, level, 5) for level in axis.levels}
    assert axis.unchanged in axis.levels and np.array_equal(found[axis.unchanged], image)
    assert all(each.shape == image.shape and each.dtype == np.uint8 for each in found.values())
    assert all(np.array_equal(axis(image, level, 5), found[level]) for level in axis.levels)
    errors = [np.abs(found[level].astype(float) - image).mean() for level in axis.levels]
    place = axis.levels.index(axis.unchanged)
    assert np.all(np.diff(errors[place:]) > 0) and np.all(np.diff(errors[: place + 1]) < 0)
    if name in ("noise", "rotation", "misalignment"):
        assert any(not np.array_equal(axis(image, axis.levels[-1], 5), axis(image, axis.levels[-1], other)) for other in range(4))


@needs_faces
def test_figures_follow_from_their_definition_on_any_number_of_ranks(tmp_path):
    arguments = ("--axes", "resolution", "blur", "--pairs", 60, "--far", 0.1)
    found = run_world(2, _figures, tmp_path / "two.json", *arguments)[0]
    dist.start()
    assert _figures(tmp_path / "one.json", *arguments) == found
    dist.stop()
    assert {key.split("/")[0] for key in found} == {"a", "b"} and len(found) == 2 * (8 + 6)
    assert found["a/lfw_hq/resolution=112"] == found["a/lfw_hq/blur=0"]  # as they are

    encoded, issame = load_bin(HQ)
    kept = np.arange(60) * 10  # of 600 pairs
    faces = [AXES["blur"](decode_face(encoded[2 * pair + member], ""), 3, 2 * place + member)
             for place, pair in enumerate(kept) for member in (0, 1)]  # fmt: skip
    images = torch.from_numpy(np.stack(faces))
    rows = (small_picture(images) + small_picture(images.flip(2))).numpy()
    expected = ten_fold(rows, issame[kept])
    figures = found["b/lfw_hq/blur=3"]
    assert figures["accuracy"] == pytest.approx(expected.accuracy) and figures["pairs"] == 60
    assert figures["tar@far=0.1"] == pytest.approx(expected.roc.tar_at_far(0.1))
    assert figures["norm"] == pytest.approx(np.linalg.norm(small_picture(images), axis=1).mean(), rel=1e-5)
    assert (tmp_path / "robustness_lfw_hq.png").is_file() and (tmp_path / "robustness_lfw_hq.svg").is_file()


@needs_faces
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "--bins", HQ, "--far", 1e-4), "--far 0.0001: lfw_hq has 300 different pairs"),
        (("a", "--bins", HQ, "--far", 2), "use a larger rate below 1"),
        (("a", "a", "--bins", HQ), "the same encoder twice"),
        (("a", "--bins", HQ, "--pairs", 6, "--far", 0.9), "needs at least 10"),
        (("a", "--bins", HQ, HQ), "two sets have the same name"),
        (("a", "--bins", "/absent.bin"), "absent"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(UserError, match=message):
        robustness(*arguments)


def test_some_pairs_have_the_kinds_of_all():
    """Also if the two kinds alternate, as they do in some sets."""
    images = ImageSet("set", 4000, lambda index: np.array(index), [])
    for issame in (np.arange(2000) % 2 == 0, np.arange(2000) < 500):
        chosen, kinds = _chosen(images, issame, Namespace(pairs=100, far=0.1))
        assert len(kinds) == 100 and kinds.mean() == issame.mean() and chosen.count == 200
        rows = [int(chosen.load(index)) for index in range(200)]
        assert rows == sorted(set(rows)) and rows[1::2] == [row + 1 for row in rows[::2]]
        assert np.array_equal(issame[np.array(rows[::2]) // 2], kinds)


def test_a_set_of_one_kind_of_pairs_is_refused(tmp_path):
    encoded = [b"x"] * 20
    write_bin(tmp_path / "same.bin", encoded, [True] * 10)
    with pytest.raises(UserError, match="same"):
        robustness("a", "--bins", tmp_path / "same.bin")
