"""The loader: uint8 batches of decoded, augmented views, made by worker processes in shared memory.

What a batch holds is a function of (seed, epoch, position) only; ranks and workers merely divide the positions:

    epoch e of n images = floor(n / G) batches; batch b = positions b*G .. (b+1)*G of the epoch's permutation;
    rank r of W takes the r-th of the W equal parts of it.

Workers are forked once and live until `close`. Each owns two batch-sized slots of anonymous shared memory and writes
decoded images straight into them, so no image is copied between processes; the consumer reads a slot in place and the
slot goes back to its worker when the next batch is asked for.

Shapes: B images a rank, G = W*B, V views. View 0 is q (augmented), view 1 is k (flip only).
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import cv2
import numpy as np

from recognition.data.augment import AUGMENTATIONS, UNIFORMS
from recognition.data.dataset import FaceDataset
from recognition.data.randomness import Permutation, uniforms
from utils.errors import UserError

IMAGE_SIZE = 112
_SLOTS = 2  # per worker: one being read while the other is being filled


@dataclass(frozen=True)
class BatchSpec:
    """What the loader's batches hold.

    batch_size: B, images of one rank. augmentation: of view q, a name in `AUGMENTATIONS`. views: 2 for (q, k), 1 for q alone.
    num_classes: labels must lie in [0, num_classes). channel_order: "RGB" or "BGR", of the images handed over.
    """

    batch_size: int
    num_classes: int
    seed: int = 0
    views: int = 2
    augmentation: str = "qgface"
    shuffle: str = "full"
    channel_order: str = "RGB"
    rank: int = 0
    world: int = 1

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.views, self.batch_size, IMAGE_SIZE, IMAGE_SIZE, 3)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch. `images_VBHWC` (uint8) is shared memory, valid until the next batch is asked for;
    `labels_B` is int64; `indices_B` (int64) are the images' numbers in the data set."""

    images_VBHWC: np.ndarray
    labels_B: np.ndarray
    indices_B: np.ndarray


class BatchMaker:
    """Makes any batch of any epoch: the part of the loader that a worker runs."""

    def __init__(self, dataset: FaceDataset, spec: BatchSpec):
        self.dataset, self.spec = dataset, spec
        self.steps = len(dataset) // spec.global_batch  # the last, incomplete batch of an epoch is left out

    def indices(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions in the epoch, numbers in the data set) of this rank's part of a batch: int64 [B] each."""
        first = number * self.spec.global_batch + self.spec.rank * self.spec.batch_size
        positions = np.arange(first, first + self.spec.batch_size)
        if self.spec.shuffle == "none":
            return positions, positions
        return positions, Permutation(len(self.dataset), self.spec.seed, epoch)(positions)

    def fill(self, epoch: int, number: int, images_VBHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Writes the batch's images; returns (labels, indices). UserError on the first record that is not a face of ours."""
        spec = self.spec
        positions, indices = self.indices(epoch, number)
        draws_VBU = [uniforms(spec.seed, epoch, positions, UNIFORMS, stream=view) for view in range(spec.views)]
        recipes = [AUGMENTATIONS[spec.augmentation], AUGMENTATIONS["none"]][: spec.views]
        labels = np.empty(spec.batch_size, dtype=np.int64)
        for row, index in enumerate(indices.tolist()):
            image, labels[row] = self._read(index)
            for view, recipe in enumerate(recipes):
                images_VBHWC[view, row] = recipe(image, draws_VBU[view][row])
        return labels, indices

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        payload, label = self.dataset.read(index)
        if not 0 <= label < self.spec.num_classes:
            raise UserError(
                f"{self.dataset.where(index)}: label {label} is outside [0, {self.spec.num_classes}); "
                "set num_classes to the data set's count or mend the record"
            )
        flag = cv2.IMREAD_COLOR_RGB if self.spec.channel_order == "RGB" else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(payload, dtype=np.uint8), flag) if payload else None
        if image is None:
            raise UserError(
                f"{self.dataset.where(index)}: the image ({len(payload)} bytes) cannot be decoded; re-pack this record "
                "from its source or remove it"
            )
        if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
            height, width = image.shape[:2]
            raise UserError(
                f"{self.dataset.where(index)}: the image is {width}x{height}, expected {IMAGE_SIZE}x{IMAGE_SIZE}; "
                "align and resize the faces when packing"
            )
        return image, label


