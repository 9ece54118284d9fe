"""Search in a gallery against plain loops: ranks with ties, TPIR, the pooled variant, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.protocols import identification
from eval.protocols.bootstrap import rank_interval
from eval.protocols.identification import NOBODY, pooled_metrics, search, search_metrics
from utils.errors import UserError


def faces(probes: int, gallery: int, identities: int, dim: int = 8, noise: float = 0.8, seed: int = 0):
    """Features of noisy identities; the gallery contains some identities several times and others not at all."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(identities, dim))
    probe_ids = generator.integers(0, identities, probes)
    gallery_ids = generator.integers(identities // 3, identities + 5, gallery)

    def show(ids):
        known = centres[np.minimum(ids, identities - 1)] + noise * generator.normal(size=(len(ids), dim))
        return (known * generator.uniform(0.1, 30, (len(ids), 1))).astype(np.float32)

    return show(probe_ids), probe_ids, show(gallery_ids), gallery_ids


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = math.sqrt(float(np.sum(a * a))) * math.sqrt(float(np.sum(b * b)))
    return float(np.sum(a * b)) / lengths if lengths else 0.0


def plain_search(probes, probe_ids, gallery, gallery_ids):
    """(best mate, best other, rank) of each probe, one comparison at a time."""
    rows = []
    for probe, identity in zip(probes, probe_ids, strict=True):
        scores = [cosine(probe, entry) for entry in gallery]
        mates = [score for score, owner in zip(scores, gallery_ids, strict=True) if owner == identity]
        others = [score for score, owner in zip(scores, gallery_ids, strict=True) if owner != identity]
        best = max(mates, default=NOBODY)
        rank = 1 + sum(score >= best - 1e-12 for score in others) if mates else 0
        rows.append((best, max(others, default=NOBODY), rank))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("blocks", [(1024, 2048), (7, 13)])
@pytest.mark.parametrize("most_in_doubt", [0.0, 1.0])
def test_search_equals_a_plain_loop(seed, blocks, most_in_doubt, monkeypatch):
    monkeypatch.setattr(identification, "_MAX_UNCERTAIN", most_in_doubt)
    monkeypatch.setattr(identification, "_PROBES_AT_ONCE", blocks[0])
    monkeypatch.setattr(identification, "_GALLERY_AT_ONCE", blocks[1])
    data = faces(60, 90, 30, seed=seed)
    found = search(*data)
    best, other, rank = plain_search(*data)
    np.testing.assert_allclose(found.mate_score, best, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.other_score, other, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(found.rank, rank)
    assert 0 < found.mated.sum() < 60  # both kinds of probes are there
    for most in (1, 5, 20):
        assert found.rank_rate(most) == np.mean([r <= most for r in rank if r])
        assert found.cmc(20)[most - 1] == pytest.approx(found.rank_rate(most), abs=1e-15)


@pytest.mark.parametrize("most_in_doubt", [0.0, 1.0])  # all products in float64, or only those in doubt
def test_differences_below_float32_are_ordered(most_in_doubt, monkeypatch):
    monkeypatch.setattr(identification, "_MAX_UNCERTAIN", most_in_doubt)
    # Gallery entries on a circle, apart by an angle whose cosines float32 cannot tell from one another.
    angles = 0.5 + 1e-9 * np.arange(50)
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    probe = np.array([[1.0, 0.0]])
    for mate in (0, 1, 23, 49):
        ids = np.zeros(50, int)
        ids[mate] = 1
        assert search(probe, np.array([1]), gallery, ids).rank.tolist() == [mate + 1]


def test_an_encoder_that_sees_no_difference_finds_nobody():
    same = np.ones((20, 4), np.float32)
    found = search(same, np.arange(20), same, np.arange(20))
    assert found.rank.tolist() == [20] * 20
    assert search(np.zeros((2, 4)), np.arange(2), np.zeros((3, 4)), np.arange(3)).rank_rate(1) == 0.0


@pytest.mark.parametrize("fpir", [0.0, 0.01, 0.1, 0.25, 0.29, 1.0])
def test_tpir_equals_its_definition(fpir):
    found = search(*faces(200, 90, 30, noise=1.2, seed=4))
    strangers = found.other_score[~found.mated]
    thresholds = [t for t in [NOBODY, *strangers] if np.mean(strangers > t) <= fpir + 1e-12]
    assert found.tpir(fpir) == np.mean(found.mate_score[found.mated] > min(thresholds))


def test_pooled_variant_equals_insightfaces_arithmetic():
    generator = np.random.default_rng(5)
    gallery_ids = generator.permutation(40) + 100
    centres = generator.normal(size=(40, 8))
    gallery = centres + 0.5 * generator.normal(size=centres.shape)
    owner = generator.integers(0, 40, 230)
    probes, probe_ids = centres[owner] + generator.normal(size=(230, 8)), gallery_ids[owner]
    metrics = pooled_metrics(
        search(probes, probe_ids, gallery, gallery_ids), probes, probe_ids, gallery, gallery_ids, (1, 5, 10), (0.01, 0.1)
    )

    own, others, hits = [], [], {1: 0, 5: 0, 10: 0}
    for probe, identity in zip(probes, probe_ids, strict=True):
        scores = [cosine(probe, entry) for entry in gallery]
        mate = gallery_ids.tolist().index(identity)
        own.append(scores[mate])
        others += [score for index, score in enumerate(scores) if index != mate]
        for rank in hits:
            hits[rank] += mate in sorted(range(40), key=lambda entry: -scores[entry])[:rank]
    others.sort(reverse=True)
    for rank, count in hits.items():
        assert metrics[f"pooled_rank{rank}"] == count / 230
    for far in (0.01, 0.1):
        threshold = others[math.ceil(far * 230) - 1]
        assert metrics[f"pooled_tpr@far={far:g}"] == np.mean([score > threshold for score in own])


def test_pooled_variant_needs_one_mate_each():
    features = np.eye(4)
    found = search(features, np.arange(4), features, np.array([0, 1, 2, 2]))
    with pytest.raises(UserError, match="subject 2 of the probes occurs 2 times in both galleries"):
        pooled_metrics(found, features, np.arange(4), features, np.array([0, 1, 2, 2]), (1,), (0.1,))


def test_metrics_are_named():
    found = search(*faces(60, 90, 30))
    metrics = search_metrics(found, (1, 5), (0.1,))
    assert list(metrics) == ["rank1", "rank5", "tpir@fpir=0.1", "mated_probes", "unmated_probes"]
    assert metrics["mated_probes"] + metrics["unmated_probes"] == 60


def test_rank_interval_agrees_with_resampling_probe_by_probe():
    """For one gallery, and for the mean of two with different numbers of mated probes."""
    generator = np.random.default_rng(5)
    found = [search(*faces(probes, 60, 30, noise=1.5, seed=seed)) for seed, probes in enumerate((150, 400))]
    for searches in (found[:1], found):
        hits = [each.rank[each.mated] <= 5 for each in searches]
        drawn = [np.mean([generator.choice(each, len(each)).mean() for each in hits]) for _ in range(2000)]
        low, high = rank_interval(searches, 5, 4000)
        np.testing.assert_allclose((low, high), np.quantile(drawn, [0.025, 0.975]), atol=0.015)
        assert 0.03 < low < np.mean([each.rank_rate(5) for each in searches]) < high < 1


def test_bad_input_is_named():
    features = np.eye(3, dtype=np.float32)
    broken = features.copy()
    broken[1, 1] = np.nan
    with pytest.raises(UserError, match="set, gallery: the feature in row 1 is not finite"):
        search(features, np.arange(3), broken, np.arange(3), "set")
    with pytest.raises(UserError, match="2 ids"):
        search(features, np.arange(2), features, np.arange(3))
    with pytest.raises(UserError, match=r"\(0, 3\)"):
        search(features[:0], np.arange(0), features, np.arange(3))
    apart = search(features, np.arange(3), features, np.arange(3) + 10)
    with pytest.raises(UserError, match="no probe has a mate"):
        apart.rank_rate(1)
    with pytest.raises(UserError, match="there are none"):
        search(features, np.arange(3), features, np.arange(3)).tpir(0.1)
