"""Damage of every kind, in the loader and in training: errors that name the place, or records that are skipped and counted."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from losses.contrastive import ContrastiveLoss
from losses.joint import JointLoss
from losses.margins.adaface import AdaFace
from losses.proxy_queue import FeatureQueue
from losses.quality import Partition, QualityStatistics
from losses.sharded_softmax import ShardedSoftmax
from recognition import build
from recognition.data import FaceDataset, RecordError, RecordReader, RecordWriter
from recognition.data.batch import BatchMaker, BatchSpec
from recognition.data.loader import Loader
from tests.commands import metrics, train
from tests.dense_reference import DenseReference
from tests.pack_tools import jpeg_claiming, png_claiming
from tests.shared_files import GOLDEN, needs_golden
from tests.world import run_world
from utils import dist
from utils.config import from_base
from utils.errors import UserError

FUZZ_SECONDS = float(os.environ.get("QGFACE_FUZZ_SECONDS", "12"))


def _copy(demo_set: Path, folder: Path) -> Path:
    shutil.copytree(demo_set, folder)
    return folder


def _flip(file: Path, at: int, mask: int = 0xFF) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= mask
    file.write_bytes(content)


def _offset(folder: Path, key: int) -> int:
    with RecordReader(folder / "train.rec") as reader:
        return int(reader.offsets[reader.position(key)])


def _spec(**changes) -> BatchSpec:
    return BatchSpec.of(from_base(**{"batch_size": 8, "num_classes": 13, "seed": 0, **changes}))


def _read_all(folder: Path, **changes) -> list:
    """Labels, indices, skipped records and images of each batch of an epoch, in order, made by a worker."""
    spec = _spec(shuffle="none", **changes)
    loader = Loader(FaceDataset(folder, strict=spec.on_error == "stop"), spec, 1)
    try:
        return [(batch.labels_B, batch.indices_B, batch.skipped, batch.images_VBHWC.copy()) for batch in loader.epoch(0)]
    finally:
        loader.close()


# -- one damaged record


DAMAGE = {
    "a length": (4, "no record|truncated|damaged"),
    "the magic": (0, "no record starts here"),
    "the first byte of the JPEG": (32, "cannot be decoded: it is not a JPEG"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_stops_or_is_skipped_and_reported(demo_set, tmp_path, kind):
    folder = _copy(demo_set, tmp_path / "set")
    place, problem = DAMAGE[kind]
    offset = _offset(folder, 17)
    sound = _read_all(folder)
    _flip(folder / "train.rec", offset + place)
    with pytest.raises(RecordError, match=problem) as caught:
        _read_all(folder)
    assert (caught.value.key, caught.value.offset) == (17, offset) and str(folder / "train.rec") in str(caught.value)
    batches = _read_all(folder, on_error="skip")
    skipped = [fault for _, _, faults, _ in batches for fault in faults]
    assert [(fault.key, fault.offset) for fault in skipped] == [(17, offset)]
    for (labels, indices, _, images), (expected, same_indices, _, expected_images) in zip(batches, sound, strict=True):
        lost = indices == 16  # image 16 is key 17
        assert np.array_equal(indices, same_indices) and (labels[lost] == -1).all() and (images[:, lost] == 128).all()
        assert np.array_equal(labels[~lost], expected[~lost]) and np.array_equal(images[:, ~lost], expected_images[:, ~lost])


def _replace(demo_set: Path, folder: Path, key: int, payload: bytes, label: float | None = None) -> Path:
    folder.mkdir()
    with RecordReader(demo_set / "train.rec") as reader, RecordWriter(folder / "train.rec") as writer:
        for number in reader.keys.tolist():
            record = reader.read(number)
            kept = record.label if record.flag else float(record.label[0])
            changed = number == key
            writer.write(number, label if changed and label is not None else kept, payload if changed else record.payload)
    return folder


@pytest.mark.parametrize("bomb", [png_claiming(60_000, 60_000), jpeg_claiming(65_000, 65_000)], ids=["PNG", "JPEG"])
def test_an_image_that_announces_gigabytes_is_refused_by_its_header(demo_set, tmp_path, bomb):
    folder = _replace(demo_set, tmp_path / "set", 3, bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    maker = BatchMaker(FaceDataset(folder), _spec(shuffle="none"))
    with pytest.raises(RecordError, match=r"key 3, .*6[05]000x6[05]000, expected 112x112"):
        maker.fill(0, 0, np.empty(maker.spec.image_shape, np.uint8))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_truncated_jpeg_is_noticed(demo_set, tmp_path):
    with RecordReader(demo_set / "train.rec") as reader:
        payload = reader.read(3).payload
    folder = _replace(demo_set, tmp_path / "set", 3, payload[: len(payload) // 2])
    with pytest.raises(RecordError, match=r"key 3, .*truncated"):
        _read_all(folder)


# -- files and folders


def test_a_shard_that_is_deleted_during_training_stays_readable(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    expected = _read_all(folder)
    loader = Loader(FaceDataset(folder), _spec(shuffle="none"), 1)
    shutil.rmtree(folder)
    found = [(batch.labels_B, batch.images_VBHWC.copy()) for batch in loader.epoch(0)]
    loader.close()
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[3], b[1]) for a, b in zip(expected, found, strict=True))


def test_a_shard_that_is_truncated_during_training(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    loader = Loader(FaceDataset(folder), _spec(shuffle="none"), 1)
    os.truncate(folder / "train.rec", _offset(folder, 20) + 50)
    with pytest.raises(RecordError, match=r"key (20|21|22|23|24|25|26), .*truncated"):
        list(loader.epoch(0))
    loader.close()


def test_files_without_records(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    index = folder / "train.idx"
    index.write_bytes(b"")
    with pytest.raises(UserError, match=r"train\.idx: the index is empty"):
        FaceDataset(folder)
    index.unlink()
    for content, problem in ((b"", "empty"), (bytes(4096), "no RecordIO record"), (b"\x89PNG" * 50, "no RecordIO record")):
        (folder / "train.rec").write_bytes(content)
        with pytest.raises(UserError, match=problem):
            FaceDataset(folder)
    with pytest.raises(UserError, match="no such file or folder"):
        FaceDataset(tmp_path / "nothing" / "here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"contains no \.rec file"):
        FaceDataset(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_an_unreadable_folder(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o000)
    with pytest.raises(UserError, match=r"cannot be read|cannot be opened"):
        FaceDataset(tmp_path / "closed")


@needs_golden
def test_the_index_of_another_file(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    shutil.copy(GOLDEN / "mxnet_insightface" / "train.idx", folder / "train.idx")
    with pytest.raises(UserError, match=r"index|no record starts here|does not fit"):
        _read_all(folder)


def test_a_flipped_digit_in_the_index(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    index = folder / "train.idx"
    lines = index.read_text().splitlines()
    key, offset = lines[30].split("\t")
    lines[30] = f"{key}\t{int(offset) ^ 4}"
    index.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"key {key}, byte offset {int(offset) ^ 4}"):
        _read_all(folder)


# -- in training


def test_skipped_records_are_counted_and_listed_equally_for_any_number_of_ranks(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    for key in (5, 6, 40):
        _flip(folder / "train.rec", _offset(demo_set, key))
    arguments = ["tests/tiny_config", f"rec={folder}", "max_steps=16", "on_error=skip", "sync_bn=True", "lr=0.001"]
    curves, lists = [], []
    for ranks in (0, 2):
        output = tmp_path / f"run{ranks}"
        done = train(*arguments, f"output={output}", ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert "epoch 2: 3 damaged records were left out; 3 different ones so far" in done.stdout
        rows = [line.split("\t") for line in (output / "skipped.txt").read_text().splitlines()]
        assert rows[0] == ["file", "key", "byte offset", "reason"]
        assert {(row[0], int(row[1]), int(row[2])) for row in rows[1:]} == {
            (str(folder / "train.rec"), key, _offset(demo_set, key)) for key in (5, 6, 40)
        }
        assert len(rows) == 4 and all("no record starts here" in row[3] for row in rows[1:])
        lists.append(sorted(map(tuple, rows)))
        curves.append([(line["loss_classification"], line["quality_mean"]) for line in metrics(output)])
    assert lists[0] == lists[1]
    assert len(curves[0]) == 16
    np.testing.assert_allclose(curves[0], curves[1], rtol=5e-3)


def test_training_on_damaged_records_only_stops(demo_set, tmp_path):
    folder = _copy(demo_set, tmp_path / "set")
    with RecordReader(demo_set / "train.rec") as reader:
        offsets = reader.offsets.tolist()
    content = bytearray((folder / "train.rec").read_bytes())
    for offset in offsets[2:-14]:  # not record 0, the first and last image, and the identities
        content[offset] ^= 0xFF
    (folder / "train.rec").write_bytes(content)
    done = train("tests/tiny_config", f"rec={folder}", "on_error=skip", "max_skipped=3", f"output={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert "every labelled record of the batch is damaged" in done.stderr and "skipped.txt" in done.stderr


@pytest.mark.parametrize(
    ("label", "problem"),
    [(13.0, r"label 13 is outside \[0, 13\)"), (-2.0, "label -2 is outside"), (-1.0, "label -1 is .*; fix the labels")],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_label_outside_the_classes_stops_before_training(demo_set, tmp_path, label, problem, on_error):
    with RecordReader(demo_set / "train.rec") as reader:
        folder = _replace(demo_set, tmp_path / "set", 9, reader.read(9).payload, label)
    dataset = FaceDataset(folder, strict=on_error == "stop")
    with pytest.raises(UserError, match=rf"key 9, .*{problem}"):
        dataset.check_labels(13)


def test_classes_without_images_are_reported_before_training(demo_set):
    config = from_base(rec=str(demo_set), num_classes=20)
    dataset = build.open_dataset(config)
    gaps = build.classes_without_images(config, dataset)
    assert f"7 of num_classes=20 classes have no image in {demo_set} (the first: 13)" in gaps
    assert build.classes_without_images(from_base(rec=str(demo_set), num_classes=13), dataset) == ""
    with pytest.raises(UserError, match="holds 104 images, but num_image=7"):
        build.open_dataset(from_base(rec=str(demo_set), num_image=7))


# -- a batch with skipped rows equals a smaller batch

CLASSES, DIM, IMAGES, STEPS = 11, 8, 12, 5
LOST = [[3], [], [0, 11, 5], [7, 8], list(range(1, 12))]  # rows without a label, by step


def _batches():
    generator = torch.Generator().manual_seed(8)
    for step in range(STEPS):
        norm = torch.rand(2, IMAGES, 1, generator=generator) * 40
        features = torch.nn.functional.normalize(torch.randn(2, IMAGES, DIM, generator=generator), dim=2) * norm
        labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
        labels[LOST[step]] = -1
        yield features, labels


def _weight() -> torch.Tensor:
    return torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(1))


def _sharded(one_step: bool) -> list[dict[str, torch.Tensor]]:
    rank, world = dist.rank_and_world()
    local = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    head = ShardedSoftmax(CLASSES, DIM, AdaFace(0.4, 64.0))
    head.weight.data.copy_(_weight()[head.shard.start : head.shard.stop])
    queue = FeatureQueue(2 * IMAGES if one_step else 40, DIM, head.shard, compensate=not one_step, one_step=one_step)
    quality, contrastive = QualityStatistics(0.333, 0.01, 20.0, 4.0), ContrastiveLoss(64.0, "paper", True)
    joint = JointLoss(head, quality, Partition(0.2), queue, contrastive, 1.0, "all")
    steps = []
    for features_VGD, labels_G in _batches():
        mine = features_VGD[:, local].clone().requires_grad_()
        joint.zero_grad()
        terms = joint(dist.gather_rows(mine), dist.gather_labels(labels_G[local]))
        terms.loss.backward()
        steps.append(
            {
                "terms": torch.stack([terms.classification, terms.contrastive]),
                "features": mine.grad / world,
                "weight": head.weight.grad.clone(),
                "statistics": torch.stack([joint.quality.mean, joint.quality.std]),
                "queue": queue.global_rows()["label"],
            }
        )
        head.weight.data.sub_(0.05 * head.weight.grad)
    return steps


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_batch_with_skipped_rows_equals_a_smaller_batch(world, one_step):
    ranks = run_world(world, _sharded, one_step)
    reference = DenseReference(_weight(), 40, compensate=not one_step, initial_std=4.0)
    for step, (features_VGD, labels_G) in enumerate(_batches()):
        kept = labels_G >= 0
        if one_step:
            reference.queue.clear()
        features = features_VGD[:, kept].double().requires_grad_()
        reference.weight.grad = None
        classification, contrastive, loss = reference.step(features, labels_G[kept])
        loss.backward()
        gradient = torch.zeros(2, IMAGES, DIM, dtype=torch.float64)
        gradient[:, kept] = features.grad
        statistics = torch.tensor([reference.norm_mean, reference.norm_std])
        for rank in ranks:
            losses = torch.stack([classification, contrastive])
            torch.testing.assert_close(rank[step]["terms"].double(), losses, rtol=2e-4, atol=2e-5)
            torch.testing.assert_close(rank[step]["statistics"], statistics, rtol=1e-4, atol=1e-5)
        found = torch.cat([rank[step]["features"] for rank in ranks], dim=1).double()
        torch.testing.assert_close(found, gradient, rtol=2e-4, atol=2e-5)
        found = torch.cat([rank[step]["weight"] for rank in ranks]).double()
        torch.testing.assert_close(found, reference.weight.grad, rtol=2e-4, atol=2e-5)
        assert torch.cat([rank[step]["queue"] for rank in ranks]).tolist() == [entry[1] for entry in reference.queue]
        reference.weight.data.sub_(0.05 * reference.weight.grad)


# -- random damage


def _mutate(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 40))):
        at = chance.randrange(max(len(data), 1))
        kind = chance.randrange(7)
        if kind == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            data[at : at + 1] = bytes([data[at] ^ 1 << chance.randrange(8)]) if data else b""
        elif kind == 2:
            del data[at : at + chance.choice((1, 4, 1000))]
        elif kind == 3:
            data[at:at] = bytes(chance.choice((1, 4, 700)))
        elif kind == 4:
            data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x0a\x23\xd7\xce", b"\xff\xff\xff\x1f", bytes(4)))
        elif kind == 5:
            del data[at:]
        else:
            other = chance.randrange(max(len(data), 1))
            data[at : at + 64] = data[other : other + 64]
    return bytes(data)


def _fuzz(folder: Path, originals: list[tuple[bytes, bytes]], seconds: float, seed: int) -> tuple[int, int, int]:
    """(rounds, rounds that raised UserError, skipped records). Any other exception fails the test."""
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    rounds = declared = skipped = 0
    while time.monotonic() < deadline:
        rounds += 1
        rec, idx = chance.choice(originals)
        what = chance.random()
        (folder / "train.rec").write_bytes(_mutate(rec, chance) if what < 0.85 else rec)
        if chance.random() < 0.1:
            (folder / "train.idx").unlink(missing_ok=True)
        else:
            (folder / "train.idx").write_bytes(_mutate(idx, chance) if what > 0.7 else idx)
        on_error = chance.choice(("stop", "skip"))
        spec = _spec(batch_size=4, num_classes=1 << 20, on_error=on_error, augmentation="none", shuffle="none")
        try:
            dataset = FaceDataset(folder, strict=on_error == "stop")
            dataset.check_labels(max(dataset.num_classes, 1))
            maker = BatchMaker(dataset, spec)
            images = np.empty(spec.image_shape, np.uint8)
            for step in range(maker.steps):
                batch = maker.fill(0, step, images)
                assert (batch.labels_B == -1).sum() == len(batch.skipped)
                skipped += len(batch.skipped)
        except UserError:
            declared += 1
    return rounds, declared, skipped


def test_random_damage_raises_only_user_errors(demo_set, tmp_path, capfd):
    """Real files, damaged thousands of times and read by a child process with a memory limit."""
    originals = [(_head(demo_set, 6, tmp_path / "small"))]
    if GOLDEN.is_dir():
        originals += [
            ((GOLDEN / name / "train.rec").read_bytes(), (GOLDEN / name / "train.idx").read_bytes())
            for name in ("mxnet_insightface", "mxnet_im2rec")
        ]
    (tmp_path / "fuzz").mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + (768 << 20),) * 2)
            counts = _fuzz(tmp_path / "fuzz", originals, FUZZ_SECONDS, seed=int(os.environ.get("QGFACE_FUZZ_SEED", "1")))
            os.write(writer, repr(counts).encode())
            status = 0
        except BaseException as fault:  # noqa: BLE001 - reported to the parent
            os.write(writer, f"{type(fault).__name__}: {fault}".encode()[:4000])
        finally:
            os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    report = os.read(reader, 4096).decode()
    os.close(reader)
    capfd.readouterr()  # warnings about rebuilt indices, and libjpeg's
    assert status == 0, report or f"the reading process ended with status {status}"
    rounds, declared, skipped = map(int, report.strip("()").split(","))
    assert rounds > 20 * FUZZ_SECONDS and declared > rounds / 10 and skipped > 0, report


def _head(demo_set: Path, images: int, folder: Path) -> tuple[bytes, bytes]:
    """The first images of the demo set, as a separate small file."""
    folder.mkdir()
    dataset = FaceDataset(demo_set)
    with RecordWriter(folder / "train.rec") as writer:
        for image in range(images):
            payload, label = dataset.read(image)
            writer.write(image, float(label), payload)
    return (folder / "train.rec").read_bytes(), (folder / "train.idx").read_bytes()
