"""Plug-ins of the experiments with photographs without identities (scripts/ablation/trials.py)."""

from __future__ import annotations

import copy
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from losses.contrastive import ContrastiveLoss
from losses.margins.adaface import AdaFace
from losses.sharded_softmax import ShardedSoftmax
from recognition.data.order import FullShuffle, MixedOrder
from scripts.ablation import trials
from tests.commands import run, train
from utils import dist
from utils.errors import UserError

SCALE, IMAGES, UNLABELLED = 8.0, 12, 4


@pytest.fixture
def contrast(monkeypatch):
    """A contrastive loss and six pairs, four of them contrasted, with a classifier of five proxies."""
    monkeypatch.setattr(ContrastiveLoss, "forward", ContrastiveLoss.forward)  # what a trial replaces is put back
    dist.start()
    torch.manual_seed(3)
    head = ShardedSoftmax(num_classes=5, embedding_size=7, margin=AdaFace(margin=0.4, scale=64.0))
    query, key = F.normalize(torch.randn(2, 6, 7), dim=2)
    yield ContrastiveLoss(SCALE, "paper", stop_gradient=True), query, key, torch.tensor([1, 0, 2, 0, 3, 4]) / 10, head
    dist.stop()


def _loss(contrast, query, key):
    loss, _, _, share, head = contrast
    return loss(query, key, torch.arange(6), share, None, head.rows_of)


def _similarities(rows, head):
    return [[float(F.cosine_similarity(row, proxy, dim=0)) for proxy in head.weight.detach()] for row in rows]


def test_against_proxies(contrast):
    _, query, key, share, head = contrast
    trials.against_proxies(None)
    expected = 0.0
    for cosines, q, k, weight in zip(_similarities(query, head), query, key, share.tolist(), strict=True):
        expected += weight * (math.log(sum(math.exp(SCALE * c) for c in cosines)) - SCALE * float(q @ k))
    assert float(_loss(contrast, query, key)) == pytest.approx(expected, rel=1e-5)


def test_consistency(contrast):
    """Two steps: the second one's targets are centred by the first one's mean. No gradient reaches the original view."""
    _, query, key, share, head = contrast
    trials.consistency(None, query=0.5, key=0.2, rate=0.25)
    mean = np.zeros(5)
    for rows in (key, key.flip(0)):
        target, ours = np.array(_similarities(rows, head)), np.array(_similarities(query, head))
        weight = share.numpy().astype(float)
        log_p = ours / 0.5 - np.log(np.exp(ours / 0.5).sum(1, keepdims=True))
        p = np.exp((target - mean) / 0.2)
        expected = -(weight[:, None] * p / p.sum(1, keepdims=True) * log_p).sum()
        q, k = query.clone().requires_grad_(), rows.clone().requires_grad_()
        loss = _loss(contrast, q, k)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        assert k.grad is None and bool((q.grad[share == 0] == 0).all()) and bool((q.grad[share > 0] != 0).any())
        mean = 0.75 * mean + 0.25 * target[weight > 0].mean(0)


def test_statistics_per_domain(monkeypatch):
    """As two layers with the same weights, one for each part of the batch; an evaluation takes one of the two."""
    torch.manual_seed(1)
    mask = torch.tensor([False, True, False])
    both = mask.repeat(2)
    plain = nn.BatchNorm2d(4)
    nn.init.normal_(plain.weight)
    labelled, other = copy.deepcopy(plain), copy.deepcopy(plain)
    layer, x = trials.BatchNormPerDomain(plain, mask), 3 + torch.randn(6, 4, 5, 5)
    out = layer(x)
    assert torch.equal(out[~both], labelled(x[~both])) and torch.equal(out[both], other(x[both]))
    layer.eval(), labelled.eval(), other.eval()
    assert torch.equal(layer(x), labelled(x)) and not torch.equal(layer(x), other(x))
    monkeypatch.setenv("DOMAIN", "unlabelled")
    assert torch.equal(layer(x), other(x))
    monkeypatch.setenv("DOMAIN", "camera")
    with pytest.raises(UserError, match="DOMAIN=camera: must be one of labelled, unlabelled"):
        layer(x)
    with pytest.raises(UserError, match="built for 3 images per step and process, not 2"):
        layer.train()(x[:4])


def test_places_of_the_unlabelled_images():
    encoder = trials.tiny_per_domain(8, images=IMAGES, unlabelled=UNLABELLED)
    masks = {module.is_unlabelled for module in encoder.modules() if isinstance(module, trials.BatchNormPerDomain)}
    assert not any(isinstance(child, nn.BatchNorm2d) for child in encoder.blocks[0].children())
    order = MixedOrder(FullShuffle(100, IMAGES - UNLABELLED, 5), FullShuffle(20, UNLABELLED, 5), 100)
    places = order(0, np.arange(IMAGES)) >= 100
    assert masks and all(mask.tolist() == [*places, *places] for mask in masks)


def test_trials_with_all_proxies_refuse_several_ranks(demo_set, tmp_path):
    name = "partition=scripts.ablation.trials:consistency"
    done = train("configs/lfw_qg", f"rec={demo_set}", "global_batch_size=12", name, f"output={tmp_path / 'run'}", ranks=2)
    assert done.returncode == 2 and "needs all proxies on one rank; start one process" in done.stderr


@pytest.mark.parametrize("part", ["only_unlabelled", "consistency", "against_proxies", "tiny_per_domain"])
def test_each_trains(part, demo_set, unlabelled, tmp_path):
    key = "network" if part == "tiny_per_domain" else "partition"
    changes = [f"network_options={{'images':{IMAGES},'unlabelled':{UNLABELLED}}}"] if key == "network" else []
    photos = [f"unlabelled={unlabelled}", f"unlabelled_share={UNLABELLED / IMAGES}", f"batch_size={IMAGES}", "queue=batch"]
    name = f"{key}=scripts.ablation.trials:{part}"
    done = train("configs/lfw_qg", f"rec={demo_set}", "global_batch_size=0", *photos, *changes, name, "max_steps=2",
                 "frequent=1", f"output={tmp_path / 'run'}", "val_targets=()")  # fmt: skip
    assert done.returncode == 0, done.stderr
    if key == "network":
        command = (
            sys.executable,
            "-m",
            "eval",
            "verify",
            "--checkpoint",
            str(tmp_path / "run"),
            "--bins",
            str(demo_set / "demo_lq.bin"),
        )
        refused = run(*command)
        assert refused.returncode == 2 and "--network" in refused.stderr
        features = {}
        for domain in trials.DOMAINS:
            figures = tmp_path / f"{domain}.json"
            done = run(*command, "--network", name.partition("=")[2], "--json", str(figures), DOMAIN=domain)
            assert done.returncode == 0, done.stderr
            features[domain] = figures.read_text()
        assert features["labelled"] != features["unlabelled"]
