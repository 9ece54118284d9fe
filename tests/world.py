"""Run a function in W processes that form a gloo process group, and collect their results."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import eval.commands

# A server process that imports everything once and forks ranks and commands, so that these start in milliseconds.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["recognition.trainer", "recognition.planning.plan", "torch.utils.tensorboard", "torch._dynamo", "pytest"]
    + [f"eval.commands.{module.name}" for module in pkgutil.iter_modules(eval.commands.__path__)]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(world: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each rank of a new group on this machine."""
    common = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def _rank_main(environment: dict[str, str], folder: str, function: Callable[..., Any], args: tuple) -> None:
    rank = environment["RANK"]
    os.environ.update(environment, CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    from utils import dist

    try:
        dist.start(timeout_minutes=2)
        torch.save(function(*args), Path(folder) / f"{rank}.pt")
        dist.stop()
    except BaseException:  # noqa: BLE001 - the test reports any error
        (Path(folder) / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)


def run_world(world: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """`function(*args)` on ranks 0..world-1; the list of what they returned (tensors, numbers, dicts of them).

    A rank that fails fails the test, with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = [FORKED.Process(target=_rank_main, args=(one, folder, function, args)) for one in rank_environment(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout)
        hanging = [process.pid for process in ranks if process.is_alive()]
        for process in ranks:
            process.kill()
        errors = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not errors, "\n".join(errors)
        assert not hanging, f"ranks did not finish in {timeout} s: {hanging}"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
