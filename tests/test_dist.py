"""Collectives and shards, with real ranks; synchronised BatchNorm against one process."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch
from torch import nn

from losses.sharded_softmax import initial_rows
from tests.world import run_world
from utils import dist
from utils.errors import UserError
from utils.rendezvous import agree_on_start
from utils.sync_bn import convert_sync_batchnorm


@pytest.mark.parametrize(("total", "world"), [(11, 1), (11, 2), (11, 3), (11, 4), (3, 4), (5, 4), (8631, 4), (0, 2)])
def test_shards_cover_the_list_as_torch_chunk_does(total, world):
    ranges = [dist.shard_range(total, rank, world) for rank in range(world)]
    rows = [list(range(r.start, r.stop)) for r in ranges]
    assert [row for part in rows for row in part] == list(range(total))
    chunks = [c.tolist() for c in torch.arange(total).chunk(world)] if total else []
    assert [r for r in rows if r] == chunks


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_initial_classifier_does_not_depend_on_the_ranks(world):
    whole = initial_rows(9001, 4, dist.shard_range(9001, 0, 1), seed=7)
    parts = [initial_rows(9001, 4, dist.shard_range(9001, rank, world), seed=7) for rank in range(world)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, initial_rows(9001, 4, dist.shard_range(9001, 0, 1), seed=8))
    assert whole.std().item() == pytest.approx(0.01, rel=0.05)
    assert len(torch.unique(whole[:, 0])) > 8990, "rows must not repeat from shard to shard"


def _exchange() -> torch.Tensor:
    rank, world = dist.rank_and_world()
    counts = [(rank + other) % 3 for other in range(world)]
    return dist.exchange_rows(torch.full((sum(counts), 2), float(rank)), counts)


def test_rows_reach_the_rank_they_are_meant_for():
    for rank, received in enumerate(run_world(3, _exchange)):
        expected = [sender for sender in range(3) for _ in range((sender + rank) % 3)]
        assert received[:, 0].tolist() == expected


def _uneven() -> torch.Tensor:
    rank, _ = dist.rank_and_world()
    return dist.gather_uneven_rows(torch.full((rank * 2, 3), rank))


def test_uneven_rows_are_put_together_in_rank_order():
    for rows in run_world(3, _uneven):
        assert rows[:, 0].tolist() == [1, 1, 2, 2, 2, 2]


def _complain() -> str:
    def action() -> None:
        raise OSError("no space left")

    try:
        dist.on_first_rank(action)
    except UserError as error:
        return str(error)
    return "nothing was raised"


def test_a_complaint_of_the_first_rank_reaches_all():
    assert run_world(2, _complain) == ["no space left", "no space left"]


def _answer() -> dict[str, float]:
    return dist.on_first_rank(lambda: {"rank": float(dist.rank_and_world()[0]), "a third": 1 / 3})


def test_the_first_ranks_value_reaches_all():
    assert run_world(2, _answer) == [{"rank": 0.0, "a third": 1 / 3}] * 2


def _two_problems() -> tuple[str, ...]:
    def action() -> None:
        raise UserError("one", "two")

    try:
        dist.on_first_rank(action)
    except UserError as error:
        return error.args
    return ()


def test_all_problems_of_the_first_rank_reach_all():
    assert run_world(2, _two_problems) == [("one", "two"), ("one", "two")]


def test_more_ranks_than_gpus_is_a_clear_error():
    with pytest.raises(UserError, match="4 processes were started on a machine with 2 GPU"):
        dist.choose_device(0, 4, gpu_count=2)
    assert dist.choose_device(1, 2, gpu_count=2) == torch.device("cuda", 1)
    assert dist.choose_device(3, 4, gpu_count=0) == torch.device("cpu")


def _norms(inputs: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    rank, world = dist.rank_and_world()
    torch.manual_seed(0)
    net = convert_sync_batchnorm(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(16)))
    mine = inputs.chunk(world)[rank].clone().requires_grad_()
    (net(mine) * weights.chunk(world)[rank]).sum().backward()
    bias = dist.sum_over_ranks(net[1].bias.grad)
    return {"input": mine.grad, "bias": bias, "mean": net[1].running_mean, "var": net[1].running_var}


@pytest.mark.parametrize("world", [1, 3])
def test_synchronised_batch_norm_equals_batch_norm_over_the_whole_batch(world):
    inputs, weights = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.randn(12, 16)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(16))
    whole = inputs.clone().requires_grad_()
    (plain(whole) * weights).sum().backward()
    ranks = run_world(world, _norms, inputs, weights)
    torch.testing.assert_close(torch.cat([r["input"] for r in ranks]), whole.grad, rtol=1e-4, atol=1e-5)
    for rank in ranks:
        torch.testing.assert_close(rank["bias"], plain[1].bias.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rank["mean"], plain[1].running_mean)
        torch.testing.assert_close(rank["var"], plain[1].running_var)


def test_a_new_start_does_not_take_up_what_the_dead_have_left():
    """Rank 1 comes back first and finds question and list of an earlier start: it waits for today's."""
    store = torch.distributed.HashStore()
    limit = timedelta(seconds=20)

    def start(late: int) -> list[str]:
        names = ["", "", ""]

        def come(rank: int) -> None:
            time.sleep(0.3 if rank == late else 0)
            names[rank] = agree_on_start(store, rank, 3, limit)

        ranks = [threading.Thread(target=come, args=(rank,)) for rank in range(3)]
        for thread in ranks:
            thread.start()
        for thread in ranks:
            thread.join(30)
        return names

    starts = [start(late) for late in (0, 1, 0, 2)]
    assert all(len(set(names)) == 1 and names[0] for names in starts)
    assert len({names[0] for names in starts}) == len(starts)


def test_a_rank_that_never_comes_is_named():
    with pytest.raises(RuntimeError, match="rank 1 did not join"):
        agree_on_start(torch.distributed.HashStore(), 0, 2, timedelta(seconds=0.1))
