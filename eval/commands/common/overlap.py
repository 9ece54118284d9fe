"""Warnings of images that a benchmark shares with the encoder's training set."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import numpy as np

from eval.commands.common.features import ImageSet, embed
from recognition.checkpoints import store
from recognition.data.dataset import FaceDataset
from recognition.data.overlap import NEAR, nearest_training_images, pixel_hash, training_hashes
from recognition.data.sets.opening import open_faces, training_set
from recognition.data.sets.synthetic import SYNTHETIC
from recognition.encoders.load import LoadedEncoder
from utils import dist
from utils.errors import UserError, warn
from utils.images import decode_image

_QUICK = 20_000  # training images that are decoded in a few seconds


def add_overlap_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overlap",
        choices=("off", "exact", "near"),
        help="warn of images that are also in the training set: equal pixels, or (near) almost equal features, for which the "
        f"training set is embedded; default: exact if the run's training set is there and has at most {_QUICK:,} images",
    )
    parser.add_argument("--training-set", metavar="REC", help="the packed training set; default: the run's")


class Overlap:
    """Warns of images that verification sets share with the encoder's training set, as `--overlap` requests.

    Raises UserError if the training set was asked for and cannot be read.
    """

    def __init__(self, arguments: argparse.Namespace, encoder: LoadedEncoder):
        self.encoder, self.batch_size, self.near = encoder, arguments.batch_size, arguments.overlap == "near"
        self.faces = None if arguments.overlap == "off" else _training_set(arguments, encoder)
        if arguments.overlap is None and self.faces is not None and len(self.faces) > _QUICK:
            self.faces = None
        self.known: dict[int, int] | None = None  # hash -> training image, on rank 0

    def warn(self, images: ImageSet) -> None:
        """Compare a set with the training set. Collective."""
        if self.faces is None:
            return
        dist.on_first_rank(partial(self._warn_of_equal, images, self.faces))
        if self.near:
            self._warn_of_near(images, self.faces)

    def _warn_of_equal(self, images: ImageSet, faces: FaceDataset) -> None:
        if self.known is None:
            self.known = {int(value): image for image, value in enumerate(training_hashes(faces)) if value}
        found = {index: self.known.get(pixel_hash(images.load(index))) for index in range(images.count)}
        shared = [(index, image) for index, image in found.items() if image is not None]
        if shared:
            example = f"image {shared[0][0]} is {faces.where(shared[0][1])}"
            warn(f"{images.name}: {len(shared):,} of {images.count:,} images are training images, such as {example}")

    def _warn_of_near(self, images: ImageSet, faces: FaceDataset) -> None:
        def embed_training(part: range) -> np.ndarray:
            def load(index: int) -> np.ndarray:
                return decode_image(faces.read(part[index])[0], faces.where(part[index]))

            return embed(self.encoder, ImageSet("training set", len(part), load, []), self.batch_size, merge_flip=None)

        rows = embed(self.encoder, images, self.batch_size, merge_flip=None)
        cosine, nearest = nearest_training_images(embed_training, len(faces), rows)
        if count := int((cosine >= NEAR).sum()):
            index = int(cosine.argmax())
            example = f"image {index} and {faces.where(int(nearest[index]))} (cosine {cosine[index]:.3f})"
            almost = f"almost equal to a training image for this encoder (cosine {NEAR} or more), such as {example}"
            dist.on_first_rank(lambda: warn(f"{images.name}: {count:,} of {images.count:,} images are {almost}"))


def _training_set(arguments: argparse.Namespace, encoder: LoadedEncoder) -> FaceDataset | None:
    """The set of `--training-set`, or the run's; None if the run's cannot be read and `--overlap` is not given."""
    rec = arguments.training_set
    try:
        if rec is not None:
            return open_faces(rec, strict=False)
        config = store.read_config(store.find(encoder.path)) if encoder.path.is_dir() else None
        if config is None or config.rec == SYNTHETIC:
            raise UserError(f"{encoder.label}: has no training set; give --training-set REC, or leave out --overlap")
        return training_set(replace(config, on_error="skip"))
    except UserError:
        if arguments.overlap or arguments.training_set:
            raise
        return None
