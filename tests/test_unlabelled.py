"""Unlabelled images in the batches: composition, order, reading, refusals. The losses: test_world_invariance.py; resuming and
numbers of ranks: test_train.py and test_changing_ranks.py."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from recognition.data import FaceDataset, RecordWriter
from recognition.data.batch import Batch, BatchSpec, build_order
from recognition.data.fingerprint import difference, fingerprint
from recognition.data.loader import Loader
from recognition.data.order import FullShuffle, MixedOrder, WindowedShuffle
from recognition.data.sets.unlabelled import open_unlabelled
from tests.shared_files import FACES
from utils.config import Config, from_base
from utils.errors import UserError
from utils.labels import UNLABELLED, UNREADABLE

PER_EPOCH, LABELLED, OTHERS, BATCH = 11, 104, 20, 12  # floor(104 / 9) batches of 9 labelled and 3 unlabelled images


def _config(demo_set, folder, **changes) -> Config:
    settings = {"batch_size": BATCH, "num_classes": 13, "seed": 5, "unlabelled": str(folder), **changes}
    return from_base(rec=str(demo_set), **settings)


def _loader(config: Config, rank: int = 0, world: int = 1, workers: int = 0) -> Loader:
    unlabelled = open_unlabelled(config.unlabelled, strict=config.on_error == "stop")
    return Loader(FaceDataset(config.rec), BatchSpec.of(config, rank, world), workers, unlabelled)


def _batches(config: Config, epoch: int, rank: int = 0, world: int = 1, workers: int = 0) -> list[Batch]:
    loader = _loader(config, rank, world, workers)
    batches = [Batch(b.images_VBHWC.copy(), b.labels_B, b.indices_B, b.skipped) for b in loader.epoch(epoch)]
    loader.close()
    return batches


@pytest.mark.parametrize("shuffle", ["full", "windowed", "none"])
def test_every_image_is_visited(demo_set, unlabelled, shuffle):
    """Labelled images once per epoch; unlabelled ones once per round of floor(20 / 3) batches, whatever the epoch."""
    spec = BatchSpec.of(_config(demo_set, unlabelled, shuffle=shuffle))
    order = build_order(FaceDataset(demo_set), spec, open_unlabelled(str(unlabelled), strict=True))
    assert order.steps == PER_EPOCH
    positions = np.arange(PER_EPOCH * BATCH)
    images = np.concatenate([order(epoch, positions).reshape(-1, BATCH) for epoch in range(6)])
    assert ((images >= LABELLED) == (np.arange(BATCH) % 4 == 3)).all()  # spread evenly over the batch
    for epoch in np.split(images, 6):
        assert len(np.unique(epoch[epoch < LABELLED])) == PER_EPOCH * 9
    rounds = images[images >= LABELLED].reshape(-1, 6 * 3) - LABELLED
    assert all(len(np.unique(visited)) == 18 and visited.max() < OTHERS for visited in rounds)
    assert np.array_equal(images[13], order(1, 2 * BATCH + np.arange(BATCH)))  # a function of (epoch, position)


@pytest.mark.parametrize(("labelled", "unlabelled_count", "world"), [(90, 6, 2), (64, 32, 4), (70, 26, 3), (1, 95, 3)])
def test_ranks_have_equal_parts_and_read_ahead_their_own(labelled, unlabelled_count, world):
    order = MixedOrder(WindowedShuffle(30_000, labelled, 5, 4000), FullShuffle(500, unlabelled_count, 5), 30_000)
    rows = np.arange(96).reshape(world, -1)
    counts = []
    for rank in range(world):
        images = order(1, 96 * np.arange(40)[:, None] + rows[rank])
        counts.append((images[0] >= 30_000).sum())
        pieces = order.pieces(1, 0, rank, world)
        assert pieces is not None
        read = [
            image for piece in pieces for image in range(piece.start, piece.stop)
        ]  # nothing, if all its images are unlabelled
        assert np.isin(images[images < 30_000], read).all()
    assert sum(counts) == unlabelled_count and max(counts) - min(counts) <= 1


def test_batches_depend_neither_on_ranks_nor_workers(demo_set, unlabelled):
    config = _config(demo_set, unlabelled)
    whole = _batches(config, epoch=2, workers=2)
    assert len(whole) == PER_EPOCH
    parts = [_batches(_config(demo_set, unlabelled, batch_size=4), 2, rank, 3) for rank in range(3)]
    crops = open_unlabelled(str(unlabelled), strict=True)
    for number, batch in enumerate(whole):
        assert np.array_equal(batch.images_VBHWC, np.concatenate([part[number].images_VBHWC for part in parts], axis=1))
        assert np.array_equal(batch.labels_B, np.concatenate([part[number].labels_B for part in parts]))
        without_label = batch.labels_B < 0
        assert without_label.sum() == 3
        assert np.array_equal(batch.labels_B[without_label], UNLABELLED - (batch.indices_B[without_label] - LABELLED))
    assert _loader(config).maker.record(LABELLED + 4) == (crops.where(4), 4)


def test_records_and_folders_are_the_same(demo_set, unlabelled, tmp_path):
    """The labels of the records mean nothing: some are not even labels."""
    crops = open_unlabelled(str(unlabelled), strict=True)
    with RecordWriter(tmp_path / "crops.rec") as writer:
        for number in range(OTHERS):
            writer.write(number, (0.5, -7.0, 1e9)[number % 3], crops.read(number)[0])
    from_folder, from_records = (_batches(_config(demo_set, path), 0) for path in (unlabelled, tmp_path / "crops.rec"))
    for one, other in zip(from_folder, from_records, strict=True):
        assert np.array_equal(one.images_VBHWC, other.images_VBHWC) and np.array_equal(one.labels_B, other.labels_B)


def test_damaged_images(demo_set, unlabelled, tmp_path):
    folder = shutil.copytree(unlabelled, tmp_path / "crops")
    damaged = sorted(folder.iterdir())[7]
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{damaged}: .*cannot be decoded"):
        _batches(_config(demo_set, folder), 0)
    batches = _batches(_config(demo_set, folder, on_error="skip"), 0)
    faults = [fault for batch in batches for fault in batch.skipped]
    assert faults and {fault.path for fault in faults} == {str(damaged)}
    assert sum((batch.labels_B == UNREADABLE).sum() for batch in batches) == len(faults)


def test_refusals(demo_set, unlabelled, tmp_path):
    def refused(text: str, path=unlabelled, **changes) -> None:
        config = _config(demo_set, path, **changes)
        with pytest.raises(UserError, match=text) as caught:
            _loader(config)
        assert len(caught.value.args) == 1

    refused("unlabelled_share=0.01: 0 of the 12 images of a batch", unlabelled_share=0.01)
    refused("12 of the 12 images", unlabelled_share=0.99)
    refused(f"24 of the 36 images .* not exceed the {OTHERS} images", unlabelled_share=2 / 3, batch_size=36)
    refused("no such file or folder", tmp_path / "absent")
    (tmp_path / "none").mkdir()
    refused("contains neither images nor .rec files", tmp_path / "none")
    nested = shutil.copytree(unlabelled, tmp_path / "nested")
    (nested / "anna").mkdir()
    refused("one flat folder, but it has subfolders .*anna.* or use rec=", nested)
    large = shutil.copytree(unlabelled, tmp_path / "large")
    cv2.imwrite(str(large / "0.png"), np.zeros((250, 250, 3), np.uint8))
    refused(
        "0.png: the image has 250x250 pixels, expected 112x112; align the faces: python -m recognition.data.pack align", large
    )
    for views in (1, 2):
        with pytest.raises(UserError, match="only contrasted, and queue='none' leaves that out") as caught:
            _config(demo_set, unlabelled, queue="none", views=views)
        assert len(caught.value.args) == 1


def test_other_images_are_noticed(demo_set, unlabelled, tmp_path):
    dataset, crops = FaceDataset(demo_set), open_unlabelled(str(unlabelled), strict=True)
    fewer = shutil.copytree(unlabelled, tmp_path / "fewer")
    sorted(fewer.iterdir())[0].unlink()
    before = fingerprint(dataset, crops)
    assert not difference(before, fingerprint(dataset, open_unlabelled(str(unlabelled), strict=True)))
    found = difference(before, fingerprint(dataset, open_unlabelled(str(fewer), strict=True)))
    assert "the number of unlabelled images (20, now 19), the bytes of 64 unlabelled images" in found


def test_shared_crops():
    folder = FACES / "camera/unlabelled"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    crops = open_unlabelled(str(folder), strict=True)
    assert len(crops) == 2072 and crops.read(2071)[0][:2] == b"\xff\xd8"
