"""The loader: uint8 batches of decoded, augmented views, made by worker processes in shared memory.

Workers are forked once and live until `close`. Each owns two batch-sized slots of anonymous shared memory and writes
decoded images straight into them, so no image is copied between processes; the consumer reads a slot in place and the
slot goes back to its worker when the next batch is asked for. What batches hold is said in batch.py.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import signal
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize

import cv2
import numpy as np

from recognition.data.batch import IMAGE_SIZE, Batch, BatchMaker, BatchSpec
from recognition.data.dataset import FaceDataset
from recognition.data.order import WindowedShuffle
from recognition.data.readahead import Readahead
from utils.errors import UserError

__all__ = ["IMAGE_SIZE", "Batch", "BatchMaker", "BatchSpec", "Loader"]

_SLOTS = 2  # per worker: one being read while the other is being filled


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
        # However this process ends: before multiprocessing waits for workers, which ignore its SIGTERM.
        Finalize(self, _close_all, args=(self._workers,), exitpriority=10)
        for _ in range(num_workers):
            self._workers.append(_Worker(self.maker, [worker.connection for worker in self._workers]))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.maker.steps

    @property
    def slots(self) -> list[np.ndarray]:
        """The shared memory that batches lie in, uint8 [V, B, 112, 112, 3] each; none without workers."""
        return [slot for worker in self._workers for slot in worker.slots]

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process_id for worker in self._workers]

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        with self._reading_ahead(epoch, start) as readahead:
            if self._workers:
                yield from self._from_workers(epoch, start, readahead)
            else:
                yield from self._make_here(epoch, start, readahead)

    @contextlib.contextmanager
    def _reading_ahead(self, epoch: int, start: int) -> Iterator[Readahead | None]:
        order = self.maker.order
        if not isinstance(order, WindowedShuffle):
            yield None
            return
        readahead = Readahead(self.maker.dataset, order.pieces(epoch, start, self.spec.rank, self.spec.world))
        try:
            yield readahead
        finally:
            readahead.close()

    def _from_workers(self, epoch: int, start: int, readahead: Readahead | None) -> Iterator[Batch]:
        numbers = range(start, len(self))
        ahead = _SLOTS * len(self._workers)
        try:
            for order in range(-ahead, len(numbers)):
                worker = self._workers[order % len(self._workers)]
                if order >= 0:
                    yield worker.receive()
                if order + ahead < len(numbers):
                    number = numbers[order + ahead]
                    if readahead is not None:
                        readahead.need(number)
                    worker.ask(epoch, number)
        finally:
            for worker in self._workers:
                worker.drain()

    def _make_here(self, epoch: int, start: int, readahead: Readahead | None) -> Iterator[Batch]:
        images = np.empty(self.spec.image_shape, dtype=np.uint8)
        cv2_threads = cv2.getNumThreads()
        for number in range(start, len(self)):
            if readahead is not None:
                readahead.need(number)
            cv2.setNumThreads(1)
            try:
                batch = self.maker.fill(epoch, number, images)
            finally:
                cv2.setNumThreads(cv2_threads)
            yield batch

    def close(self) -> None:
        """Ends the workers."""
        _close_all(self._workers)


def _close_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().close()


class _Worker:
    """A forked process that fills slots on request, in order."""

    def __init__(self, maker: BatchMaker, inherited: list[Connection]):
        shape = maker.spec.image_shape
        self.slots: list[np.ndarray] = []
        for _ in range(_SLOTS):
            memory = mmap.mmap(-1, int(np.prod(shape)))  # anonymous and shared: needs no /dev/shm
            self.slots.append(np.frombuffer(memory, dtype=np.uint8).reshape(shape))
        context = multiprocessing.get_context("fork")  # slots and the data set's index are shared, not pickled
        self.connection, theirs = context.Pipe()
        self._asked = self._received = 0
        self._process = context.Process(
            target=_worker_main, args=(maker, self.slots, theirs, [*inherited, self.connection]), daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def process_id(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, epoch: int, number: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # a dead worker is reported where its batch is received
            self.connection.send((epoch, number, self._asked % _SLOTS))
        self._asked += 1

    def receive(self) -> Batch:
        wait([self.connection, self._process.sentinel])
        try:
            slot, labels, indices, skipped, error = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            raise RuntimeError(
                f"a loader worker (process {self._process.pid}) died with exit code {self._process.exitcode}; "
                "-9 usually means that the machine ran out of memory: lower num_workers or batch_size"
            ) from None
        self._received += 1
        if error is not None:
            raise error
        return Batch(self.slots[slot], labels, indices, skipped)

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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # likewise, where a whole process group is asked to end
    signal.set_wakeup_fd(-1)
    gc.freeze()  # the collector would write to every page that holds an object, and so take it out of sharing
    for other in inherited:  # ours and older workers' far ends: kept open here, they would outlive the trainer
        other.close()
    cv2.setNumThreads(1)
    while True:
        try:
            epoch, number, slot = connection.recv()
        except (EOFError, ConnectionResetError):  # the trainer is gone, or closed us
            return
        labels = indices = error = None
        skipped: tuple = ()
        try:
            batch = maker.fill(epoch, number, slots[slot])
            labels, indices, skipped = batch.labels_B, batch.indices_B, batch.skipped
        except UserError as fault:
            error = fault
        try:
            connection.send((slot, labels, indices, skipped, error))
        except BrokenPipeError:
            return
