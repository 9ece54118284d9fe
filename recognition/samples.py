"""Training images with their augmented views, to be looked at: what the losses of a run are given."""

from __future__ import annotations

import cv2
import numpy as np

from recognition.data.augment import AUGMENTATIONS, UNIFORMS
from recognition.data.dataset import FaceDataset
from recognition.data.loader import IMAGE_SIZE
from utils.config import Config
from utils.errors import UserError
from utils.randomness import uniforms


def sample_views(config: Config, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(originals, augmented): uint8 RGB [n, 112, 112, 3] each, n <= `count` images evenly from all over the run's set.

    The augmentation is the run's, drawn from its seed. UserError where the set is not there or an image cannot be decoded.
    """
    dataset = FaceDataset(config.rec, strict=config.on_error == "stop")
    numbers = np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64))
    recipe = AUGMENTATIONS[config.augmentation]
    draws = uniforms(config.seed, 0, np.arange(len(numbers)), UNIFORMS, stream=0)
    originals = np.empty((len(numbers), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    augmented = np.empty_like(originals)
    for row, number in enumerate(numbers.tolist()):
        payload, _ = dataset.read(number)
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB) if payload else None
        if image is None or image.shape != originals.shape[1:]:
            raise UserError(f"{dataset.where(number)}: not a {IMAGE_SIZE}x{IMAGE_SIZE} image; pack it again")
        originals[row] = image
        recipe(image, draws[row], augmented[row])
    return originals, augmented
