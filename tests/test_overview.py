"""The table at the start of a run names the whole recipe."""

from __future__ import annotations

import pytest
import torch

import backbones
from losses.margins import default_m
from recognition.monitor.overview import overview
from recognition.schedule import Schedule
from tests.shared_files import ROOT
from utils import config
from utils.dist import World

RECIPES = {
    "arcface_r50": ["arcface, m = 0.5, scale 64", "1 per image; augmentation none", "none: every feature", "no contrastive loss",
                    "1,024 images = 4 rank(s) x 256", "sgd, lr 0.1, momentum 0.9, weight decay 0.0005, gradient norm <= 5 (all)",
                    "polynomial, power 1; 20 epochs; 100 steps per epoch, 2,000 in all"],
    "cosface_r100": ["cosface, m = 0.4", "360,232 classes", "weight decay 0.0001"],
    "adaface_ir101": ["adaface, m = 0.4", "augmentation adaface", "BGR input", "from epochs 12, 20, 24"],
    "vgg2_r34_qg": ["adaface, m = 0.4", "2 per image; augmentation qgface", "low quality below 0.2", "proxy, 8,631 entries",
                    "512 images = 4 rank(s) x 128", "from epochs 6, 9; 12 epochs"],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_part_of_a_recipe_is_named(name):
    loaded = config.load(str(ROOT / "configs" / name))
    found = {"num_image": 1000, "queue_size": loaded.num_classes, "margin_m": loaded.margin_m or default_m(loaded.margin)}
    resolved = config.from_base(**{**vars(loaded), **found, "batch_size": loaded.global_batch_size // 4})
    world = World(0, 4, 0, 4, torch.device("cpu"))
    table = str(overview(resolved, world, backbones.build("tiny"), "fp32", Schedule(resolved, 100, None)))
    for part in RECIPES[name]:
        assert part in table, table
