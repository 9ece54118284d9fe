"""Encoders: equal to the original authors' outputs and names, plain references, precision, memory switch, arithmetic."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backbones
from backbones import layers
from backbones.compact import CompactNet
from backbones.ir import IRNet
from backbones.iresnet import IResNet
from backbones.vit import VisionTransformer, _random_subset
from recognition.encoders.build import build_encoder
from tests.shared_files import GOLDEN, needs_golden
from utils.config import from_base
from utils.errors import UserError

RELEASED = {
    "r18": "arcface_torch_r18",
    "r34": "arcface_torch_r34",
    "mbf": "arcface_torch_mbf",
    "ir_18": "adaface_ir_18",
    "ir_34": "adaface_ir_34",
    "ir_50": "adaface_ir_50",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small batches gain nothing from threads, and lose much where several test runs share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def deterministic(name: str, like: Tensor) -> Tensor:
    """The golden files' filling: every entry is a function of its name alone."""
    rng, shape = np.random.default_rng(zlib.crc32(name.encode())), tuple(like.shape)
    if name.endswith("num_batches_tracked"):
        values = np.zeros(shape)
    elif name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("weight") and len(shape) >= 2:
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif name.endswith("weight"):
        values = rng.uniform(0.25, 0.75, shape)
    else:
        values = rng.normal(0, 0.1, shape)
    return torch.from_numpy(np.asarray(values)).to(like.dtype)


def golden_images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32))


def tame(module: nn.Module) -> nn.Module:
    """The same filling in evaluation mode."""
    module.load_state_dict({k: deterministic(k, v) for k, v in module.state_dict().items()})
    return module.eval()


@needs_golden
@pytest.mark.parametrize("name", RELEASED)
def test_released_networks_match_the_authors(name: str) -> None:
    facts = json.loads((GOLDEN / f"{RELEASED[name]}.json").read_text())
    net = backbones.build(name)
    own = [(k, list(v.shape)) for k, v in net.state_dict().items()]
    assert own == list(facts["state_dict"].items())  # names, shapes and order
    assert sum(p.numel() for p in net.parameters()) == facts["parameters"]
    expected = np.load(GOLDEN / f"{RELEASED[name]}.npz")
    raw = expected["embedding"] * (expected["norm"] if name.startswith("ir_") else 1.0)
    with torch.no_grad():
        features = tame(net)(golden_images()).numpy()
    np.testing.assert_allclose(features, raw, atol=1e-4, rtol=1e-4)


