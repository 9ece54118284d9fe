"""What a batch of the loader holds, and how one is made: read, checked, decoded, augmented.

What a batch holds is a function of (seed, epoch, position) only; ranks and workers merely divide the positions:

    epoch e of n images = floor(n / G) batches; batch b = positions b*G … b*G + G-1 of the epoch's order (order.py);
    rank r of W takes the r-th of the W equal parts of it.

Shapes: B images a rank, G = W*B, V views. View 0 is q (augmented), view 1 is k (flip only).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from recognition.data.augment import AUGMENTATIONS, UNIFORMS, Augmentation, flips
from recognition.data.augment import none as flip_only
from recognition.data.dataset import UNREADABLE, FaceDataset
from recognition.data.decode import decode_face
from recognition.data.order import FullShuffle, InOrder, Order, WindowedShuffle
from recognition.data.records.format import RecordError
from utils.errors import UserError
from utils.randomness import uniforms

IMAGE_SIZE = 112
_ORDER_BLOCK = 8  # batches
_MID_GREY = 128  # fills the rows of skipped records: about 0 once normalised


@dataclass(frozen=True)
class BatchSpec:
    """What the loader's batches hold.

    batch_size: B, images of one rank. augmentation: of view q, a name in `AUGMENTATIONS`. views: 2 for (q, k), 1 for q alone.
    num_classes: labels must lie in [0, num_classes). channel_order: "RGB" or "BGR", of the images handed over.
    shuffle: a name in `order.ORDERS`; window: images that "windowed" keeps in memory.
    on_error: "stop" at a damaged record, or "skip" it: its row has label -1 and a grey image, and is in `Batch.skipped`.
    """

    batch_size: int
    num_classes: int
    seed: int = 0
    views: int = 2
    augmentation: str = "qgface"
    shuffle: str = "full"
    window: int = 1 << 17
    channel_order: str = "RGB"
    on_error: str = "stop"
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
    `labels_B` is int64, `UNREADABLE` (-1) in the rows of `skipped` records; `indices_B` (int64) are the images' numbers in
    the data set."""

    images_VBHWC: np.ndarray
    labels_B: np.ndarray
    indices_B: np.ndarray
    skipped: tuple[RecordError, ...] = ()


def build_order(dataset: FaceDataset, spec: BatchSpec) -> Order:
    if spec.shuffle == "none":
        return InOrder(len(dataset), spec.global_batch)
    if spec.shuffle == "full":
        return FullShuffle(len(dataset), spec.global_batch, spec.seed)
    if spec.shuffle == "windowed":
        return WindowedShuffle(len(dataset), spec.global_batch, spec.seed, spec.window, dataset.file_order)
    raise ValueError(f"shuffle must be 'full', 'windowed' or 'none', not {spec.shuffle!r}")


class BatchMaker:
    """Makes any batch of any epoch: the part of the loader that a worker runs."""

    def __init__(self, dataset: FaceDataset, spec: BatchSpec):
        self.dataset, self.spec = dataset, spec
        self.order = build_order(dataset, spec)
        self.steps = self.order.steps
        self._recipes = [AUGMENTATIONS[spec.augmentation], flip_only][: spec.views]
        self._block_of: tuple[int, int] | None = None  # epoch and block of the order that `_block` holds
        self._decoded = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def indices(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions in the epoch, numbers in the data set) of this rank's part of a batch: int64 [B] each.

        The order is evaluated for several batches at once: in so short arrays a call costs as much as its numbers.
        """
        block, place = divmod(number, _ORDER_BLOCK)
        if self._block_of != (epoch, block):
            numbers = np.arange(block * _ORDER_BLOCK, min((block + 1) * _ORDER_BLOCK, self.steps))
            first = numbers * self.spec.global_batch + self.spec.rank * self.spec.batch_size
            positions = first[:, None] + np.arange(self.spec.batch_size)
            self._block, self._block_of = (positions, self.order(epoch, positions)), (epoch, block)
        return self._block[0][place], self._block[1][place]

    def fill(self, epoch: int, number: int, images_VBHWC: np.ndarray) -> Batch:
        """Writes the batch's images. RecordError on the first damaged record, unless these are skipped; UserError on a
        label outside the classes."""
        spec = self.spec
        positions, indices = self.indices(epoch, number)
        draws_VBU = [
            uniforms(spec.seed, epoch, positions, 1 if recipe is flip_only else UNIFORMS, stream=view).tolist()
            for view, recipe in enumerate(self._recipes)
        ]
        labels = np.empty(spec.batch_size, dtype=np.int64)
        skipped = []
        for row, index in enumerate(indices.tolist()):
            try:
                labels[row] = self._fill_row(index, [draws_BU[row] for draws_BU in draws_VBU], images_VBHWC[:, row])
            except RecordError as fault:
                if spec.on_error == "stop":
                    raise
                skipped.append(fault.with_traceback(None))  # which would keep the frames, and so the images, alive
                images_VBHWC[:, row], labels[row] = _MID_GREY, UNREADABLE
        return Batch(images_VBHWC, labels, indices, tuple(skipped))

    def _fill_row(self, index: int, draws_VU: list[list[float]], views_VHWC: np.ndarray) -> int:
        """Writes an image's views; gives its label. A last view that is the image itself is decoded in place."""
        last = len(self._recipes) - 1
        in_place = self._recipes[last] is flip_only and not flips(draws_VU[last]) and self.spec.channel_order == "RGB"
        image = views_VHWC[last] if in_place else self._decoded
        label = self._decode(index, image)
        for view, recipe in enumerate(self._recipes):
            if not (in_place and view == last):
                self._write(recipe, image, draws_VU[view], views_VHWC[view])
        return label

    def _write(self, recipe: Augmentation, image: np.ndarray, u: list[float], out: np.ndarray) -> None:
        """Augmentations know RGB; the order that the encoder wants is made last."""
        if self.spec.channel_order == "RGB":
            recipe(image, u, out)
        else:
            cv2.cvtColor(recipe(image, u), cv2.COLOR_RGB2BGR, dst=out)

    def _decode(self, index: int, out: np.ndarray) -> int:
        """Decodes an image into `out` (RGB uint8 [112, 112, 3]); gives its label."""
        payload, label = self.dataset.read(index)
        try:
            decode_face(payload, out)
        except ValueError as fault:
            raise self.dataset.record_error(index, str(fault)) from None
        if not 0 <= label < self.spec.num_classes:
            raise UserError(
                f"{self.dataset.where(index)}: label {label} is outside [0, {self.spec.num_classes}); "
                "set num_classes to the data set's count or mend the record"
            )
        return label
