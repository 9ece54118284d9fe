"""Fine-tuning: the classifier's initial rows, frozen layers, learning rates per stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import backbones
from losses.margins.adaface import AdaFace
from losses.sharded_softmax import INIT_STD, ShardedSoftmax, initial_rows
from recognition.checkpoints import store
from recognition.data.dataset import FaceDataset
from recognition.data.records.reader import RecordReader
from recognition.encoders.embedder import Embedder
from recognition.fine_tuning import rate_factors, start_classifier
from recognition.freezing import freeze
from recognition.optimiser import parameter_groups
from tests.plug import Run, series
from tests.world import run_world
from utils.config import from_base
from utils.dist import gather_uneven_rows, shard_range
from utils.errors import UserError
from utils.images import decode_face

CLASSES, DIM = 15, 32  # the demo set has images of the first 13 classes
SHORT = ("max_steps=3", "val_targets=()", "num_workers=0", "diagnose_every=0")


@pytest.fixture(scope="module")
def source(demo_set, tmp_path_factory) -> Path:
    """A run to start from."""
    output = tmp_path_factory.mktemp("fine") / "source"
    Run(demo_set, output, *SHORT[1:], "num_epoch=5").succeed()
    return output


def _embedder() -> Embedder:
    return Embedder(backbones.build("tiny", embedding_size=DIM), torch.device("cpu"), "RGB", None)


def _class_means(demo_set: Path) -> torch.Tensor:
    torch.manual_seed(0)
    config = from_base(head_from="means", init_from="x", val_batch_size=10, num_classes=CLASSES)
    head = ShardedSoftmax(CLASSES, DIM, AdaFace(0.4, 64.0), seed=1)
    start_classifier(head, config, FaceDataset(demo_set), _embedder())
    return gather_uneven_rows(head.weight.detach())


def test_class_means_equal_a_dense_computation_on_any_number_of_ranks(demo_set):
    """Every class's row: the direction of its mean unit feature, as long as a random row; random if it has no image."""
    dataset = FaceDataset(demo_set)
    torch.manual_seed(0)
    images = np.stack([decode_face(dataset.read(image)[0], "") for image in range(len(dataset))])
    unit = nn.functional.normalize(_embedder()(torch.from_numpy(images)).double())
    expected = initial_rows(CLASSES, DIM, shard_range(CLASSES, 0, 1), seed=1).double()
    for label in range(13):
        mean = unit[torch.from_numpy(dataset.labels() == label)].mean(0)
        expected[label] = mean / mean.norm() * INIT_STD * DIM**0.5
    alone = run_world(1, _class_means, demo_set)[0]
    torch.testing.assert_close(alone.double(), expected, rtol=1e-4, atol=1e-7)
    for world in (2, 3):
        assert all(torch.equal(rows, alone) for rows in run_world(world, _class_means, demo_set))


def _class_means_of_damaged(folder: Path) -> tuple[torch.Tensor, list[str], str]:
    torch.manual_seed(0)
    embed, problem = _embedder(), ""
    config = from_base(head_from="means", init_from="x", val_batch_size=10, num_classes=CLASSES)
    head = ShardedSoftmax(CLASSES, DIM, AdaFace(0.4, 64.0), seed=1)
    notes = start_classifier(head, config, FaceDataset(folder, strict=False), embed)
    try:
        start_classifier(head, config, FaceDataset(folder), embed)
    except UserError as error:
        problem = str(error)
    return gather_uneven_rows(head.weight.detach()), notes, problem


