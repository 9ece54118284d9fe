"""The loader: worker processes make uint8 batches of decoded, augmented views in shared memory. batch.py describes a batch.

Workers are forked once and live until `close`. They decode images straight into batch-sized slots of anonymous shared memory, so
no image is copied between processes. The consumer reads a slot in place; the slot is free again when the next batch is
requested. Each batch, in order, is assigned to the worker with the least work, and batches are returned in order, so a worker on
a slow core makes fewer of them and does not delay the others.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize

import cv2
import numpy as np

from recognition.data.batch import Batch, BatchMaker, BatchSpec
from recognition.data.dataset import FaceDataset
from recognition.data.readahead import Readahead
from recognition.data.records.format import RecordError
from recognition.signals import STOP_SIGNALS
from utils.errors import FAULT, UserError

_REQUESTS_PER_WORKER = 2  # the batch that it fills, and the next one
_NOTHING = np.empty(0, np.int64)
_SPARE_SLOTS = 2  # one that is being read, and one that waits for an earlier batch


class Loader:
    """Makes this rank's batches. num_workers=0 makes them in this process. Not thread-safe; one epoch at a time.

    unlabelled: images without labels, of which each batch takes a share. Raises UserError if a set is smaller than its part of
    one batch.
    """

    def __init__(self, dataset: FaceDataset, spec: BatchSpec, num_workers: int, unlabelled: FaceDataset | None = None):
        self.maker, self.spec = BatchMaker(dataset, spec, unlabelled), spec
        if self.maker.steps == 0:
            raise UserError(
                f"{dataset.path}: {len(dataset)} images are fewer than one batch of {spec.batch_size} x {spec.world} ranks; "
                "lower batch_size"
            )
        self._slots = [_shared_array(spec.image_shape) for _ in range(slot_count(num_workers))]
        self._workers: list[_Worker] = []
        # However this process ends, close the workers before multiprocessing waits for them: they ignore its SIGTERM.
        Finalize(self, _close_all, args=(self._workers,), exitpriority=10)
        for _ in range(num_workers):
            self._workers.append(_Worker(self.maker, self._slots, [worker.connection for worker in self._workers]))

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.maker.steps

    @property
    def slots(self) -> list[np.ndarray]:
        """The shared memory of the batches, uint8 [V, B, 112, 112, 3] each; empty without workers."""
        return self._slots

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process_id for worker in self._workers]

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield this rank's batches of an epoch, in order, from batch `start` on."""
        with self._reading_ahead(epoch, start) as readahead:
            if self._workers:
                yield from self._from_workers(epoch, start, readahead)
            else:
                yield from self._make_here(epoch, start, readahead)

    @contextlib.contextmanager
    def _reading_ahead(self, epoch: int, start: int) -> Iterator[Readahead | None]:
        pieces = self.maker.order.pieces(epoch, start, self.spec.rank, self.spec.world)
        if pieces is None:
            yield None
            return
        readahead = Readahead(self.maker.dataset, pieces)
        try:
            yield readahead
        finally:
            readahead.close()

    def _from_workers(self, epoch: int, start: int, readahead: Readahead | None) -> Iterator[Batch]:
        free, to_request = list(range(len(self._slots))), start
        finished: dict[int, _Answer] = {}
        try:
            for number in range(start, len(self)):
                while True:
                    while free and to_request < len(self) and (worker := self._least_busy()) is not None:
                        if readahead is not None:
                            readahead.need(to_request)
                        worker.request(epoch, to_request, free.pop())
                        to_request += 1
                    if number in finished:
                        break
                    finished |= self._answers()
                answer = finished.pop(number)
                if answer.error is not None:
                    raise answer.error
                yield Batch(self._slots[answer.slot], answer.labels, answer.indices, answer.skipped)
                free.append(answer.slot)
        finally:
            for worker in self._workers:
                worker.drain()

    def _least_busy(self) -> _Worker | None:
        """The worker with the fewest open requests, or None if all have enough."""
        worker = min(self._workers, key=lambda worker: worker.outstanding)
        return worker if worker.outstanding < _REQUESTS_PER_WORKER else None

    def _answers(self) -> dict[int, _Answer]:
        """Wait for at least one worker, and return all finished answers by batch number."""
        busy = [worker for worker in self._workers if worker.outstanding]
        wait([handle for worker in busy for handle in (worker.connection, worker.sentinel)])
        return {answer.number: answer for worker in busy if worker.has_answer for answer in [worker.receive()]}

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
        """End the workers."""
        _close_all(self._workers)


