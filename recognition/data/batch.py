"""The contents of a batch, and how it is made: records are read, checked, decoded and augmented.

A batch is a function of (seed, epoch, position) only; ranks and workers merely divide the positions:

    An epoch of n images has floor(n / G) batches. Batch b covers positions b*G … b*G + G-1 of the epoch's order (order.py);
    rank r of W takes the r-th of their W equal parts. If U images of each batch are unlabelled, an epoch has floor(n / (G - U)).

Shapes: B images per rank, W ranks, G = W*B, V views. View 0 is q (augmented), view 1 is k (flip only). HWC = 112 x 112 x 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from recognition.data.augment import SCALE_DRAW, UNIFORMS, Augmentation, flips, recipe
from recognition.data.augment import none as flip_only
from recognition.data.colours import ColourBank, with_colours
from recognition.data.dataset import FaceDataset
from recognition.data.order import FullShuffle, InOrder, MixedOrder, Order, Visits, WindowedShuffle
from recognition.data.records.format import RecordError
from recognition.data.sets.opening import training_set
from utils.config import Config
from utils.errors import UserError
from utils.images import FACE_SIZE, ChannelOrder, decode_face
from utils.labels import UNLABELLED, UNREADABLE
from utils.randomness import uniforms

_ORDER_BLOCK = 8  # batches whose order is computed at once
_ROWS_AT_ONCE = 16  # decoded, then augmented: in turns, each evicts the other's code and tables from the processor's caches
_MID_GREY = 128  # fills the rows of skipped records; close to 0 after normalisation


@dataclass(frozen=True)
class BatchSpec:
    """What the loader's batches contain.

    batch_size: B, images per rank. num_classes: labels must lie in [0, num_classes). views: 2 for (q, k), 1 for q alone.
    augmentation: of view q, a name in augment.py, or a plug-in with its options. shuffle: "full", "windowed" or "none"
    (order.py). window: number of images that the windowed shuffle keeps in memory. channel_order: of the finished images, "RGB"
    or "BGR".
    on_error: "stop" at a damaged record, or "skip" it: its row gets label -1 and a grey image, and it is listed in
    `Batch.skipped`.
    unlabelled_share: of the global batch; 0 without an unlabelled set. colour_transfer: the probability with which view q takes
    the colours of another labelled image before its augmentation.
    """

    batch_size: int
    num_classes: int
    seed: int
    views: int
    augmentation: str
    augmentation_options: Mapping[str, Any]
    shuffle: str
    window: int
    channel_order: ChannelOrder
    on_error: str
    rank: int
    world: int
    unlabelled_share: float
    colour_transfer: float

    @classmethod
    def of(cls, config: Config, rank: int = 0, world: int = 1) -> BatchSpec:
        """The batches that a rank of a training run gets."""
        return cls(
            batch_size=config.batch_size,
            num_classes=config.num_classes,
            seed=config.seed,
            views=config.views,
            augmentation=config.augmentation,
            augmentation_options=config.augmentation_options,
            shuffle=config.shuffle,
            window=config.shuffle_window,
            channel_order=config.channel_order,
            on_error=config.on_error,
            rank=rank,
            world=world,
            unlabelled_share=config.unlabelled_share if config.unlabelled else 0.0,
            colour_transfer=config.colour_transfer,
        )

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world

    @property
    def unlabelled_images(self) -> int:
        """U, of each global batch."""
        return round(self.global_batch * self.unlabelled_share)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.views, self.batch_size, FACE_SIZE, FACE_SIZE, 3)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch.

    images_VBHWC: uint8, in shared memory that is reused once the next batch is requested. labels_B: int64, `UNREADABLE` (-1)
    in the rows of skipped records, `UNLABELLED` - i (-2 and below) for unlabelled image i. indices_B: int64, the images' numbers
    in the data set; unlabelled image i follows its n images as n + i.
    """

    images_VBHWC: np.ndarray
    labels_B: np.ndarray
    indices_B: np.ndarray
    skipped: tuple[RecordError, ...] = ()


