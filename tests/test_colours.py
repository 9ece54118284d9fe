"""Images in the colours of others (`colour_transfer`): the map, the batches, damaged images. Resuming: test_train.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from recognition.data import FaceDataset, RecordWriter
from recognition.data.batch import Batch, BatchSpec, sample_views
from recognition.data.colours import ColourBank, colours_of, with_colours
from recognition.data.loader import Loader
from recognition.data.records.format import RecordError
from utils.config import Config, from_base
from utils.errors import UserError
from utils.images import decode_face

BATCH = 12


def _config(demo_set, **changes) -> Config:
    return from_base(rec=str(demo_set), seed=5, output="unused", **{"num_classes": 20, "batch_size": BATCH, **changes})


def _batches(config: Config, rank: int = 0, world: int = 1, workers: int = 0, start: int = 0) -> list[Batch]:
    loader = Loader(FaceDataset(config.rec), BatchSpec.of(config, rank, world), workers)
    batches = [Batch(b.images_VBHWC.copy(), b.labels_B, b.indices_B, b.skipped) for b in loader.epoch(1, start)]
    loader.close()
    return batches


def test_an_image_takes_the_colours_of_another():
    """Against the equation in float64; greys, and images of one colour."""
    draws = np.random.default_rng(1)
    mixtures = np.eye(3) + draws.uniform(-0.4, 0.4, (2, 3, 3)), 128 + draws.uniform(-30, 30, (2, 3))
    noise = draws.uniform(-12, 12, (2, 112, 112, 3))
    image, other = (np.rint(each @ mix + mean).astype(np.uint8) for each, mix, mean in zip(noise, *mixtures, strict=True))
    x, p = (each.reshape(-1, 3).astype(np.float64) for each in (image, other))
    wanted_mean, wanted = p.mean(0), np.cov(p.T, bias=True)
    root = sqrtm(np.cov(x.T, bias=True))
    inverse = np.linalg.inv(root)
    expected = (x - x.mean(0)) @ (inverse @ sqrtm(root @ wanted @ root) @ inverse).T + wanted_mean
    assert expected.min() > 0 and expected.max() < 255  # nothing is clipped
    result = with_colours(image, *colours_of(other))
    mapped = result.reshape(-1, 3)
    assert result.dtype == np.uint8 and np.abs(mapped - expected).max() < 0.501
    np.testing.assert_allclose(mapped.mean(0), wanted_mean, atol=0.02)
    np.testing.assert_allclose(np.cov(mapped.T, bias=True), wanted, atol=0.5)
    assert np.ptp(with_colours(image, *colours_of(other[..., [1, 1, 1]])), axis=2).max() == 0
    assert (with_colours(np.full_like(image, 7), *colours_of(other)) == np.rint(wanted_mean)).all()


def test_batches(demo_set):
    """View q alone changes, with the key's probability, for any number of ranks and workers and any start."""
    whole = _batches(_config(demo_set, colour_transfer=0.5), workers=2)
    halves = [_batches(_config(demo_set, colour_transfer=0.5, batch_size=BATCH // 2), rank, 2, start=3) for rank in range(2)]
    for number, batch in enumerate(whole[3:]):
        assert np.array_equal(batch.images_VBHWC, np.concatenate([part[number].images_VBHWC for part in halves], axis=1))
    moved = []
    for batch, before in zip(whole, _batches(_config(demo_set)), strict=True):
        assert np.array_equal(batch.labels_B, before.labels_B) and np.array_equal(batch.indices_B, before.indices_B)
        differs_VB = (batch.images_VBHWC != before.images_VBHWC).any(axis=(2, 3, 4))
        assert not differs_VB[1].any()
        moved.append(differs_VB[0])
    assert np.concatenate(moved).mean() == pytest.approx(0.5, abs=0.15)


def test_colours_precede_the_augmentation(demo_set):
    """With one view, which is then only flipped, and in the report's pictures."""
    config = _config(demo_set, colour_transfer=1.0, views=1, queue="none", augmentation="none", channel_order="BGR")
    faces = FaceDataset(demo_set)
    bank = [colours_of(decode_face(faces.read(number)[0], "")) for number in range(len(faces))]

    def is_from(made, original):
        mapped = (with_colours(original, *colours) for colours in bank)
        return any(np.array_equal(made, image) or np.array_equal(made, image[:, ::-1]) for image in mapped)

    batch = _batches(config)[0]
    for index, made in zip(batch.indices_B.tolist()[:4], batch.images_VBHWC[0, :4, ..., ::-1], strict=True):
        assert is_from(made, decode_face(faces.read(index)[0], ""))
    assert all(is_from(made, original) for original, made in zip(*sample_views(config, 4), strict=True))


def test_damaged_images_lend_nothing(demo_set, tmp_path):
    faces, path = FaceDataset(demo_set), tmp_path / "train.rec"
    with RecordWriter(path) as writer:
        for number in range(3):
            writer.write(number, float(number), faces.read(number)[0] if number else b"\xff\xd8\xff")
    with pytest.raises(RecordError, match=f"{path}: .*cannot be decoded"):
        ColourBank(FaceDataset(path), 1.0)
    lent = ColourBank(FaceDataset(path, strict=False), 1.0).lend(5, 0, np.arange(100))
    assert {tuple(mean) for mean, _ in lent} == {tuple(colours_of(decode_face(faces.read(n)[0], ""))[0]) for n in (1, 2)}
    with RecordWriter(path) as writer:
        writer.write(0, 0.0, b"\xff\xd8\xff")
    with pytest.raises(UserError, match=f"{path}: none of the 1 images that should lend their colours can be read"):
        ColourBank(FaceDataset(path, strict=False), 1.0)
