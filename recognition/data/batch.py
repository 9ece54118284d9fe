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

from recognition.data.augment import AUGMENTATIONS, UNIFORMS
from recognition.data.augment import none as flip_only
from recognition.data.dataset import UNREADABLE, FaceDataset
from recognition.data.image_header import image_size
from recognition.data.order import FullShuffle, InOrder, Order, WindowedShuffle
from recognition.data.randomness import uniforms
from recognition.data.record_format import RecordError
from utils.errors import UserError

IMAGE_SIZE = 112
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

    def indices(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions in the epoch, numbers in the data set) of this rank's part of a batch: int64 [B] each."""
        first = number * self.spec.global_batch + self.spec.rank * self.spec.batch_size
        positions = np.arange(first, first + self.spec.batch_size)
        return positions, self.order(epoch, positions)

    def fill(self, epoch: int, number: int, images_VBHWC: np.ndarray) -> Batch:
        """Writes the batch's images. RecordError on the first damaged record, unless these are skipped; UserError on a
        label outside the classes."""
        spec = self.spec
        positions, indices = self.indices(epoch, number)
        recipes = [AUGMENTATIONS[spec.augmentation], AUGMENTATIONS["none"]][: spec.views]
        draws_VBU = [
            uniforms(spec.seed, epoch, positions, 1 if recipe is flip_only else UNIFORMS, stream=view)
            for view, recipe in enumerate(recipes)
        ]
        labels = np.empty(spec.batch_size, dtype=np.int64)
        skipped = []
        for row, index in enumerate(indices.tolist()):
            try:
                image, labels[row] = self._read(index)
            except RecordError as fault:
                if spec.on_error == "stop":
                    raise
                skipped.append(fault.with_traceback(None))  # which would keep the frames, and so the images, alive
                images_VBHWC[:, row], labels[row] = _MID_GREY, UNREADABLE
                continue
            for view, recipe in enumerate(recipes):
                self._write(recipe, image, draws_VBU[view][row], images_VBHWC[view, row])
        return Batch(images_VBHWC, labels, indices, tuple(skipped))

    def _write(self, recipe, image: np.ndarray, u: np.ndarray, out: np.ndarray) -> None:
        """Augmentations know RGB; the order that the encoder wants is made last."""
        if self.spec.channel_order == "RGB":
            recipe(image, u, out)
        else:
            cv2.cvtColor(recipe(image, u), cv2.COLOR_RGB2BGR, dst=out)

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        """(RGB uint8 [112, 112, 3], label) of an image."""
        payload, label = self.dataset.read(index)
        try:
            height, width = image_size(payload)
        except ValueError as fault:
            problem = f"the image ({len(payload)} bytes) cannot be decoded: {fault}"
            raise self.dataset.record_error(index, f"{problem}; pack this record again or remove it") from None
        if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
            problem = f"the image is {width}x{height}, expected {IMAGE_SIZE}x{IMAGE_SIZE}"
            raise self.dataset.record_error(index, f"{problem}; align and resize the faces when packing")
        try:
            image = cv2.imdecode(np.frombuffer(payload, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:  # damage that OpenCV reports so
            image = None
        if image is None or image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
            problem = f"the image ({len(payload)} bytes) cannot be decoded"
            raise self.dataset.record_error(index, f"{problem}; pack this record again from its source or remove it")
        if not 0 <= label < self.spec.num_classes:
            raise UserError(
                f"{self.dataset.where(index)}: label {label} is outside [0, {self.spec.num_classes}); "
                "set num_classes to the data set's count or mend the record"
            )
        return image, label
