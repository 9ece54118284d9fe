"""Fine-tuning: how fast each stage of the encoder learns, and how the classifier starts."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval.embedding import Embed, decoded_batches
from losses.sharded_softmax import INIT_STD, ShardedSoftmax
from recognition.checkpoints import store
from recognition.data.dataset import FaceDataset
from recognition.data.parallel import progress_bar
from utils import dist
from utils.config import Config
from utils.errors import UserError
from utils.images import FACE_SIZE, decode_face

_STAGE = re.compile(r"(layer\d+|(blocks|body|layers)\.\d+)\.")

# ------------------------------------------------------------------------------------------------ encoder


def rate_factors(encoder: nn.Module, decay: float) -> dict[str, float]:
    """Parameter name -> factor of its learning rate: decay ** (number of stages after its own).

    The stages: the stem, each layerN or else each block, and the output layers, whose factor is 1. Raises UserError if there is
    none.
    """
    names = [name for name, _ in encoder.named_parameters()]
    stages = list(dict.fromkeys(found[1] for name in names if (found := _STAGE.match(name))))
    if not stages:
        raise UserError(f"layer_decay={decay}: this network has no stages named layerN, blocks.N, body.N or layers.N; set 1.0")
    first = next(place for place, name in enumerate(names) if _STAGE.match(name))
    factors = {}
    for place, name in enumerate(names):
        if found := _STAGE.match(name):
            after = len(stages) - stages.index(found[1])
        else:
            after = len(stages) + 1 if place < first and not name.startswith("output") else 0
        factors[name] = decay**after
    return factors


# ------------------------------------------------------------------------------------------------ classifier


def start_classifier(classifier: ShardedSoftmax, config: Config, dataset: FaceDataset, embed: Embed) -> list[str]:
    """Give the classifier the initial rows that `head_from` names, for a new run; return notes for the user. Collective.

    embed: the initial encoder. Raises UserError if there is no classifier to keep, or it has other classes.
    """
    if config.head_from == "kept":
        return [_keep_rows(classifier, config)]
    return [_use_class_means(classifier, config, dataset, embed)] if config.head_from == "means" else []


def _keep_rows(classifier: ShardedSoftmax, config: Config) -> str:
    if not Path(config.init_from).is_dir():
        raise UserError(
            f"head_from='kept': init_from={config.init_from!r} is a file and holds no classifier; name a run or checkpoint "
            "folder, or set head_from='means'"
        )
    folder = store.find(config.init_from)
    classes = store.read_config(folder).num_classes
    if classes != config.num_classes:
        raise UserError(
            f"head_from='kept': the classifier in {folder} has {classes} classes, this run has {config.num_classes}; set "
            "head_from='means' or 'new'"
        )
    with torch.no_grad():
        classifier.weight.copy_(store.read_rows(folder, "classifier.weight"))
    return f"classifier: kept from {folder}"


@torch.no_grad()
def _use_class_means(classifier: ShardedSoftmax, config: Config, dataset: FaceDataset, embed: Embed) -> str:
    """Set each row to the mean of the class's unit features, with the expected norm of a random row.

    A class without a readable image keeps its random row.
    """
    images, sums = _sums_of_features(classifier, dataset, embed, config.val_batch_size)
    norms = sums.norm(dim=1, keepdim=True).to(classifier.weight.device)
    means = sums.to(norms.device) / norms.clamp_min(1e-12) * (INIT_STD * sums.shape[1] ** 0.5)
    classifier.weight.copy_(torch.where(norms > 0, means, classifier.weight))
    return f"classifier: class means of the features of {images:,} of {len(dataset):,} images"


def _sums_of_features(
    classifier: ShardedSoftmax, dataset: FaceDataset, embed: Embed, batch_size: int
) -> tuple[int, torch.Tensor]:
    """Number of images that all ranks read, and this rank's sums of unit features per class, float32 [K, D] on the CPU.

    Each rank reads the images of its own classes, in batches that do not depend on the number of ranks; nor do the sums.
    """
    shard, labels = classifier.shard, dataset.labels()
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]  # the images by class
    labels = labels[order]
    first, stop = np.searchsorted(labels, [shard.start, shard.stop]).tolist()
    sums, unreadable = torch.zeros(classifier.weight.shape), set()

    def load(place: int) -> np.ndarray:
        image = int(order[place])
        try:
            return decode_face(dataset.read(image)[0], dataset.where(image))
        except UserError:
            if dataset.strict:
                raise
            unreadable.add(place)
            return np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)

    def add(batch: np.ndarray, begin: int) -> None:
        unit = torch.nn.functional.normalize(embed(torch.from_numpy(batch)))
        if not unit.isfinite().all():
            raise UserError("init_from: the encoder's features are not finite; check its weights")
        places = [place for place in range(max(begin, first), min(begin + len(batch), stop)) if place not in unreadable]
        sums.index_add_(0, torch.from_numpy(labels[places] - shard.start), unit[[place - begin for place in places]])

    begins = range(first // batch_size * batch_size, stop, batch_size) if first < stop else range(0)
    end = min(begins[-1] + batch_size, len(order)) if begins else 0
    batches = zip(decoded_batches(load, begins.start, end, batch_size), begins, strict=True)
    most = max(dist.gather_objects(len(begins)))
    with progress_bar("images") if dist.rank_and_world()[0] == 0 else contextlib.nullcontext() as progress:
        task = progress.add_task("class means", total=stop - first) if progress else None
        for _ in range(most):
            problem = ""
            try:
                for batch, begin in itertools.islice(batches, 1):
                    add(batch, begin)
            except UserError as error:
                problem = str(error)
            if problems := [text for text in dist.gather_objects(problem) if text]:
                raise UserError(problems[0])
            if progress and task is not None:
                progress.advance(task, batch_size)
    return sum(dist.gather_objects(stop - first - sum(first <= place < stop for place in unreadable))), sums
