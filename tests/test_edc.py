"""Error versus discard: against brute force, known answers, quality files, `eval quality --discard`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval.protocols.edc import DiscardCurve, discard_curve, oracle_quality, random_curve
from eval.protocols.image_lists import read_scores
from recognition.encoders.card import QualityScale
from tests.eval_commands import run_eval
from tests.test_all_pairs import write_people
from tests.test_operating import cells, write_set
from utils import dist
from utils.errors import UserError


@pytest.fixture
def alone():
    dist.start()
    yield
    dist.stop()


def some_pairs(images: int = 60, pairs: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    generator = np.random.default_rng(seed)
    listed = np.stack([generator.permutation(images)[:2] for _ in range(pairs)])
    return listed, generator.random(pairs) < 0.3, generator


@pytest.mark.parametrize("levels", [1, 3, 20, 10_000])
def test_curve_equals_brute_force(levels):
    pairs, missed, generator = some_pairs(seed=levels)
    quality = generator.integers(0, levels, 60) / 7
    curve = discard_curve(pairs, missed, quality)
    for share in np.append(np.arange(61) / 60, [0.017, 0.255]):
        # The largest number of the worst images that is at most this share and does not divide images of equal quality.
        cut = max((v for v in (*np.unique(quality), np.inf) if np.mean(quality < v) <= share + 1e-12), default=-np.inf)
        left = (quality[pairs] >= cut).all(axis=1)
        if left.any():
            assert curve.at(share) == pytest.approx(missed[left].mean(), abs=1e-12)
    fine = np.arange(300_000) / 1_000_000 + 5e-7
    expected = np.mean([curve.fnmr[np.searchsorted(curve.discarded, fine, side="right") - 1]]) * 0.3
    assert curve.partial_area(0.3) == pytest.approx(expected, abs=1e-5)


def test_scores_with_known_answers():
    # 100 disjoint pairs of 200 images; the pairs of the 10 worst images, one in each of 10 pairs, are the false non-matches.
    pairs, missed, quality = np.arange(200).reshape(-1, 2), np.arange(100) < 10, np.arange(200.0)
    quality[1:20:2] += 500  # the partners of the worst are good
    curve = discard_curve(pairs, missed, quality)
    assert [curve.at(share) for share in (0, 0.005, 0.025, 0.05, 0.5)] == pytest.approx([0.1, 9 / 99, 5 / 95, 0, 0])
    assert curve.partial_area(0.2) == pytest.approx(sum((10 - k) / (100 - k) / 200 for k in range(10)))
    oracle = discard_curve(pairs, missed, oracle_quality(pairs, missed, 200))
    np.testing.assert_allclose(oracle.fnmr, curve.fnmr[: len(oracle.fnmr)])
    assert oracle.partial_area(0.3) == pytest.approx(curve.partial_area(0.3))
    worst = discard_curve(pairs, missed, -np.arange(200.0))  # the wrong way round: only sound pairs are discarded
    assert worst.at(0.3) > 0.1 and discard_curve(pairs, missed, np.ones(200)).fnmr.tolist() == [0.1]
    assert discard_curve(pairs, missed, np.ones(200)).partial_area(0.2) == pytest.approx(0.02)


def test_random_quality_is_level():
    pairs, missed, generator = some_pairs(4000, 20_000)
    single = discard_curve(pairs, missed, generator.random(4000))
    assert abs(single.fnmr[: int(0.5 * 4000)] - missed.mean()).max() < 0.02
    mean = random_curve(pairs, missed, 4000)
    assert abs(mean.fnmr[:2000] - missed.mean()).max() < 0.004
    assert mean.partial_area(0.3) == pytest.approx(0.3 * missed.mean(), rel=0.01)


def test_oracle_is_a_greedy_cover_of_the_errors():
    pairs = np.array([[0, 1], [0, 2], [0, 3], [4, 5], [1, 2], [6, 7]])
    missed = np.array([True, True, True, True, False, False])
    quality = oracle_quality(pairs, missed, 8)
    assert quality[0] == 0 and sorted(quality[[4, 5]]) == [1, 8] and set(quality[[1, 2, 3, 6, 7]]) == {8}
    curve = discard_curve(pairs, missed, quality)
    np.testing.assert_allclose(curve.fnmr, [4 / 6, 1 / 3, 0])
    for seed in range(5):  # no random order is better
        pairs, missed, generator = some_pairs(30, 60, seed)
        best = discard_curve(pairs, missed, oracle_quality(pairs, missed, 30)).partial_area(0.3)
        assert all(best <= discard_curve(pairs, missed, generator.permutation(30)).partial_area(0.3) for _ in range(100))
    none = oracle_quality(pairs, np.zeros(len(pairs), bool), 30)
    assert set(none) == {30}


def test_quality_files(tmp_path):
    file, names = tmp_path / "q.csv", ["a/0", "a/1", "a,b"]
    file.write_text('image,score\na/1,2\n\n"a,b",-1e3\na/0,0.5\n')
    assert read_scores(file, names).tolist() == [0.5, 2, -1000]
    for text, message in {
        "image,quality\n": "line 1 is not image,score",
        "": "line 1 is not image,score",
        "image,score\na/0,1\nx,2\n": r"line 3: 'x' is not an image of the set, whose images are a/0 … a,b",
        "image,score\na/0,1,2\n": "line 2: 'a/0' is not an image",
        "image,score\na/0,1\na/0,2\n": "line 3: a/0 has a score already",
        "image,score\na/0,1\n": "2 of 3 images have no score, the first: a/1",
        "image,score\na/0,nan\n": "line 2: the score 'nan' is not a finite number",
        "image,score\na/0,inf\n": "line 2: the score 'inf' is not a finite number",
        "image,score\na/0,\n": "line 2: the score '' is not a finite number",
        'image,score\n"a/0,1\n': "is not CSV",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_scores(file, names)
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read"):
        read_scores(tmp_path / "gone.csv", names)


def write_csv(path: Path, names: list[str], scores: np.ndarray) -> Path:
    path.write_text("image,score\n" + "".join(f"{name},{score}\n" for name, score in zip(names, scores, strict=True)))
    return path


def test_command(alone, tmp_path, capsys):
    out, plots, scale = tmp_path / "out.json", tmp_path / "plots", QualityScale(400.0, 200.0, 1.0, 0.2)
    write_set(tmp_path / "a.bin", pairs=150, noise=350)
    write_set(tmp_path / "b.bin", pairs=150, noise=400, seed=1)
    names = [f"{name}/{number}" for name in "ab" for number in range(300)]
    mine = write_csv(tmp_path / "mine.csv", names, np.random.default_rng(0).random(600))
    common = ["quality", "--checkpoint", tmp_path / "x.onnx", "--json", out, "--plots", plots]
    bins = [*common, "--bins", tmp_path / "a.bin", tmp_path / "b.bin", "--discard"]
    run_eval(cells, *bins, "norm", "u", mine, quality=scale)
    shown, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert "600 images, 150 same and 150 different pairs" in shown and "FMR 1e-1: threshold" in shown
    assert list(figures) == [f"discard by {name}" for name in ("oracle", "norm", "u", "mine", "random")]
    start = figures["discard by norm"]["fnmr@discard=0%"]
    assert 0.03 < start < 0.95 and all(each["fnmr@discard=0%"] == pytest.approx(start) for each in figures.values())
    assert figures["discard by oracle"]["pauc@20%"] == min(each["pauc@20%"] for each in figures.values())
    assert figures["discard by random"]["pauc@30%"] == pytest.approx(0.3 * start, rel=0.05)
    assert (plots / "edc.png").is_file()
    with pytest.raises(UserError, match=r"--discard u: .*has no quality statistics"):
        run_eval(cells, *bins, "u")
    with pytest.raises(UserError, match="--discard: 150 different pairs cannot measure FMR 1e-2"):
        run_eval(cells, *bins, "norm", "--fmr", "0.01")
    write_people(tmp_path / "people")
    scores = write_csv(tmp_path / "people.csv", [str(number) for number in range(80)], np.arange(80))
    run_eval(cells, *common, "--all-pairs", tmp_path / "people", "--discard", scores, "--fmr", "0.01")
    figures = json.loads(out.read_text())["discard by people"]
    assert "80 images, 360 same and 2,800 different pairs" in capsys.readouterr().out and figures["pauc@20%"] >= 0


def test_steps_hold_their_value():
    curve = DiscardCurve(np.array([0.0, 0.1]), np.array([0.5, 0.25]))
    assert [curve.at(share) for share in (0, 0.09, 0.1, 0.9)] == [0.5, 0.5, 0.25, 0.25]
    assert curve.partial_area(0.2) == pytest.approx(0.075) and curve.partial_area(0.05) == pytest.approx(0.025)