def build_order(dataset: FaceDataset, spec: BatchSpec, unlabelled: FaceDataset | None = None) -> Order:
    """The order in which epochs visit the images, as `spec.shuffle` asks. Raises UserError if there are fewer unlabelled images
    than a batch takes."""
    if unlabelled is None:
        return _labelled_order(dataset, spec, spec.global_batch)
    count = spec.unlabelled_images
    if not 0 < count < spec.global_batch or count > len(unlabelled):
        raise UserError(
            f"unlabelled_share={spec.unlabelled_share:g}: {count} of the {spec.global_batch} images of a batch; must be at least "
            f"1, leave at least 1 labelled one, and not exceed the {len(unlabelled)} images in {unlabelled.path}"
        )
    labelled = _labelled_order(dataset, spec, spec.global_batch - count)
    return MixedOrder(labelled, _order_of(unlabelled, spec, count, len(unlabelled)), len(dataset))


def _labelled_order(dataset: FaceDataset, spec: BatchSpec, global_batch: int) -> Order:
    visits = dataset.visits
    if visits is None or (visits == np.diff(dataset.starts)).all():
        return _order_of(dataset, spec, global_batch, len(dataset))
    return Visits(_order_of(dataset, spec, global_batch, int(visits.sum())), dataset.starts, visits, spec.seed)


def _order_of(images: FaceDataset, spec: BatchSpec, global_batch: int, visits: int) -> Order:
    if spec.shuffle == "none":
        return InOrder(visits, global_batch)
    if spec.shuffle == "full":
        return FullShuffle(visits, global_batch, spec.seed)
    if spec.shuffle == "windowed":
        return WindowedShuffle(visits, global_batch, spec.seed, spec.window, images.file_order)
    raise ValueError(f"shuffle must be 'full', 'windowed' or 'none', not {spec.shuffle!r}")


