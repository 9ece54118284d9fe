"""The order in which an epoch visits the images: a function of (seed, epoch, position), without a table.

    none       the order of the data set
    full       one pseudo-random permutation of all images: every read is a seek
    windowed   for slow disks and for data larger than memory: large pieces of the files in random order, mixed within a window

An order maps positions in the epoch to image numbers. Positions b*G … b*G + G-1 are batch b of G images, over all ranks.

The windowed shuffle rotates the images, in the order of the files, by an offset that each epoch draws, and divides them into L
equal lanes. Each batch takes G / L images from each lane, so a rank reads only its own lanes (L = gcd(G, 48), which is divisible
by 1, 2, 3, 4, 6, 8 … ranks if G is). A lane is a sequence of chunks of `CHUNK` images, visited in random order. A window is a
number of consecutive chunks, whose images a permutation mixes before the next window begins.

If a part of each batch is unlabelled, each of the two sets is visited in an order of its own (`MixedOrder`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from utils.randomness import hash64, permute

Int64Array = npt.NDArray[np.int64]

CHUNK = 128  # images read at once: about a megabyte of 112x112 JPEGs, so that a disk reads more than it seeks
_LANES = 48
# streams of random numbers: the rotation, the order of chunks, the mixing of windows, the choice of a set's images
_OFFSET, _CHUNKS, _INSIDE, _CHOICE = 1, 2, 3, 4


class Order(ABC):
    """`order(epoch, positions)` returns image numbers, int64 of the same shape. steps: batches per epoch."""

    def __init__(self, length: int, global_batch: int):
        self.length, self.global_batch = length, global_batch
        self.steps = length // global_batch  # an incomplete last batch is left out

    @abstractmethod
    def __call__(self, epoch: int, positions: Int64Array) -> Int64Array: ...

    def pieces(self, epoch: int, first_batch: int, rank: int, world: int) -> Iterator[Piece] | None:
        """The large pieces that a rank reads from `first_batch` on, in the order in which they are needed; None if the order
        reads image by image."""
        return None


class InOrder(Order):
    """The order of the data set."""

    def __call__(self, epoch: int, positions: Int64Array) -> Int64Array:
        return positions


class FullShuffle(Order):
    """A pseudo-random permutation of all images."""

    def __init__(self, length: int, global_batch: int, seed: int):
        super().__init__(length, global_batch)
        self.seed = seed

    def __call__(self, epoch: int, positions: Int64Array) -> Int64Array:
        return permute(positions, self.length, hash64(self.seed, epoch))


class Visits(Order):
    """Visits the images of several sets more or less than once per epoch, in the order `inner` of all visits.

    starts: int64 [sets + 1], the first image of each set. visits: int64 [sets], how many images of each set an epoch visits: the
    whole set as often as it fits, then a random part of it, another one each epoch.
    """

    def __init__(self, inner: Order, starts: Int64Array, visits: Int64Array, seed: int):
        super().__init__(inner.length, inner.global_batch)
        self.inner, self.seed = inner, seed
        self.starts, self.sizes, self.visits = starts[:-1], np.diff(starts), visits
        self._first = np.cumsum(visits) - visits  # visit of each set

    def __call__(self, epoch: int, positions: Int64Array) -> Int64Array:
        visit = self.inner(epoch, positions)
        number = np.searchsorted(self._first, visit, side="right") - 1
        size = self.sizes[number]
        turn, place = np.divmod(visit - self._first[number], size)
        is_partial = (turn + 1) * size > self.visits[number]
        chosen = permute(place, size, hash64(self.seed, epoch, _CHOICE, number))
        return self.starts[number] + np.where(is_partial, chosen, place)


@dataclass(frozen=True)
class Piece:
    """Images start … stop-1 in the order of the files, first needed for batch `batch` of the epoch."""

    batch: int
    start: int
    stop: int


class WindowedShuffle(Order):
    """The windowed shuffle of the module's docstring.

    window: number of images that are mixed at a time, over all lanes; they are to fit in memory.
    file_order: int64 [length], the image numbers in the order of the files; None if that is 0, 1, 2, … anyway.
    """

    def __init__(self, length: int, global_batch: int, seed: int, window: int, file_order: Int64Array | None = None):
        super().__init__(length, global_batch)
        self.seed, self.file_order = seed, file_order
        self.lanes = math.gcd(global_batch, _LANES)
        self.rows = global_batch // self.lanes  # per batch and lane
        self._window_chunks = max(1, window // (self.lanes * CHUNK))

    def __call__(self, epoch: int, positions: Int64Array) -> Int64Array:
        batch, row = np.divmod(positions, self.global_batch)
        lane = row // self.rows
        place = batch * self.rows + row % self.rows  # position within the lane
        start, size = self._lane(lane)
        chunks = size // CHUNK
        chunk = np.minimum(place // CHUNK, chunks - 1)
        window = self._window_of(chunk, chunks)
        first, stop = self._bounds(window, chunks, size)
        place = first + permute(place - first, stop - first, hash64(self.seed, epoch, _INSIDE, lane, window))
        image = start + self._unmix_chunks(epoch, lane, place, chunks) + self._offset(epoch)
        image %= self.length
        return image if self.file_order is None else self.file_order[image]

    def pieces(self, epoch: int, first_batch: int, rank: int, world: int) -> Iterator[Piece]:
        share = self.global_batch // world
        return self.pieces_of_rows(epoch, first_batch, rank * share, (rank + 1) * share)

    def pieces_of_rows(self, epoch: int, first_batch: int, start: int, stop: int) -> Iterator[Piece]:
        """`pieces` for images start … stop-1 of each batch."""
        lanes = np.arange(start // self.rows, -(-stop // self.rows))
        starts, sizes = self._lane(lanes)
        window = 0
        while True:
            pieces = []
            for lane, start, size in zip(lanes.tolist(), starts.tolist(), sizes.tolist(), strict=True):
                pieces += self._window_pieces(epoch, lane, start, size, window, first_batch)
            if not pieces and window >= max((self._windows(size // CHUNK) for size in sizes.tolist()), default=0):
                return
            needed = min((piece.batch for piece in pieces), default=0)
            yield from (Piece(needed, piece.start, piece.stop) for piece in sorted(pieces, key=lambda piece: piece.start))
            window += 1

    def _window_pieces(self, epoch: int, lane: int, start: int, size: int, window: int, first_batch: int) -> list[Piece]:
        chunks = size // CHUNK
        if window >= self._windows(chunks):
            return []
        first, stop = (int(bound) for bound in self._bounds(np.asarray(window), np.asarray(chunks), np.asarray(size)))
        needed = first // self.rows
        if -(-stop // self.rows) <= first_batch or needed >= self.steps:
            return []
        places = np.arange(first, stop, CHUNK)
        begins = start + self._unmix_chunks(epoch, np.full_like(places, lane), places, np.full_like(places, chunks))
        lengths = np.minimum(CHUNK, stop - places)
        lengths[-1] = stop - places[-1]
        pieces = []
        for begin, length in zip(((begins + self._offset(epoch)) % self.length).tolist(), lengths.tolist(), strict=True):
            end = min(begin + length, self.length)
            pieces.append(Piece(needed, begin, end))
            if end - begin < length:  # wraps around the end of the data set
                pieces.append(Piece(needed, 0, length - (end - begin)))
        return pieces

    def _lane(self, lane: Int64Array) -> tuple[Int64Array, Int64Array]:
        start = lane * self.length // self.lanes
        return start, (lane + 1) * self.length // self.lanes - start

    def _windows(self, chunks):
        return np.maximum(1, -(-chunks // self._window_chunks))

    def _window_of(self, chunk: Int64Array, chunks: Int64Array) -> Int64Array:
        """The window w with floor(w F / n) <= chunk < floor((w + 1) F / n), for F chunks and n windows."""
        whole = np.maximum(chunks, 1)
        return np.where(chunks > 0, ((chunk + 1) * self._windows(chunks) - 1) // whole, 0)

    def _bounds(self, window: Int64Array, chunks: Int64Array, size: Int64Array) -> tuple[Int64Array, Int64Array]:
        """First and last + 1 position of a window. The images after the last whole chunk belong to the last window."""
        windows = self._windows(chunks)
        stop = np.where(window == windows - 1, size, (window + 1) * chunks // windows * CHUNK)
        return window * chunks // windows * CHUNK, stop

    def _unmix_chunks(self, epoch: int, lane: Int64Array, place: Int64Array, chunks: Int64Array) -> Int64Array:
        """Map a position in the lane's random order of chunks to a position in the lane's order in the files."""
        chunk, inside = np.divmod(place, CHUNK)
        mixed = chunk < chunks
        key = hash64(self.seed, epoch, _CHUNKS, lane)
        moved = permute(np.where(mixed, chunk, 0), np.maximum(chunks, 1), key)
        return np.where(mixed, moved, chunk) * CHUNK + inside

    def _offset(self, epoch: int) -> int:
        return int(hash64(self.seed, epoch, _OFFSET)[0] % np.uint64(self.length))


class MixedOrder(Order):
    """Labelled and unlabelled images in every batch, spread evenly over it, so that any number of ranks gets equal parts (within
    one image).

    labelled: L images per batch; its epochs are those of the mixture. unlabelled: U images per batch, visited in rounds of
    `unlabelled.steps` batches, one after the other, whatever the epoch. first: number of the first unlabelled image.
    Image r of a batch is unlabelled iff floor((r + 1) U / (L + U)) > floor(r U / (L + U)).
    """

    def __init__(self, labelled: Order, unlabelled: Order, first: int):
        super().__init__(labelled.length, labelled.global_batch + unlabelled.global_batch)
        self.labelled, self.unlabelled, self.first, self.steps = labelled, unlabelled, first, labelled.steps

    def __call__(self, epoch: int, positions: Int64Array) -> Int64Array:
        batch, row = np.divmod(positions, self.global_batch)
        place = self._unlabelled_before(row)
        is_unlabelled = self._unlabelled_before(row + 1) > place
        image = np.empty_like(positions)
        position = batch * self.labelled.global_batch + row - place
        image[~is_unlabelled] = self.labelled(epoch, position[~is_unlabelled])
        round_of, batch = np.divmod(epoch * self.steps + batch, self.unlabelled.steps)
        position = batch * self.unlabelled.global_batch + place
        for number in np.unique(round_of[is_unlabelled]).tolist():
            chosen = is_unlabelled & (round_of == number)
            image[chosen] = self.first + self.unlabelled(number, position[chosen])
        return image

    def pieces(self, epoch: int, first_batch: int, rank: int, world: int) -> Iterator[Piece] | None:
        """Of the labelled images alone: the next round of the others may begin within an epoch."""
        if not isinstance(self.labelled, WindowedShuffle):
            return None
        share = self.global_batch // world
        start, stop = (row - self._unlabelled_before(row) for row in (rank * share, (rank + 1) * share))
        return self.labelled.pieces_of_rows(epoch, first_batch, start, stop)

    def _unlabelled_before(self, row):
        """How many images before `row` (a number or an array of them) of a batch are unlabelled."""
        return row * self.unlabelled.global_batch // self.global_batch