class Loader:
    """`epoch(e, start)` -> this rank's batches of epoch e, in order, from batch `start` on.

    num_workers=0 makes the batches in this process. Not thread-safe; one iteration at a time.
    """

    def __init__(self, dataset: FaceDataset, spec: BatchSpec, num_workers: int = 2):
        self.maker, self.spec = BatchMaker(dataset, spec), spec
        if self.maker.steps == 0:
            raise UserError(
                f"{dataset.path}: {len(dataset)} images are fewer than one batch of {spec.batch_size} x {spec.world} ranks; "
                "lower batch_size"
            )
        self._workers: list[_Worker] = []
        for _ in range(num_workers):
            self._workers.append(_Worker(self.maker, [worker.connection for worker in self._workers]))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.maker.steps

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        if not self._workers:
            yield from self._make_here(epoch, start)
            return
        numbers = range(start, len(self))
        try:
            for order, number in enumerate(numbers[: _SLOTS * len(self._workers)]):
                self._workers[order % len(self._workers)].ask(epoch, number)
            for order in range(len(numbers)):
                worker = self._workers[order % len(self._workers)]
                yield worker.receive()
                ahead = order + _SLOTS * len(self._workers)
                if ahead < len(numbers):
                    worker.ask(epoch, numbers[ahead])
        finally:
            for worker in self._workers:
                worker.drain()

    def _make_here(self, epoch: int, start: int) -> Iterator[Batch]:
        images = np.empty(self.spec.image_shape, dtype=np.uint8)
        cv2_threads = cv2.getNumThreads()
        for number in range(start, len(self)):
            cv2.setNumThreads(1)
            labels, indices = self.maker.fill(epoch, number, images)
            cv2.setNumThreads(cv2_threads)
            yield Batch(images, labels, indices)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []


class _Worker:
    """A forked process that fills slots on request, in order."""

    def __init__(self, maker: BatchMaker, inherited: list[Connection]):
        shape = maker.spec.image_shape
        self._slots = []
        for _ in range(_SLOTS):
            memory = mmap.mmap(-1, int(np.prod(shape)))  # anonymous and shared: needs no /dev/shm
            self._slots.append(np.frombuffer(memory, dtype=np.uint8).reshape(shape))
        context = multiprocessing.get_context("fork")  # slots and the data set's index are shared, not pickled
        self.connection, theirs = context.Pipe()
        self._asked = self._received = 0
        self._process = context.Process(
            target=_worker_main, args=(maker, self._slots, theirs, [*inherited, self.connection]), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, epoch: int, number: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # a dead worker is reported where its batch is received
            self.connection.send((epoch, number, self._asked % _SLOTS))
        self._asked += 1

    def receive(self) -> Batch:
        wait([self.connection, self._process.sentinel])
        try:
            slot, labels, indices, error = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            raise RuntimeError(
                f"a loader worker (process {self._process.pid}) died with exit code {self._process.exitcode}; "
                "-9 usually means that the machine ran out of memory: lower num_workers or batch_size"
            ) from None
        self._received += 1
        if error is not None:
            raise error
        return Batch(self._slots[slot], labels, indices)

    def drain(self) -> None:
        """Waits for what was asked and not fetched (an epoch that was left early), so that slots are free again."""
        while self._received < self._asked:
            with contextlib.suppress(EOFError, ConnectionResetError):
                self.connection.recv()
            self._received += 1

    def close(self) -> None:
        self.connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _worker_main(maker: BatchMaker, slots: list[np.ndarray], connection: Connection, inherited: list[Connection]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides when to stop, and closes the pipe
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:  # ours and older workers' far ends: kept open here, they would outlive the trainer
        other.close()
    cv2.setNumThreads(1)
    while True:
        try:
            epoch, number, slot = connection.recv()
        except EOFError:  # the trainer is gone, or closed us
            return
        labels = indices = error = None
        try:
            labels, indices = maker.fill(epoch, number, slots[slot])
        except UserError as fault:
            error = fault
        try:
            connection.send((slot, labels, indices, error))
        except BrokenPipeError:
            return
