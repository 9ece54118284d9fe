"""No step waits for the device.

On a GPU: whole steps, while PyTorch raises an error if an operation makes the host wait. Without one: the same steps under
a watch that tracks which tensors would be on the device (the state, tensors moved or created there, and results computed from
these) and notes each time the host reads numbers of one of them or combines it with a host tensor. The device is then `DEVICE`,
a CPU with an index; host tensors are on the CPU without an index.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recognition.finite import FiniteCheck
from tests.shared_files import ROOT
from tests.step_parts import Parts, SmallStep
from utils import dist

_ENGINE = torch.autograd.Variable._execution_engine
DEVICE = torch.device("cpu", 0)

PARTS = {
    "SGD": Parts(skip_unneeded=False),
    "AdamW, sampled classes": Parts("adamw", 0.3, skip_unneeded=False),
    "SGD, sampled classes, scaled": Parts("sgd", 0.3, scaled=True, skip_unneeded=False),
    "arcface_torch's arithmetic": Parts(sample_rate=0.0, as_arcface_torch=True, skip_unneeded=False),
    "a margin with state, unlabelled images": Parts(curricular=True, skip_unneeded=False, unlabelled=True),
}
ASK = {  # operators that return numbers, or a shape that depends on numbers, to the host
    "_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "equal",
    "_coalesce", "bincount",
}  # fmt: skip
READ = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__bool__, torch.Tensor.__int__,
    torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.__array__,
}  # fmt: skip


def _tensors(*values) -> list[torch.Tensor]:
    found = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return [tensor._values() if tensor.is_sparse else tensor for tensor in found]


class Watch:
    """While entered, `noted` collects what the host read from the device, with the function that did."""

    def __init__(self, on_device: list[torch.Tensor]):
        self.noted: list[tuple[str, str]] = []
        self.calls = 0  # nesting of PyTorch's functions
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept, so that their addresses are not reused
        self.move(on_device)
        self._modes = (_Functions(self), _Operators(self))

    def move(self, value) -> None:
        """Treat these tensors as being on the device."""
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = storage

    def has(self, value) -> bool:
        return any(tensor.untyped_storage()._cdata in self._storages for tensor in _tensors(value))

    def note(self, what: str) -> None:
        frame = sys._getframe(2)
        while not _is_ours(frame.f_code.co_filename) and frame.f_back is not None:
            frame = frame.f_back
        self.noted.append((what, frame.f_code.co_qualname))

    def __enter__(self) -> Watch:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *fault) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*fault)


def _is_ours(file: str) -> bool:
    return file.startswith(str(ROOT)) and file != __file__ and "site-packages" not in file


class _Functions(TorchFunctionMode):
    """Calls of PyTorch's functions: reading numbers, and moving to the device (no operator sees that on a CPU)."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.backward:
            with self:  # this method is outside the mode; Python code in the backward pass must be seen too
                return _ENGINE.run_backward((args[0],), (torch.ones_like(args[0]),), False, False, (), True, True)
        if function in READ and self.watch.has(args[0]):
            self.watch.note(function.__name__)
        self.watch.calls += 1
        try:
            result = function(*args, **kwargs)
        finally:
            self.watch.calls -= 1
        if function == torch.Tensor.device.__get__ and self.watch.has(args[0]):
            return DEVICE
        places = [place for place in (kwargs.get("device"), *args[1:2]) if isinstance(place, torch.device)]
        if DEVICE in places and isinstance(result, torch.Tensor):
            result = result.clone() if function is torch.Tensor.to else result  # a copy, as it would be on a device
            self.watch.move(result)
        return result


class _Operators(TorchDispatchMode):
    """Operators, also in the backward pass."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs, watch = kwargs or {}, self.watch
        written = {a.name for a in operator._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
        named = {**dict(zip((a.name for a in operator._schema.arguments), args, strict=False)), **kwargs}
        inputs = _tensors([value for key, value in named.items() if key not in written])
        of_engine = not inputs and not watch.calls  # zeros, if the backward pass has no gradient
        touches_device = of_engine or watch.has([args, kwargs])
        name = operator._schema.name.split("::")[-1]
        if touches_device:
            if name in ASK or (name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1:]))):
                watch.note(name)
            if name != "copy_" and any(t.dim() and not watch.has(t) for t in inputs):
                watch.note(f"{name} of host and device")  # a copy by gloo, not by the step
        result = operator(*args, **kwargs)
        if touches_device:
            watch.move([result, *(value for key, value in named.items() if key in written)])
        return result


@pytest.fixture
def alone():
    """A world of one rank, in this process."""
    world = dist.start()
    yield world
    dist.stop()


def _state_of(small: SmallStep) -> list[torch.Tensor]:
    """All tensors that are on the device between two steps."""
    state, check = small.state, small.step._pending
    queue = state.joint.queue
    assert queue is not None and isinstance(check, FiniteCheck)
    momenta = [value for values in state.optimiser.state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    return [
        *[tensor for module in (state.encoder, state.joint) for tensor in (*module.parameters(), *module.buffers())],
        *momenta,
        *[queue._feature, queue._proxy, queue._label],
        *[state.loss_scale.value, state.loss_scale.good_steps],
        check._both_2W._value,
    ]


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_step_asks_the_device_only_whether_the_step_before_was_finite(alone, name):
    small = SmallStep(PARTS[name], DEVICE)
    small.learn(0)  # creates what only the first step creates: momentum, DDP's buckets
    small.learn(1)
    batches = [small.batch(number) for number in (2, 3, 4)]
    with Watch([*_state_of(small), *(batch.images_VBHWC for batch in batches)]) as watch:
        for batch in batches:
            small.step([batch])
    assert watch.noted == [("tolist", "FiniteCheck.skip_reason")] * 3
    assert small.outcomes == [""] * 4


class _AsksInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * grad.sum().item()


WAITS = {
    "item": lambda on_device: on_device.sum().item(),
    "__float__": lambda on_device: float(on_device.sum()),
    "__bool__": lambda on_device: bool(on_device.isfinite().all()),
    "tolist": lambda on_device: on_device.tolist(),
    "cpu": lambda on_device: on_device.cpu(),
    "nonzero": lambda on_device: (on_device > 0).nonzero(),
    "index": lambda on_device: on_device[on_device > 0],
    "add of host and device": lambda on_device: on_device + torch.ones(3),
    "index of host and device": lambda on_device: on_device[torch.tensor([0, 2])],
    "index_put_ of host and device": lambda on_device: on_device.index_put_((torch.arange(3, device=DEVICE),), torch.ones(3)),
    "_local_scalar_dense": lambda on_device: torch.is_nonzero(on_device.sum()),
    "_unique2": lambda on_device: on_device.unique(),
    "the backward pass": lambda on_device: _AsksInBackward.apply(on_device.requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize("name", sorted(WAITS))
def test_the_watch_notes_what_would_wait(name):
    on_device, host = torch.ones(3), torch.ones(3)
    with Watch([on_device]) as watch:
        (host + 1).sum().item()
        host.to(DEVICE) * on_device.mean() * torch.ones(3, device=on_device.device)
        assert watch.noted == []
        WAITS[name](on_device)
    expected = "item" if name == "the backward pass" else name
    assert expected in [what for what, _ in watch.noted]


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(PARTS))
def test_whole_steps_on_a_gpu_never_wait(alone, name):
    small = SmallStep(PARTS[name], alone.device)
    for number in range(3):
        small.learn(number)
    batches = [small.batch(number) for number in range(3, 7)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            small.step([batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert small.step.finish_step() == "" and small.outcomes == [""] * 7
