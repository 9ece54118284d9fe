"""On a GPU: the same numbers as on the CPU, and what only a GPU has. `./run.sh gpu` runs these tests."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import backbones
from losses.log_sum_exp import ChunkPlan
from losses.margins.arcface import ArcFace
from losses.sharded_softmax import HeadOptions, ShardedSoftmax
from recognition.checkpoints import state as checkpoint_state
from recognition.checkpoints import store
from recognition.checkpoints.writer import CheckpointWriter
from recognition.data import FaceDataset
from recognition.data.batch import BatchSpec
from recognition.data.loader import Loader
from recognition.data.prefetch import Prefetcher
from recognition.encoders.embedder import Embedder, autocast_type
from tests.step_parts import Parts, SmallStep
from utils import dist
from utils.config import from_base
from utils.sync_bn import convert_sync_batchnorm
from utils.transfer import Later, to_device

pytestmark = pytest.mark.gpu

PARTS = {
    "SGD": Parts(),
    "AdamW": Parts("adamw"),
    "SGD, sampled classes, unlabelled images": Parts(sample_rate=0.3, unlabelled=True),
    "AdamW, sampled classes, scaled": Parts("adamw", 0.3, scaled=True),
    "a margin with state": Parts(curricular=True),
    "a momentum encoder": Parts(follower=True),
}


@pytest.fixture
def world():
    yield dist.start()
    dist.stop()


@pytest.mark.parametrize("name", sorted(PARTS))
def test_whole_steps_equal_those_on_the_cpu(world, name):
    """Losses of six steps, one of them skipped, and all state after them."""
    small = {kind: SmallStep(PARTS[name], torch.device(kind)) for kind in ("cpu", "cuda")}
    losses = {kind: [] for kind in small}
    for steps in small.values():  # BatchNorm follows this bias: its gradient is rounding noise, which AdamW would scale up
        steps.state.encoder[2].bias.register_hook(torch.zeros_like)
    for kind, steps in small.items():
        for number in range(6):
            norm = steps.state.encoder[3]
            norm.eps = torch.nan if number == 3 else 1e-5
            losses[kind].append(steps.learn(number).terms.loss.item())
            assert bool(steps.step.finish_step()) == (number == 3)
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-4)
    on_cpu, on_gpu = small["cpu"].captured(), small["cuda"].captured()
    assert on_cpu.keys() == on_gpu.keys()
    for key, value in on_cpu.items():
        got = on_gpu[key]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(got.cpu(), value, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
        else:
            assert got == value, key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", ["r18", "mbf", "vit_t"])
def test_embeddings_equal_those_on_the_cpu(network, precision):
    torch.manual_seed(0)
    encoder = backbones.build(network)
    images = torch.randint(0, 256, (6, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = Embedder(encoder, torch.device("cpu"), "BGR", None)(images)
    device = torch.device("cuda", 0)
    embed = Embedder(copy.deepcopy(encoder).to(device), device, "BGR", autocast_type(precision, device))
    got = embed(images)
    assert got.device.type == "cpu" and got.dtype == torch.float32
    similarity = nn.functional.cosine_similarity(got, expected)
    assert similarity.min() > (0.9999 if precision == "fp32" else 0.99), similarity


def test_a_checkpoint_of_the_gpu_is_read_on_both(world, tmp_path):
    """Written in the background while training goes on: it holds the state at the time of the call."""
    steps = SmallStep(PARTS["AdamW, sampled classes, scaled"], torch.device("cuda"))
    steps.learn(0)
    steps.learn(1)
    expected = steps.captured()
    writer = CheckpointWriter(tmp_path, from_base(async_save=True))
    writer.save(2, checkpoint_state.capture(steps.state))
    for number in range(2, 8):
        steps.learn(number)
    writer.finish()
    for device in ("cpu", "cuda"):
        other = SmallStep(PARTS["AdamW, sampled classes, scaled"], torch.device(device))
        checkpoint_state.restore(store.newest(tmp_path), other.state)
        restored = other.captured()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(restored[key].cpu(), value.cpu()), key
            else:
                assert restored[key] == value, key


def _head_on(device: str, precision: str, rate: float) -> dict[str, torch.Tensor]:
    options = HeadOptions(sample_rate=rate, plan=ChunkPlan(1 << 12, 1 << 14), precision=precision)
    head = ShardedSoftmax(700, 32, ArcFace(0.5, 32.0), seed=1, options=options).to(device)
    features = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    unit_ND = nn.functional.normalize(features, dim=1).to(device).requires_grad_()
    label_N = torch.arange(24) * 29
    share_N = torch.full((24,), 1 / 24, device=device)
    loss = head(unit_ND, label_N.to(device), torch.zeros_like(share_N), share_N, host_label_N=label_N)
    loss.backward()
    return {"loss": loss.detach().cpu(), "unit": unit_ND.grad.cpu(), "weight": head.weight.grad.to_dense().cpu()}


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_equals_that_on_the_cpu(world, precision, rate):
    cpu, gpu = (_head_on(device, precision, rate) for device in ("cpu", "cuda"))
    for key, value in cpu.items():
        assert (gpu[key] - value).norm() / value.norm() < (1e-4 if precision == "fp32" else 2e-2), key


def test_synchronised_batchnorm(world):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).cuda()
    images = torch.randn(5, 3, 8, 8, device="cuda")
    expected = copy.deepcopy(module)(images)
    torch.testing.assert_close(convert_sync_batchnorm(copy.deepcopy(module))(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [False, True])
def test_prefetched_batches_are_the_loader_s(demo_set, keep):
    """Page-locked slots; two epochs, while the device is kept busy so that copies really overlap."""
    dataset = FaceDataset(demo_set)
    config = from_base(batch_size=8, num_classes=13, queue="none", seed=5)

    def epochs(device: torch.device) -> list[tuple[np.ndarray, np.ndarray]]:
        loader = Loader(dataset, BatchSpec.of(config, 0, 1), 2)
        prefetcher = Prefetcher(device, loader.slots, keep=keep)
        busy = torch.randn(2048, 2048, device=device) if device.type == "cuda" else None
        found, images = [], []
        for epoch in range(2):
            for batch in prefetcher(loader.epoch(epoch)):
                if busy is not None:
                    assert batch.images_VBHWC.is_cuda and not batch.labels_B.is_cuda
                    for _ in range(20):
                        busy = (busy @ busy).tanh()
                images.append(batch.images_VBHWC.clone())
                found.append(batch.labels_B.numpy().copy())
        if busy is not None:
            assert all(torch.from_numpy(slot).is_pinned() for slot in loader.slots)
        prefetcher.close()
        loader.close()
        return [(image.cpu().numpy(), labels) for image, labels in zip(images, found, strict=True)]

    on_gpu, on_cpu = epochs(torch.device("cuda", 0)), epochs(torch.device("cpu"))
    assert len(on_gpu) == len(on_cpu) > 4
    for got, expected in zip(on_gpu, on_cpu, strict=True):
        assert np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1])


def test_a_later_value_is_that_of_its_time():
    value = torch.zeros((), device="cuda")
    busy = torch.randn(2048, 2048, device="cuda")
    for _ in range(20):
        busy = (busy @ busy).tanh()
    value += 1
    later = Later(value)
    value += 1
    assert later.read().item() == 1 and not later.read().is_cuda
    assert torch.equal(to_device(torch.arange(5), torch.device("cuda")).cpu(), torch.arange(5))
