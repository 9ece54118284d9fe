"""An encoder that is sharded with FSDP2 against DDP: the same steps, checkpoints that either reads, and less memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recognition import build
from recognition.checkpoints import store
from recognition.checkpoints.state import capture
from recognition.checkpoints.store import ShardedRows
from recognition.data.prefetch import DeviceBatch
from recognition.encoders.embedder import Embedder, autocast_type
from recognition.monitor.progress import verification_history
from recognition.sharding import gathered
from tests.commands import metrics
from tests.plug import Run
from tests.world import run_world
from utils import dist, plugins
from utils.config import Config, from_base
from utils.errors import UserError

CLASSES, IMAGES, STEPS, SKIPPED = 23, 12, 3, 1
PLUGIN = "backbones.vit:VisionTransformer"  # 30 is not divisible by 4
VIT = {"network": PLUGIN, "network_options": {"dim": 30, "depth": 2, "heads": 3}}
TINY = {"network": "tiny", "freeze": ("stem.*", "blocks.0.*"), "layer_decay": 0.5}
FULL = {"gradient_acc": 2, "gradient_checkpointing": True, "queue": "momentum", "clip": "encoder"}
CASES: dict[int, list[dict[str, Any]]] = {  # number of ranks -> settings
    1: [VIT],
    2: [VIT, TINY | {"queue": "momentum"}, VIT | {"precision": "bf16"}],
    3: [VIT, VIT | FULL | {"optimizer": "adamw", "lr": 1e-5}],
    4: [VIT | {"sample_rate": 0.5}],
}


def _train(changes: dict[str, Any], mode: str) -> dict[str, Any]:
    """Some steps, of which one is skipped: losses and gradient norms, all tensors in full, and bytes per rank."""
    plugins.trust([PLUGIN])
    rank, size = dist.rank_and_world()
    world = dist.World(rank, size, rank, size, torch.device("cpu"))
    settings = {
        "num_classes": CLASSES, "embedding_size": 16, "batch_size": IMAGES // size, "queue_size": 40, "precision": "fp32",
        "max_grad_norm": 2.0, "lr": 0.01, "quality_mean": 4.0, "quality_std": 1.0,
    }  # fmt: skip
    config = build.resolve_config(from_base(**{**settings, **changes, "encoder_sharding": mode}), None, size)
    state = build.build_train_state(config, world)
    state.encoder.train()
    outcomes: list[str] = []
    step = build.build_train_step(config, world, state, outcomes.append)
    figures, weight = [], state.joint.classifier.weight
    for number in range(STEPS):
        torch.manual_seed(number)
        spoil = weight.register_hook(lambda grad: grad * float("nan")) if number == SKIPPED and rank == size - 1 else None
        before = {name: value.clone() for name, value in _whole(state).items()} if number == SKIPPED else {}
        done = step([_batch(10 * number + part, config.batch_size) for part in range(config.gradient_acc)])
        step.finish_step()
        if number == SKIPPED:
            after = _whole(state)
            assert all(torch.equal(value, after[name]) for name, value in before.items())
        else:
            figures.append(done.figures(state.joint.quality))
        if spoil is not None:
            spoil.remove()
    owned = [p for group in state.optimiser.param_groups for p in group["params"] if p is not weight]
    moments = [value for p in owned for value in state.optimiser.state[p].values()]
    held = sum(value.numel() * value.element_size() for value in [*owned, *owned, *moments])  # gradients are as large
    result = {"figures": figures, "outcomes": outcomes, "tensors": _whole(state), "held": held}
    return {**result, "features": _features(state, config)}


def _batch(number: int, images: int) -> DeviceBatch:
    generator = torch.Generator().manual_seed(100 * number + dist.rank_and_world()[0])
    pixels = torch.randint(0, 256, (2, images, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return DeviceBatch(pixels, torch.randint(0, CLASSES, (images,), generator=generator), np.arange(images), ())


def _whole(state) -> dict[str, torch.Tensor]:
    tensors = capture(state).tensors
    return {name: dist.gather_uneven_rows(t.rows) if isinstance(t, ShardedRows) else t.detach() for name, t in tensors.items()}


def _features(state, config: Config) -> torch.Tensor:
    """Of one image, from the encoder in full; the first rank alone computes them twice, as in verification of uneven sets."""
    device = torch.device("cpu")
    embed = Embedder(state.encoder, device, "RGB", autocast_type(config.precision, device))
    image = torch.full((1, 112, 112, 3), 200, dtype=torch.uint8)
    with gathered(state.encoder):
        for _ in range(1 + (dist.rank_and_world()[0] == 0)):
            features = embed(image)
    return features


def _train_both(cases: list[dict[str, Any]]) -> list[tuple[dict, dict]]:
    return [(_train(changes, "none"), _train(changes, "fsdp")) for changes in cases]


@pytest.mark.parametrize("world", sorted(CASES))
def test_steps_equal_those_of_ddp(world):
    """Losses, norms, every weight, statistic and optimiser state; a skipped step leaves no trace; memory is divided."""
    for results in run_world(world, _train_both, CASES[world]):
        for changes, (ddp, fsdp) in zip(CASES[world], results, strict=True):
            within = 1e-3 if "precision" in changes else 1e-5 if "optimizer" in changes else 1e-6  # AdamW divides by rounding
            amplified = ("optimiser.", "queue.")  # like the figures: gradients, and features after BatchNorm over few images
            assert ddp["outcomes"] == fsdp["outcomes"] and [bool(text) for text in fsdp["outcomes"]].index(True) == SKIPPED
            assert ddp["tensors"].keys() == fsdp["tensors"].keys()
            for one, other in zip(ddp["figures"], fsdp["figures"], strict=True):
                assert other == pytest.approx(one, rel=10 * within, abs=10 * within), changes
            for name, value in ddp["tensors"].items():
                largest = max(1.0, float(value.abs().max())) * (10 if name.startswith(amplified) else 1)
                torch.testing.assert_close(
                    fsdp["tensors"][name], value, rtol=0, atol=within * largest, msg=lambda text, name=name: f"{name}: {text}"
                )
            torch.testing.assert_close(fsdp["features"], ddp["features"], rtol=10 * within, atol=10 * within)
            assert fsdp["held"] <= ddp["held"] / world * (1.0 if world == 1 else 1.2), changes


SETTINGS = (
    *(f"network={PLUGIN}", f"network_options={VIT['network_options']}", "mask_ratio=0.0", "drop_path=0.0", "sync_bn=True"),
    *("lr=0.002", "num_workers=0", "save_every=1", "keep_last=9", "diagnose_every=2", "val_targets=demo_hq", "verbose=2"),
)
LEGS = ((3, "fsdp", 4), (2, "fsdp", 5), (2, "fsdp", 6), (1, "none", 7))  # ranks, sharding, last step; after two on two with DDP


def test_checkpoints_move_between_ddp_and_fsdp_at_any_number_of_ranks(demo_set, tmp_path):
    """Losses and accuracies equal those of a run that stayed with DDP; a resumed sharded run equals one without a break."""
    stayed, moved, whole = tmp_path / "stayed", tmp_path / "moved", tmp_path / "whole"
    Run(demo_set, stayed, *SETTINGS, "max_steps=7", ranks=2).succeed()
    _copy(stayed, moved, 2)
    for ranks, sharding, end in LEGS:
        text = Run(demo_set, moved, *SETTINGS, f"encoder_sharding={sharding}", f"max_steps={end}", ranks=ranks).succeed()
        assert ("encoder sharded" in text) == (sharding == "fsdp")
        saved = store.read_state(store.folder_of(moved, end))["sharded"]
        assert ("encoder.pos_embed" in saved) == (sharding == "fsdp")
    for one, other in zip(metrics(stayed), metrics(moved), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5), one["step"]
    accuracies, others = map(verification_history, (stayed, moved))
    assert all(others[step]["demo_hq"] == pytest.approx(accuracies[step]["demo_hq"], abs=1e-5) for step in (4, 6))
    _copy(moved, whole, 4)
    Run(demo_set, whole, *SETTINGS, "encoder_sharding=fsdp", "async_save=True", "max_steps=6", ranks=2).succeed()
    one, other = (store.read_tensors(store.folder_of(output, 6)) for output in (whole, moved))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _copy(run: Path, copy: Path, step: int) -> None:
    """A copy of a run as it was after a step."""
    shutil.copytree(run, copy)
    for folder in store.complete_checkpoints(copy):
        if folder != store.folder_of(copy, step):
            shutil.rmtree(folder)


def test_compile_is_refused():
    with pytest.raises(UserError, match=r"encoder_sharding='fsdp': torch.compile does not support it"):
        from_base(encoder_sharding="fsdp", compile=True)
