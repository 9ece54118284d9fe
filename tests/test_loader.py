"""The loader: equal batches for any number of workers and ranks, in shared memory that does not grow with the data set."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.storage import private_bytes, sparse_set
from recognition.data import FaceDataset, RecordWriter
from recognition.data.batch import Batch, BatchMaker, BatchSpec
from recognition.data.loader import Loader
from recognition.data.prefetch import Prefetcher
from recognition.data.readahead import Readahead
from tests.pack_tools import pack
from utils.config import from_base
from utils.errors import UserError

IMAGES, CLASSES = 300, 30


def _jpeg(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC))[1].tobytes()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards with 300 different pictures, ten per class."""
    folder = tmp_path_factory.mktemp("faces")
    for shard, numbers in (("a", range(0, 170)), ("b", range(170, IMAGES))):
        with RecordWriter(folder / f"{shard}.rec") as writer:
            for number in numbers:
                writer.write(number, float(number // 10), _jpeg(number))
    return folder


def _spec(rank: int = 0, world: int = 1, **changes) -> BatchSpec:
    settings = {"batch_size": 24, "num_classes": CLASSES, "seed": 5, "queue": "none", **changes}
    return BatchSpec.of(from_base(**settings), rank, world)


def _epoch(folder: Path, workers: int, epoch: int = 1, start: int = 0, **changes) -> list[tuple[np.ndarray, ...]]:
    loader = Loader(FaceDataset(folder), _spec(**changes), workers)
    batches = [(b.images_VBHWC.copy(), b.labels_B, b.indices_B) for b in loader.epoch(epoch, start)]
    loader.close()
    return batches


def _same(left: list[tuple[np.ndarray, ...]], right: list[tuple[np.ndarray, ...]]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("shuffle", ["full", "windowed", "none"])
def test_batches_do_not_depend_on_workers_or_ranks(faces, shuffle):
    changes = {"shuffle": shuffle, "shuffle_window": 60}
    expected = _epoch(faces, 0, **changes)
    assert len(expected) == IMAGES // 24
    for workers in (1, 3):
        assert _same(_epoch(faces, workers, **changes), expected)
    for world in (2, 4):
        ranks = [_epoch(faces, 1, batch_size=24 // world, rank=rank, world=world, **changes) for rank in range(world)]
        for step, (images, labels, indices) in enumerate(expected):
            assert np.array_equal(np.concatenate([rank[step][0] for rank in ranks], axis=1), images)
            assert np.array_equal(np.concatenate([rank[step][1] for rank in ranks]), labels)
            assert np.array_equal(np.concatenate([rank[step][2] for rank in ranks]), indices)


@pytest.mark.parametrize("shuffle", ["full", "windowed"])
def test_an_epoch_can_be_resumed_anywhere_and_differs_from_the_next(faces, shuffle):
    whole = _epoch(faces, 2, shuffle=shuffle, shuffle_window=60)
    for start in (1, 5, 11):
        assert _same(_epoch(faces, 2, start=start, shuffle=shuffle, shuffle_window=60), whole[start:])
    assert not _same(_epoch(faces, 0, epoch=2, shuffle=shuffle, shuffle_window=60), whole)
    visited = np.concatenate([indices for _, _, indices in whole])
    assert len(np.unique(visited)) == 288


def test_images_labels_and_numbers_belong_together(faces):
    dataset = FaceDataset(faces)
    for images, labels, indices in _epoch(faces, 1, augmentation="none"):
        for row, index in enumerate(indices.tolist()):
            payload, label = dataset.read(index)
            assert label == labels[row] == index // 10
            decoded = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            for view in (0, 1):
                shown = images[view, row]
                assert np.array_equal(shown, decoded) or np.array_equal(shown, decoded[:, ::-1])


def test_opencv_threads_of_the_trainer_do_not_stop_the_workers(faces):
    """A forked worker that ended threads of its parent would wait for them forever."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (15, 15), 3)  # starts them
        assert _same(_epoch(faces, 2), _epoch(faces, 0)) and cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(threads)


def test_the_views_are_augmented_independently(faces):
    images = np.concatenate([images for images, _, _ in _epoch(faces, 0, augmentation="none")], axis=1)
    same = (images[0] == images[1]).all(axis=(1, 2, 3)).mean()
    assert 0.35 < same < 0.65  # two independent flips agree half of the time


@pytest.mark.parametrize("augmentation", ["none", "qgface", "adaface"])
def test_bgr_is_rgb_with_channels_reversed(faces, augmentation):
    rgb, bgr = (_epoch(faces, 0, augmentation=augmentation, channel_order=order) for order in ("RGB", "BGR"))
    for (left, *_), (right, *_) in zip(rgb, bgr, strict=True):
        assert np.array_equal(left, right[..., ::-1]) and not np.array_equal(left, right)


@pytest.mark.parametrize(
    "changes", [{}, {"augmentation": "none", "views": 1}, {"views": 1, "augmentation": "none", "channel_order": "BGR"}]
)
def test_raw_images_make_the_same_batches(faces, tmp_path, changes):
    pack("convert", faces, tmp_path / "raw", "--encoding", "raw", "--shards", 2)
    assert _same(_epoch(faces, 0, **changes), _epoch(tmp_path / "raw", 0, **changes))


def test_one_view_is_the_augmented_one(faces):
    both, one = _epoch(faces, 0), _epoch(faces, 0, views=1)
    assert all(np.array_equal(a[0][:1], b[0]) for a, b in zip(both, one, strict=True))


def test_batches_are_in_shared_memory_and_an_epoch_may_be_left_early(faces):
    loader = Loader(FaceDataset(faces), _spec(), 2)
    assert len(loader.slots) == 6 and len(loader.worker_ids) == 2
    batches = loader.epoch(1)
    first = next(batches)
    assert any(np.shares_memory(first.images_VBHWC, slot) for slot in loader.slots)
    next(batches)
    batches.close()
    again = [(b.images_VBHWC.copy(), b.labels_B, b.indices_B) for b in loader.epoch(1)]
    loader.close()
    assert _same(again, _epoch(faces, 0))


def test_too_few_images(faces):
    with pytest.raises(UserError, match="300 images are fewer than one batch of 301 x 1"):
        Loader(FaceDataset(faces), _spec(batch_size=301), 0)


def test_a_worker_that_falls_behind_changes_nothing(faces):
    """A worker that is stopped for a while makes fewer batches; the order stays the same."""
    loader = Loader(FaceDataset(faces), _spec(), 2)
    batches, seen = loader.epoch(1), []
    for number, batch in enumerate(batches):
        seen.append((batch.images_VBHWC.copy(), batch.labels_B, batch.indices_B))
        if number == 1:
            os.kill(loader.worker_ids[1], signal.SIGSTOP)
            threading.Timer(0.5, os.kill, (loader.worker_ids[1], signal.SIGCONT)).start()
    loader.close()
    assert len(seen) > 4 and _same(seen, _epoch(faces, 0))


def test_a_killed_worker_is_reported(faces):
    loader = Loader(FaceDataset(faces), _spec(), 2)
    os.kill(loader.worker_ids[1], signal.SIGKILL)
    with pytest.raises(UserError, match="died with exit code -9"):
        list(loader.epoch(0))
    loader.close()


def test_workers_end_with_the_process_that_started_them(faces, tmp_path):
    pids = tmp_path / "pids"
    child = os.fork()
    if child == 0:
        loader = Loader(FaceDataset(faces), _spec(), 2)
        pids.write_text(" ".join(map(str, loader.worker_ids)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_runs(int(pid)) for pid in pids.read_text().split()):
        time.sleep(0.05)
    assert not any(_runs(int(pid)) for pid in pids.read_text().split())


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- memory


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc/PID/smaps_rollup")
def test_workers_share_the_index(tmp_path):
    """After random reads, the private memory of a worker does not depend on the size of the index."""
    private, images = {}, [_jpeg(number) for number in range(50)]
    for records in (10_000, 2_000_000):
        dataset = FaceDataset(sparse_set(tmp_path / str(records), records, images), strict=False)
        assert len(dataset) == records
        loader = Loader(dataset, _spec(batch_size=60, num_classes=1, on_error="skip", views=1), 1)
        for _, batch in zip(range(100), loader.epoch(0), strict=False):
            assert (batch.labels_B == -1).sum() == len(batch.skipped)
        private[records] = private_bytes(loader.worker_ids[0])
        loader.close()
    index_bytes = 2 * 8 * 2_000_000
    assert private[2_000_000] - private[10_000] < index_bytes / 8, private


def test_the_loader_does_not_leak_memory(faces):
    loader = Loader(FaceDataset(faces), _spec(), 0)
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for epoch in range(3, 12):
        for _ in loader.epoch(epoch):
            pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB


# -- readahead


def test_readahead_reads_every_byte_of_the_images_once(faces):
    dataset = FaceDataset(faces)
    order = BatchMaker(dataset, _spec(shuffle="windowed", shuffle_window=60)).order
    seen = {shard.path: np.zeros(shard.size, int) for shard in dataset.shards}
    for piece in order.pieces(0, 0, 0, 1):
        for path, begin, end in dataset.byte_ranges(piece.start, piece.stop):
            seen[path][begin:end] += 1
    assert all((count == 1).all() for count in seen.values())


def test_readahead_stops_at_once(faces):
    dataset = FaceDataset(faces)
    order = BatchMaker(dataset, _spec(shuffle="windowed", shuffle_window=60)).order
    readahead = Readahead(dataset, order.pieces(0, 0, 0, 1))
    readahead.need(0)
    begin = time.perf_counter()
    readahead.close()
    assert time.perf_counter() - begin < 1
    readahead.need(10**9)  # after the end nobody waits


def test_records_out_of_order_are_read_in_the_files_order(tmp_path):
    keys = np.random.default_rng(0).permutation(200)
    with RecordWriter(tmp_path / "mixed.rec") as writer:
        for key in keys.tolist():
            writer.write(key, float(key // 10), _jpeg(key))
    dataset = FaceDataset(tmp_path / "mixed.rec")
    assert np.array_equal(dataset.file_order, keys)
    ((_, begin, end),) = dataset.byte_ranges(10, 20)
    assert (begin, end) == (dataset.shards[0].offsets[keys[10]], dataset.shards[0].offsets[keys[20]])
    batches = _epoch(tmp_path / "mixed.rec", 1, shuffle="windowed", shuffle_window=60)
    assert len(np.unique(np.concatenate([indices for *_, indices in batches]))) == 192
    assert all(np.array_equal(labels, indices // 10) for _, labels, indices in batches)


# -- prefetching to the device


@pytest.mark.parametrize("keep", [False, True])
def test_prefetching_on_the_cpu_does_not_change_batches(faces, keep):
    loader = Loader(FaceDataset(faces), _spec(), 2)
    prefetcher = Prefetcher(torch.device("cpu"), loader.slots, keep=keep)
    batches = list(prefetcher(loader.epoch(1))) if keep else []
    if not keep:
        for batch in prefetcher(loader.epoch(1)):
            assert any(np.shares_memory(batch.images_VBHWC.numpy(), slot) for slot in loader.slots)
            batches.append(Batch(batch.images_VBHWC.clone(), batch.labels_B, batch.indices_B))
    prefetcher.close()
    loader.close()
    found = [(np.asarray(b.images_VBHWC), np.asarray(b.labels_B), b.indices_B) for b in batches]
    assert _same(found, _epoch(faces, 0))