def bn_entries(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for entry in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{entry}", (width,)
    yield f"{name}.num_batches_tracked", ()


def iresnet_entries(depths: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """arcface_torch's names and shapes, written down once for any depth."""
    yield "conv1.weight", (64, 3, 3, 3)
    yield from bn_entries("bn1", 64)
    yield "prelu.weight", (64,)
    c_in = 64
    for stage, depth in enumerate(depths):
        c_out = 64 * 2**stage
        for index in range(depth):
            at = f"layer{stage + 1}.{index}"
            yield from bn_entries(f"{at}.bn1", c_in)
            yield f"{at}.conv1.weight", (c_out, c_in, 3, 3)
            yield from bn_entries(f"{at}.bn2", c_out)
            yield f"{at}.prelu.weight", (c_out,)
            yield f"{at}.conv2.weight", (c_out, c_out, 3, 3)
            yield from bn_entries(f"{at}.bn3", c_out)
            if index == 0:
                yield f"{at}.downsample.0.weight", (c_out, c_in, 1, 1)
                yield from bn_entries(f"{at}.downsample.1", c_out)
            c_in = c_out
    yield from bn_entries("bn2", 512)
    yield "fc.weight", (512, 512 * 49)
    yield "fc.bias", (512,)
    yield from bn_entries("features", 512)


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("r18", (2, 2, 2, 2)),
        ("r50", (3, 4, 14, 3)),
        ("r100", (3, 13, 30, 3)),
        ("r200", (6, 26, 60, 6)),
        ("r2060", (3, 128, 896, 3)),
    ],
)
def test_deep_iresnets_have_the_released_names(name: str, depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        net = backbones.build(name)
    assert [(k, tuple(v.shape)) for k, v in net.state_dict().items()] == list(iresnet_entries(depths))
    assert not net.features.weight.requires_grad


def test_ir_101_has_49_blocks_and_the_head_of_ir_18() -> None:
    with torch.device("meta"):
        deep, shallow = (backbones.build(name).state_dict() for name in ("ir_101", "ir_18"))
    assert sum(k.endswith("res_layer.1.weight") for k in deep) == 3 + 13 + 30 + 3
    assert [k for k in deep if not k.startswith("body")] == [k for k in shallow if not k.startswith("body")]


def vit_reference(state: dict[str, Tensor], images: Tensor, depth: int, heads: int) -> Tensor:
    """arcface_torch's vision transformer in evaluation, written out without modules or fused attention."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=9)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    B, N, dim = x.shape

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def batch_norm(x: Tensor, at: str) -> Tensor:
        scale = state[f"{at}.weight"] / (state[f"{at}.running_var"] + 2e-5).sqrt()
        return (x - state[f"{at}.running_mean"]) * scale + state[f"{at}.bias"]

    for i in range(depth):
        at = f"blocks.{i}"
        qkv = (norm(x, f"{at}.norm1") @ state[f"{at}.attn.qkv.weight"].T).reshape(B, N, 3, heads, dim // heads)
        q, k, v = (qkv[:, :, j].transpose(1, 2) for j in range(3))
        scores = (q @ k.transpose(2, 3)) * (dim // heads) ** -0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, dim)
        x = x + mixed @ state[f"{at}.attn.proj.weight"].T + state[f"{at}.attn.proj.bias"]
        hidden = norm(x, f"{at}.norm2") @ state[f"{at}.mlp.fc1.weight"].T + state[f"{at}.mlp.fc1.bias"]
        x = x + hidden.clamp(0, 6) @ state[f"{at}.mlp.fc2.weight"].T + state[f"{at}.mlp.fc2.bias"]
    flat = norm(x, "norm").reshape(B, -1)
    flat = batch_norm(flat @ state["feature.0.weight"].T, "feature.1")
    return batch_norm(flat @ state["feature.2.weight"].T, "feature.3")


def test_vit_equals_a_plain_reference() -> None:
    net = tame(backbones.build("vit_t", embedding_size=128))
    with torch.no_grad():
        expected = vit_reference(net.state_dict(), golden_images(), depth=12, heads=8)
        torch.testing.assert_close(net(golden_images()), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


def test_vit_names_are_arcface_torchs() -> None:
    with torch.device("meta"):
        state = backbones.build("vit_b").state_dict()
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias", "norm2.weight"]
    block += ["norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"]
    # The original registers its modules in the order norm1, norm2, attn, mlp.
    block = [*block[:2], *block[5:7], *block[2:5], *block[7:]]
    expected = ["pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    expected += [f"blocks.{i}.{entry}" for i in range(24) for entry in block]
    expected += ["norm.weight", "norm.bias", "feature.0.weight", *(k for k, _ in bn_entries("feature.1", 512))]
    expected += ["feature.2.weight", *(k for k, _ in bn_entries("feature.3", 512))]
    assert list(state) == expected
    assert state["pos_embed"].shape == (1, 144, 512)


def test_vit_masking_puts_every_kept_token_back_in_its_place() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 144, 4)
    kept_BK, order_BN = _random_subset(x, 0.1)
    assert kept_BK.shape == (3, 129)
    kept = x.gather(1, kept_BK.unsqueeze(-1).expand(-1, -1, 4))
    back = torch.cat([kept, torch.full((3, 15, 4), 9.0)], 1).gather(1, order_BN.unsqueeze(-1).expand(-1, -1, 4))
    masked = (back == 9.0).all(-1)
    assert masked.sum(1).tolist() == [15, 15, 15]
    torch.testing.assert_close(back[~masked], x[~masked])


def test_vit_without_masking_trains_no_mask_token() -> None:
    torch.manual_seed(0)
    for name, used in (("vit_t", True), ("vit_t_dp005_mask0", False)):
        net = backbones.build(name, embedding_size=32)
        net(torch.randn(2, 3, 112, 112)).square().sum().backward()
        assert (net.mask_token.grad is not None) == used
        assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_vit_h_is_the_same_network_wider_and_deeper() -> None:
    with torch.device("meta"):
        huge, small = (backbones.build(name) for name in ("vit_h", "vit_s"))
        assert huge.eval()(torch.zeros(2, 3, 112, 112)).shape == (2, 512)
    state = huge.state_dict()
    assert len(huge.blocks) == 48 and huge.mask_ratio == 0 and huge.blocks[-1].drop_path.rate == pytest.approx(0.1)
    further = re.compile(r"blocks\.(1[2-9]|[2-4]\d)\.")
    assert [name for name in state if not further.match(name)] == list(small.state_dict())
    assert state["blocks.47.attn.qkv.weight"].shape == (3 * 1024, 1024)


@needs_golden
def test_networks_of_arcface_torchs_configurations_are_known() -> None:
    configs = json.loads((GOLDEN / "arcface_torch_configs.json").read_text())
    with torch.device("meta"):
        for name in {config["network"] for config in configs.values()}:
            assert isinstance(backbones.build(name), nn.Module)


@pytest.mark.parametrize(
    ("name", "depth", "drop_path", "mask_ratio"),
    [
        ("vit_t_dp005_mask0", 12, 0.05, 0.0),
        ("vit_s_dp005_mask_0", 12, 0.05, 0.0),
        ("vit_b_dp005_mask_005", 24, 0.05, 0.05),
        ("vit_l_dp005_mask_005", 24, 0.05, 0.05),
        ("vit_h_dp01_mask_02", 48, 0.1, 0.2),
    ],
)
def test_suffixes_set_drop_path_and_masking(name: str, depth: int, drop_path: float, mask_ratio: float) -> None:
    with torch.device("meta"):
        net, own = backbones.build(name), backbones.build(name, drop_path=0.5, gradient_checkpointing=True)
    assert (len(net.blocks), net.blocks[-1].drop_path.rate, net.mask_ratio) == (depth, pytest.approx(drop_path), mask_ratio)
    assert own.blocks[-1].drop_path.rate == pytest.approx(0.5) and own.gradient_checkpointing


@pytest.mark.parametrize(
    ("name", "options", "refused"),
    [
        ("r50_dp005_mask_005", {}, "does not support drop_path, mask_ratio"),
        ("mbf", {"dropout": 0.1, "gradient_checkpointing": True}, "does not support dropout, gradient_checkpointing"),
        ("r50", {"dropout": 0.1, "drop_path": 0.1}, "does not support drop_path$"),
    ],
)
def test_options_that_a_network_lacks_are_named(name: str, options: dict[str, float], refused: str) -> None:
    with pytest.raises(TypeError, match=refused):
        backbones.build(name, **options)


def test_keys_of_a_configuration_reach_the_backbone() -> None:
    options = {"drop_path": 0.3, "mask_ratio": 0.2, "gradient_checkpointing": True}
    net = build_encoder(from_base(network="vit_t", embedding_size=8, **options))
    assert net.mask_ratio == 0.2 and net.gradient_checkpointing and net.blocks[-1].drop_path.rate == pytest.approx(0.3)
    own = build_encoder(from_base(network="vit_t", embedding_size=8))
    assert not own.gradient_checkpointing and own.blocks[-1].drop_path.rate == pytest.approx(0.1)
    with pytest.raises(UserError, match=r"network='mbf' does not support drop_path, gradient_checkpointing$"):
        build_encoder(from_base(network="mbf", drop_path=0.3, gradient_checkpointing=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: IResNet((1, 2, 1, 1), 8, dropout=0.2, **kw),
        lambda **kw: IRNet((1, 2, 1, 1), 8, **kw),
        lambda **kw: VisionTransformer(64, 3, 8, drop_path=0.3, **kw),
    ],
    ids=["iresnet", "ir", "vit"],
)
def test_checkpointing_changes_no_gradient_and_no_statistic(make, precision: str) -> None:
    images, results = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(1)), []
    for switch in (False, True):
        torch.manual_seed(0)
        net = make(gradient_checkpointing=switch)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            features = net(images)
        (features * torch.linspace(-1, 1, 8)).square().sum().backward()
        grads = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
        results.append((features, grads, dict(net.named_buffers())))
    plain, recomputed = results
    torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)
    assert max(g.abs().max() for g in plain[1].values()) > 0


def test_checkpointing_keeps_fewer_activations() -> None:
    kept = []
    for switch in (False, True):
        net, sizes = IResNet((2, 2, 2, 2), 32, gradient_checkpointing=switch), {}
        own = {p.data_ptr() for p in net.parameters()}

        def pack(t: Tensor, sizes: dict[int, int] = sizes, own: set[int] = own) -> Tensor:
            if t.data_ptr() not in own:
                sizes[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net(torch.randn(2, 3, 112, 112))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("name", ["tiny", "r18", "ir_18", "mbf", "vit_t"])
def test_autocast_keeps_the_output_layer_in_float32(name: str) -> None:
    torch.manual_seed(0)
    net = backbones.build(name, embedding_size=64)
    net(torch.randn(4, 3, 112, 112))  # running statistics that fit the weights
    net.eval()
    last = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 64]
    seen: list[torch.dtype] = []
    last[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = net(images)
    with torch.no_grad():
        full = net(images)
    assert low.dtype == full.dtype == torch.float32 and seen == [torch.float32, torch.float32]
    assert F.cosine_similarity(low, full).min() > 0.99
    assert (low - full).abs().max() > 0  # autocast was on


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_compact_encoders_learn(name: str) -> None:
    torch.manual_seed(0)
    prototypes = F.interpolate(torch.randn(8, 3, 7, 7), size=112, mode="bilinear")
    labels = torch.arange(8).repeat(2)
    net, classifier = backbones.build(name, embedding_size=64), nn.Linear(64, 8, bias=False)
    optimiser = torch.optim.SGD([*net.parameters(), *classifier.parameters()], lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        images = prototypes[labels] + 0.5 * torch.randn(16, 3, 112, 112)
        with torch.autocast("cpu", torch.bfloat16):
            features = net(images)
        loss = F.cross_entropy(8 * F.linear(F.normalize(features), F.normalize(classifier.weight)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1.5 and losses[-1] < 0.3
    assert torch.isfinite(features).all() and 2 < features.norm(dim=1).mean() < 30


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_prelu_is_pytorchs(monkeypatch, dtype: torch.dtype, tolerance: float, layout: torch.memory_format) -> None:
    monkeypatch.setattr(layers._PReLU, "BYTES_AT_ONCE", 4 * 6 * 25 * dtype.itemsize)  # two parts of four images and one of two
    x = torch.randn(10, 6, 5, 5).to(dtype).contiguous(memory_format=layout)
    x[0, :, 0] = 0.0
    results = []
    for kind in (nn.PReLU, layers.PReLU):
        module, leaf = kind(6), x.clone().requires_grad_()
        module.weight.data = torch.linspace(-0.5, 1.5, 6)
        out = module(leaf) if kind is layers.PReLU else F.prelu(leaf, module.weight.to(dtype))
        (out * torch.arange(x.numel()).view_as(x).remainder(7)).sum().backward()
        results.append((out, leaf.grad, module.weight.grad))
    (out, grad, grad_weight), (other, other_grad, other_grad_weight) = results
    assert torch.equal(out, other) and torch.equal(grad, other_grad) and other_grad_weight.dtype == torch.float32
    torch.testing.assert_close(other_grad_weight, grad_weight, rtol=tolerance, atol=tolerance)


def test_channels_last_gives_the_same_features() -> None:
    net = CompactNet((32, 32, 64), (1, 1, 1), 16).eval()
    images = golden_images()
    with torch.no_grad():
        expected = net(images)
        features = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_build_names_the_nearest_backbone() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'r5O': did you mean 'r50'"):
        backbones.build("r5O")
    assert {"tiny", "small", "r18", "r200", "ir_101", "mbf", "vit_l"} <= set(backbones.names())
    with pytest.raises(ValueError, match="mask_ratio is 1"):
        backbones.build("vit_t", mask_ratio=1.0)


def test_multiply_adds_of_convolutions_and_the_encoder_keeps_its_state() -> None:
    net = backbones.build("tiny").train()
    net.features.eval()
    modes = [m.training for m in net.modules()]
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    assert backbones.multiply_adds(net) == 188_611_584
    assert [m.training for m in net.modules()] == modes
    torch.testing.assert_close(dict(net.named_buffers()), buffers, atol=0, rtol=0)


def test_multiply_adds_of_a_vit_include_attention() -> None:
    N, dim = 144, 256
    block = 3 * N * dim * dim + 2 * N * N * dim + N * dim * dim + 2 * 4 * N * dim * dim
    expected = N * dim * 3 * 81 + 12 * block + N * dim * dim + dim * 512
    assert backbones.multiply_adds(backbones.build("vit_t")) == expected


@pytest.mark.parametrize(("name", "last_norm"), [("tiny", "bn"), ("r18", "bn2"), ("ir_18", "output_layer.0")])
def test_map_norm_gives_the_maps_norm_and_changes_no_direction(name: str, last_norm: str) -> None:
    torch.manual_seed(0)
    plain = backbones.build(name, embedding_size=32).eval()
    net = backbones.build(name, embedding_size=32, map_norm=True).eval()
    net.load_state_dict(plain.state_dict())
    maps: list[Tensor] = []
    net.get_submodule(last_norm).register_forward_hook(lambda module, inputs, output: maps.append(output.flatten(1)))
    images = torch.randn(3, 3, 112, 112)
    own, features = plain(images), net(images)
    torch.testing.assert_close(F.normalize(features), F.normalize(own), atol=1e-6, rtol=1e-5)
    expected = maps[0].square().mean(1).sqrt() * 32**0.5  # the norm of D numbers with the map's root mean square
    torch.testing.assert_close(features.norm(dim=1), expected, atol=0, rtol=1e-5)
    assert (features.norm(dim=1) / own.norm(dim=1)).std() > 1e-4

    gradients = torch.autograd.grad(features.square().sum() * 1e3, [p for p in net.parameters() if p.requires_grad])
    assert max(gradient.abs().max() for gradient in gradients) < 1e-2 * features.square().sum()  # no gradient through the norm