def slot_count(num_workers: int) -> int:
    """The number of batches in shared memory."""
    return _REQUESTS_PER_WORKER * num_workers + _SPARE_SLOTS if num_workers else 0


def _close_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().close()


def _shared_array(shape: tuple[int, ...]) -> np.ndarray:
    """uint8, shared with forked processes. Anonymous memory, which needs no /dev/shm."""
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=np.uint8).reshape(shape)


@dataclass(frozen=True)
class _Answer:
    """A worker's answer: a filled slot, or the error that prevented it."""

    number: int
    slot: int
    labels: np.ndarray
    indices: np.ndarray
    skipped: tuple[RecordError, ...]
    error: UserError | None


class _Worker:
    """A forked process that fills slots on request, in order."""

    def __init__(self, maker: BatchMaker, slots: list[np.ndarray], inherited: list[Connection]):
        context = multiprocessing.get_context("fork")  # slots and the data set's index are shared, not copied
        self.connection, theirs = context.Pipe()
        self.outstanding = 0  # requested batches that have not been received
        self._process = context.Process(
            target=_worker_main, args=(maker, slots, theirs, [*inherited, self.connection]), daemon=True
        )
        cv2_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # ends OpenCV's threads, if any: a forked process would wait for them forever
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # in the worker for good: the trainer decides when to stop,
        self._process.start()  # and closes the pipe; the signals may be sent to the whole process group
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        cv2.setNumThreads(cv2_threads)
        theirs.close()

    @property
    def process_id(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def has_answer(self) -> bool:
        """Whether `receive` would return or fail at once."""
        return bool(wait([self.connection, self.sentinel], timeout=0))

    def request(self, epoch: int, number: int, slot: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # `receive` reports a dead worker
            self.connection.send((epoch, number, slot))
        self.outstanding += 1

    def receive(self) -> _Answer:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            raise UserError(
                f"a loader worker (process {self._process.pid}) died with exit code {self._process.exitcode}; "
                "-9 usually means that the machine ran out of memory: lower num_workers or batch_size",
                code=FAULT,
            ) from None
        self.outstanding -= 1
        return answer

    def drain(self) -> None:
        """Discard all outstanding answers, after an epoch was left early, so that the slots are free again."""
        while self.outstanding:
            with contextlib.suppress(EOFError, ConnectionResetError):
                self.connection.recv()
            self.outstanding -= 1

    def close(self) -> None:
        self.connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _worker_main(maker: BatchMaker, slots: list[np.ndarray], connection: Connection, inherited: list[Connection]) -> None:
    gc.freeze()  # the collector would write to every page that holds an object, and so unshare it
    for other in inherited:  # the trainer's ends of all pipes: open here, they would hide that the trainer is gone
        other.close()
    cv2.setNumThreads(1)
    while True:
        try:
            epoch, number, slot = connection.recv()
        except (EOFError, ConnectionResetError):  # the trainer has ended, or closed this worker
            return
        try:
            batch = maker.fill(epoch, number, slots[slot])
            answer = _Answer(number, slot, batch.labels_B, batch.indices_B, batch.skipped, None)
        except UserError as fault:
            answer = _Answer(number, slot, _NOTHING, _NOTHING, (), fault)
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
