"""Run a function in W processes that form a gloo process group, and collect their results."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# A server process that imports torch once and forks the ranks, so that a rank starts in milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank_main(rank: int, world: int, port: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
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
        port = free_port()
        ranks = [_CONTEXT.Process(target=_rank_main, args=(rank, world, port, folder, function, args)) for rank in range(world)]
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