class BatchMaker:
    """Makes any batch of any epoch. This is the part of the loader that runs in the workers."""

    def __init__(self, dataset: FaceDataset, spec: BatchSpec, unlabelled: FaceDataset | None = None):
        self.dataset, self.spec, self.unlabelled = dataset, spec, unlabelled
        self.order = build_order(dataset, spec, unlabelled)
        self.steps = self.order.steps
        self._recipes = [recipe(spec.augmentation, spec.augmentation_options), flip_only][: spec.views]
        self._colours = ColourBank(dataset, spec.colour_transfer) if spec.colour_transfer else None
        self._flip_only = self._recipes == [flip_only] and self._colours is None
        self._block_of: tuple[int, int] | None = None  # epoch and block of the order that `_block` holds
        self._decoded = np.empty((_ROWS_AT_ONCE, FACE_SIZE, FACE_SIZE, 3), np.uint8)

    def indices(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's positions in the epoch and image numbers in the data set, for batch `number`: int64 [B] each.

        The order is computed for several batches at once, because one call costs as much as evaluating a short array.
        """
        block, place = divmod(number, _ORDER_BLOCK)
        if self._block_of != (epoch, block):
            numbers = np.arange(block * _ORDER_BLOCK, min((block + 1) * _ORDER_BLOCK, self.steps))
            first = numbers * self.spec.global_batch + self.spec.rank * self.spec.batch_size
            positions = first[:, None] + np.arange(self.spec.batch_size)
            self._block, self._block_of = (positions, self.order(epoch, positions)), (epoch, block)
        return self._block[0][place], self._block[1][place]

    def scale_draws(self, epoch: int, number: int) -> np.ndarray:
        """Where the scales of a batch's augmented views, of all ranks, lie in their range: float32 [G], 0 is the smallest."""
        positions = number * self.spec.global_batch + np.arange(self.spec.global_batch)
        draws_GU = uniforms(self.spec.seed, epoch, positions, SCALE_DRAW + 1, stream=0)
        return draws_GU[:, SCALE_DRAW].astype(np.float32)

    def record(self, index: int) -> tuple[str, int]:
        """The file and key of an image, by its number in `Batch.indices_B`."""
        images, image = self._image(index)
        return images.record(image)

    def _image(self, index: int) -> tuple[FaceDataset, int]:
        """The set that contains an image, and its number there."""
        if index < len(self.dataset) or self.unlabelled is None:
            return self.dataset, index
        return self.unlabelled, index - len(self.dataset)

    def fill(self, epoch: int, number: int, images_VBHWC: np.ndarray) -> Batch:
        """Write the images of batch `number` into `images_VBHWC`.

        Raises RecordError for a damaged record unless `on_error` is "skip", and UserError for a label outside the classes.
        """
        spec = self.spec
        positions, indices = self.indices(epoch, number)
        draws_VBU = [
            uniforms(spec.seed, epoch, positions, 1 if recipe is flip_only else UNIFORMS, stream=view).tolist()
            for view, recipe in enumerate(self._recipes)
        ]
        lent_B = [None] * spec.batch_size if self._colours is None else self._colours.lend(spec.seed, epoch, positions)
        numbers = indices.tolist()
        labels = np.full(spec.batch_size, UNREADABLE, np.int64)
        skipped: list[RecordError] = []
        for start in range(0, spec.batch_size, _ROWS_AT_ONCE):
            readable = []
            for row in range(start, min(start + _ROWS_AT_ONCE, spec.batch_size)):
                try:
                    if self._flip_only:
                        view, mirror = images_VBHWC[0, row], flips(draws_VBU[0][row])
                        labels[row] = self._decode(numbers[row], view, spec.channel_order, mirror)
                    else:
                        labels[row] = self._decode(numbers[row], self._decoded[row - start])
                        readable.append(row)
                except RecordError as fault:
                    if spec.on_error == "stop":
                        raise
                    skipped.append(fault.with_traceback(None))  # its frames would keep the images alive
                    images_VBHWC[:, row] = _MID_GREY
            for view, augment in enumerate(self._recipes):
                for row in readable:
                    image = self._decoded[row - start]
                    if view == 0 and (colours := lent_B[row]) is not None:
                        image = with_colours(image, *colours)
                    self._write(augment, image, draws_VBU[view][row], images_VBHWC[view, row])
        return Batch(images_VBHWC, labels, indices, tuple(skipped))

    def _write(self, recipe: Augmentation, image: np.ndarray, u: list[float], out: np.ndarray) -> None:
        """Write one view. Augmentations work on RGB, so the channels are reordered last."""
        if self.spec.channel_order == "RGB":
            recipe(image, u, out)
        else:
            cv2.cvtColor(recipe(image, u), cv2.COLOR_RGB2BGR, dst=out)

    def _decode(self, index: int, out_HWC: np.ndarray, channel_order: ChannelOrder = "RGB", mirror: bool = False) -> int:
        """Decode an image into `out_HWC` and return its label."""
        images, image = self._image(index)
        label = images.decode_into(image, out_HWC, channel_order, mirror)
        if images is self.unlabelled:
            return UNLABELLED - image
        if not 0 <= label < self.spec.num_classes:
            raise UserError(
                f"{self.dataset.where(index)}: label {label} is outside [0, {self.spec.num_classes}); "
                "set num_classes to the data set's count, or fix the record"
            )
        return label


def sample_views(config: Config, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Some training images, evenly spread over a run's data set, and their augmented views.

    Returns (originals, augmented), uint8 RGB [n, 112, 112, 3] each, n <= `count`. The augmentation is the run's, drawn from its
    seed. Raises UserError if the data set is missing or an image cannot be decoded.
    """
    dataset = training_set(config)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64)).tolist()
    augment = recipe(config.augmentation, config.augmentation_options)
    draws_NU = uniforms(config.seed, 0, np.arange(len(numbers)), UNIFORMS, stream=0)
    originals = np.stack([decode_face(dataset.read(number)[0], dataset.where(number)) for number in numbers])
    sources = list(originals)
    if config.colour_transfer:
        lent_N = ColourBank(dataset, config.colour_transfer).lend(config.seed, 0, np.arange(len(numbers)))
        sources = [with_colours(image, *lent) if lent else image for image, lent in zip(originals, lent_N, strict=True)]
    augmented = np.stack([augment(image, draws_U) for image, draws_U in zip(sources, draws_NU, strict=True)])
    return originals, augmented