def test_damaged_records_stop_all_ranks_or_are_left_out_of_the_means(demo_set, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(demo_set, folder)
    with RecordReader(folder / "train.rec") as reader:
        middle = int(reader.offsets[reader.position(17)]) + 200
    content = bytearray((folder / "train.rec").read_bytes())
    content[middle : middle + 400] = bytes(400)
    (folder / "train.rec").write_bytes(content)
    damaged = int(FaceDataset(demo_set).labels()[16])  # image 16 is key 17
    sound = run_world(1, _class_means, demo_set)[0]
    for rows, notes, problem in run_world(2, _class_means_of_damaged, folder):
        changed = {label for label in range(CLASSES) if not torch.equal(rows[label], sound[label])}
        assert changed == {damaged} and torch.cosine_similarity(rows, sound)[damaged] > 0.9
        assert "103 of 104 images" in notes[0] and "key 17" in problem


def test_losses_after_class_means_do_not_depend_on_the_ranks(demo_set, source, tmp_path):
    """They start lower than those of a new classifier."""
    settings = (*SHORT, f"init_from={source}", "sync_bn=True", "augmentation=none")
    losses = {}
    for head_from, ranks in (("new", 1), ("means", 1), ("means", 2), ("means", 3)):
        output = tmp_path / f"{head_from}{ranks}"
        Run(demo_set, output, *settings, f"head_from={head_from}", ranks=ranks).succeed()
        losses[head_from, ranks] = torch.tensor([line[1] for line in series(output)])
    for ranks in (2, 3):
        torch.testing.assert_close(losses["means", ranks], losses["means", 1], rtol=1e-4, atol=0)
    assert losses["means", 1][0] < 0.8 * losses["new", 1][0]


def test_a_kept_classifier_is_that_of_the_run(demo_set, source, tmp_path):
    text = Run(demo_set, tmp_path / "kept", *SHORT, f"init_from={source}", "head_from=kept", "lr=1e-30", ranks=2).succeed()
    rows = [store.read_tensors(store.find(run), "classifier.weight")[""] for run in (source, tmp_path / "kept")]
    assert torch.equal(*rows) and "classifier: kept from" in text and "quality statistics and queue are new" in text


def test_a_classifier_of_other_classes_or_of_none_is_refused(demo_set, source, tmp_path):
    refused = Run(demo_set, tmp_path / "a", *SHORT, f"init_from={source}", "head_from=kept", "num_classes=14")
    assert refused.wait() != [0] and "has 13 classes, this run has 14" in refused.text
    weights = tmp_path / "backbone.pth"
    torch.save(backbones.build("tiny", embedding_size=DIM).state_dict(), weights)
    refused = Run(demo_set, tmp_path / "b", *SHORT, f"init_from={weights}", "head_from=kept")
    assert refused.wait() != [0] and "holds no classifier" in refused.text
    with pytest.raises(UserError, match="head_from='means': needs init_from"):
        from_base(head_from="means")


@pytest.mark.parametrize("more", [(), ("queue=momentum", "optimizer=adamw")], ids=["sgd", "adamw"])
def test_frozen_layers_stay_and_a_resumed_run_equals_one_without_a_break(demo_set, source, tmp_path, more):
    """Parameters and running statistics, with weight decay, clipping, two ranks and verification in between."""
    settings = (*SHORT[1:], f"init_from={source}", "freeze=stem.*,blocks.0.*,bn.*", "layer_decay=0.5", *more)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    text = Run(demo_set, whole, *settings, "max_steps=4", ranks=2).succeed()
    assert "M frozen)" in text and "(times 0.5 per stage)" in text
    for steps in (2, 4):
        Run(demo_set, broken, *settings, f"max_steps={steps}", ranks=2).succeed()
    before, after, resumed = (store.read_tensors(store.find(run), "encoder.") for run in (source, whole, broken))
    frozen = {name for name in before if name.startswith(("stem.", "blocks.0.", "bn."))}
    assert {name for name in before if torch.equal(before[name], after[name])} - frozen <= {"features.weight"}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert all(torch.equal(resumed[name], after[name]) for name in after)
    if more:
        momentum = store.read_tensors(store.find(whole), "momentum_encoder.")
        assert all(torch.equal(momentum[name], before[name]) for name in frozen)


def test_patterns_without_a_match_are_refused_with_the_nearest_name():
    encoder = backbones.build("r18")
    with pytest.raises(UserError) as caught:
        freeze(encoder, ["conv1*", "layer5.*", "bn3.wieght"])
    first, second = caught.value.args
    assert "freeze: 'layer5.*' matches no parameter" in first and "did you mean 'layer" in first
    assert "'bn3.wieght'" in second and "did you mean 'bn" in second
    assert all(parameter.requires_grad for name, parameter in encoder.named_parameters() if name != "features.weight")
    with pytest.raises(UserError, match="freezes the whole encoder"):
        freeze(encoder, ["*"])


def test_frozen_batchnorms_stay_in_evaluation_mode():
    encoder = backbones.build("r18")
    freeze(encoder, ["bn1*", "layer1.*", "*.weight"])
    encoder.train()
    assert not encoder.bn1.training and not encoder.layer1[0].bn1.training
    assert encoder.bn2.training and encoder.bn2.bias.requires_grad and not encoder.bn2.weight.requires_grad


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("r18", {"conv1.weight": 5, "layer1.0.conv1.weight": 4, "layer4.1.bn1.bias": 1, "bn2.bias": 0, "fc.weight": 0}),
        ("ir_18", {"input_layer.0.weight": 9, "body.0.res_layer.0.weight": 8, "output_layer.0.weight": 0}),
        ("vit_t", {"pos_embed": 13, "patch_embed.proj.weight": 13, "blocks.0.norm1.weight": 12, "feature.0.weight": 0}),
        ("mbf", {"layers.0.layers.0.weight": 8, "conv_sep.layers.0.weight": 0}),
        ("tiny", {"stem.0.weight": 6, "fc.bias": 0}),
    ],
)
def test_rates_per_stage(network, expected):
    """0.5 to the power of the number of stages towards the output, in every parameter group; the head has the full rate."""
    encoder, head = backbones.build(network), nn.Linear(8, 3)
    factors = rate_factors(encoder, 0.5)
    for name, stages in expected.items():
        assert factors[name] == 0.5**stages, name
    groups = parameter_groups(encoder, head, 5e-4, decay_norms=False, layer_decay=0.5)
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    named = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name: rates[id(p)] for name, p in named.items()} == {name: factors[name] for name in named}
    assert rates[id(head.weight)] == groups[0]["rate"] == 1.0 and len(rates) == len(named) + 2
    with pytest.raises(UserError, match="no stages"):
        rate_factors(nn.Linear(2, 2), 0.5)
