"""The encoder in parts: each rank holds its rows of every parameter, and of their gradients and optimiser state.

PyTorch's FSDP2 (`fully_shard`; Zhao et al., VLDB 2023, https://arxiv.org/abs/2304.11277) gathers a block's weights just before
the block runs, frees them after it, and reduces and scatters its gradients. It averages them over the ranks, as DDP does, so the
conventions of utils/dist.py hold. Rows are divided as in `utils.dist.shard_range`, and checkpoints store them like those of the
classifier.

The optimiser sees plain tensors only (DTensors have no fused SGD): this rank's rows of a parameter are a parameter of their own
that shares its memory, and receive its gradient. Everything else that works on rows asks `own_rows` for them.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from utils import dist
from utils.errors import UserError

_BLOCK = re.compile(r"(.*\.)?(layer\d+|blocks|body|layers)\.\d+")


def shard(encoder: nn.Module, device: torch.device, autocast: torch.dtype | None) -> None:
    """Divide an encoder over the ranks, in place. Call it before the optimiser or a checkpoint sees its parameters.

    Gathered together: each block, each linear layer outside the blocks, and the rest. Under autocast, the parts of a block
    whose parameters it would convert, such as attention and MLP, are gathered in its number format: half the bytes.
    Weights are stored contiguously. Full state dicts still load. Raises UserError if FSDP2 does not support the encoder.
    """
    encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(device.type, (dist.rank_and_world()[1],))
    if type(encoder).__module__.startswith("backbones."):  # they change no block's output in place
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(.*\) returned a view tensor")
    try:
        for unit, dtype in _units(encoder, autocast):
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    except (ValueError, NotImplementedError) as fault:
        raise UserError(f"encoder_sharding='fsdp': FSDP2 does not support this network: {fault}; use 'none'") from fault
    encoder.register_load_state_dict_pre_hook(_distribute)
    for parameter in encoder.parameters():
        rows = nn.Parameter(local(parameter).detach(), parameter.requires_grad)
        parameter.own_rows = rows  # type: ignore[attr-defined]
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(partial(_move_gradient, rows))


def _units(encoder: nn.Module, autocast: torch.dtype | None) -> Iterator[tuple[nn.Module, torch.dtype | None]]:
    """Modules whose parameters are gathered together, inner ones first, each with the number format if that is not its own."""
    named = dict(encoder.named_modules())
    blocks = [name for name, module in named.items() if _BLOCK.fullmatch(name) and any(True for _ in module.parameters())]
    for name, module in reversed(named.items()):
        if name in blocks or not name:
            yield module, None
        elif not any(name.startswith(f"{block}.") for block in blocks):
            if isinstance(module, nn.Linear):
                yield module, None
        elif autocast is not None and name.rpartition(".")[0] in blocks and _is_converted(module):
            yield module, autocast


def _is_converted(module: nn.Module) -> bool:
    """Whether a module has parameters, and all are of linear layers, which autocast converts."""
    owners = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return bool(owners) and all(isinstance(part, nn.Linear) for part in owners)


def gathered_bytes(encoder: nn.Module, autocast: torch.dtype | None) -> int:
    """The most memory for what is not in parts: the rest, the block in use and the next one, and a block's gradients, twice."""
    seen: set[nn.Parameter] = set()
    sizes = []
    for unit, dtype in _units(encoder, autocast):
        own = set(unit.parameters()) - seen
        sizes.append(sum(parameter.numel() * (dtype or parameter.dtype).itemsize for parameter in own))
        seen |= own
    *blocks, rest = sizes
    return rest + sum(sorted(blocks)[-2:]) + 2 * max(blocks, default=0)


def _distribute(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace full tensors of a state dict that is about to be loaded by this rank's rows."""
    for name, parameter in module.named_parameters(prefix.rstrip(".")):
        value = state.get(name)
        if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or isinstance(value, DTensor):
            continue
        if value.shape == parameter.shape:  # else loading reports it
            value = value.to(parameter.device)
            state[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _move_gradient(rows: nn.Parameter, parameter: torch.Tensor) -> None:
    """Give this rank's rows the gradient that FSDP2 has just reduced."""
    assert parameter.grad is not None
    gradient = local(parameter.grad)
    rows.grad = gradient if rows.grad is None else rows.grad + gradient
    parameter.grad = None


# ------------------------------------------------------------------------------------------------ rows


def is_sharded(encoder: nn.Module) -> bool:
    """Whether `shard` has divided the encoder."""
    return isinstance(encoder, FSDPModule)


def own_rows(parameter: nn.Parameter) -> nn.Parameter:
    """What this rank updates of a parameter: its rows if the encoder is sharded, else all of it."""
    return getattr(parameter, "own_rows", parameter)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a sharded tensor, in the same memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_rows(like: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    """A tensor that is sharded as `like` is, with this rank's rows; the rows themselves if `like` is not sharded."""
    if not isinstance(like, DTensor):
        return rows
    rows, shape, stride = rows.to(like.device), like.shape, like.stride()
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


# ------------------------------------------------------------------------------------------------ the whole encoder


@contextlib.contextmanager
def gathered(encoder: nn.Module) -> Iterator[None]:
    """Within the block, every rank has all weights of a sharded encoder and may run it without the others. Collective."""
    units = [module for module in encoder.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)
