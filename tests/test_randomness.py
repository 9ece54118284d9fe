"""Random numbers, permutations and the orders of epochs: compared with simple references, and tested for randomness."""

from __future__ import annotations

import time
import zlib

import numpy as np
import pytest
import torch

from recognition.data.order import CHUNK, FullShuffle, InOrder, WindowedShuffle
from utils.randomness import Permutation, hash64, mix64, permute, seed_for, uniforms

_BITS = (1 << 64) - 1


def _plain_mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _BITS
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _BITS
    return value ^ value >> 31


def _plain_hash(*parts: int) -> int:
    golden, state = 0x9E3779B97F4A7C15, 0
    for part in parts:
        state = _plain_mix((state + golden & _BITS) ^ _plain_mix(part + golden & _BITS))
    return state


def _plain_permute(value: int, length: int, key: int) -> int:
    golden = 0x9E3779B97F4A7C15
    left_size = max(1, int(length**0.5))
    right_size = -(-length // left_size)
    while True:
        left, right = divmod(value, right_size)
        for number in range(0, 6, 2):
            left = (left + (_plain_mix((key ^ number) + right * golden & _BITS) >> 1)) % left_size
            right = (right + (_plain_mix((key ^ number + 1) + left * golden & _BITS) >> 1)) % right_size
        value = left * right_size + right
        if value < length:
            return value


def test_hash_and_permutation_equal_python_integers():
    assert hash64(1, 2, 3).tolist() == [_plain_hash(1, 2, 3)]
    assert hash64(7, np.arange(5)).tolist() == [_plain_hash(7, part) for part in range(5)]
    values = np.arange(0, 100_003, 997)
    for key in (0, 5, _BITS):
        expected = [_plain_permute(value, 100_003, key) for value in values.tolist()]
        assert permute(values, 100_003, np.uint64(key)).tolist() == expected


def test_tensors_are_mixed_as_arrays_are():
    values = hash64(1, np.arange(1000)).view(np.int64)
    expected = [_plain_mix(value) for value in values.view(np.uint64).tolist()]
    assert mix64(values).view(np.uint64).tolist() == expected
    assert mix64(torch.from_numpy(values)).numpy().view(np.uint64).tolist() == expected


def test_seeds_of_generators():
    """Initial classifier rows depend on these values: they must not change."""
    assert seed_for(3, 0) == zlib.crc32(b"3") and seed_for(3, 5) == (zlib.crc32(b"3") + 5 * 0x9E3779B1) % 2**32
    seeds = {seed_for(seed, step, rank) for seed in range(3) for step in range(1000) for rank in range(8)}
    assert len(seeds) > 0.9999 * 24_000 and max(seeds) < 2**32


def test_lengths_and_keys_may_differ_by_element():
    lengths, keys = np.array([3, 10, 1, 500, 2**33]), np.arange(5) * 11
    values = lengths - 1
    expected = [_plain_permute(*args) for args in zip(values.tolist(), lengths.tolist(), keys.tolist(), strict=True)]
    assert permute(values, lengths, keys).tolist() == expected


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 16, 17, 100, 4096, 4097, 99_999])
def test_every_index_occurs_once(length):
    indices = Permutation(length, seed=1, epoch=2)(np.arange(length))
    assert np.array_equal(np.sort(indices), np.arange(length))
    pieces = [Permutation(length, 1, 2)(np.arange(start, min(start + 37, length))) for start in range(0, length, 37)]
    assert np.array_equal(np.concatenate(pieces), indices)


def test_every_index_occurs_everywhere_equally_often():
    """Chi-square over the 13 x 13 places of 20,000 permutations: mean 144 with deviation 17."""
    keys = np.repeat(hash64(3, np.arange(20_000)), 13)
    indices = permute(np.tile(np.arange(13), 20_000), 13, keys).reshape(-1, 13)
    for place in range(13):
        counts = np.bincount(indices[:, place], minlength=13)
        assert ((counts - 20_000 / 13) ** 2 / (20_000 / 13)).sum() < 12 + 6 * 24**0.5


def test_a_permutation_has_no_order_left():
    """The distance of neighbours is that of independent draws: a third of the length on average."""
    length = 50_000
    places = np.argsort(Permutation(length, 5, 0)(np.arange(length)))
    distance = np.abs(np.diff(places)) / length
    assert abs(distance.mean() - 1 / 3) < 0.01
    assert abs(np.quantile(distance, 0.5) - (1 - 0.5**0.5)) < 0.01
    other = Permutation(length, 5, 1)(np.arange(length))
    assert (other == Permutation(length, 5, 0)(np.arange(length))).sum() < 10
    assert (Permutation(length, 6, 0)(np.arange(length)) == other).sum() < 10


def test_uniform_numbers():
    draws = uniforms(3, 4, np.arange(20_000), 6)
    assert draws.shape == (20_000, 6) and draws.min() >= 0 and draws.max() < 1
    grid = np.sort(draws, axis=0)
    kolmogorov = np.abs(grid - (np.arange(20_000)[:, None] + 0.5) / 20_000).max(axis=0) * 20_000**0.5
    assert (kolmogorov < 2.2).all()  # exceeded once in 10,000
    others = np.concatenate([draws, uniforms(3, 4, np.arange(20_000), 3, stream=1), draws[1:].repeat(2, 0)[:20_000, :1]], axis=1)
    correlation = np.corrcoef(others, rowvar=False) - np.eye(10)
    assert np.abs(correlation[:9, :9]).max() < 0.035  # five deviations of independent columns
    assert np.array_equal(uniforms(3, 4, np.arange(20_000), 2), draws[:, :2])
    assert np.array_equal(uniforms(3, 4, np.array([17]), 6)[0], draws[17])
    assert not np.isin(draws[:100], uniforms(3, 5, np.arange(100), 6)).any()


# -- orders of an epoch

WINDOWED = [
    (3831, 96, 1000),
    (60_000, 512, 9000),
    (50_000, 7, 5000),
    (97, 96, 10),
    (100, 100, 5),
    (CHUNK * 144 + 17, 96, CHUNK * 48),
]


@pytest.mark.parametrize(("length", "batch", "window"), WINDOWED)
def test_windowed_order_visits_each_image_once(length, batch, window):
    order = WindowedShuffle(length, batch, seed=3, window=window)
    epochs = [order(epoch, np.arange(order.steps * batch)) for epoch in (0, 1)]
    for indices in epochs:
        assert len(np.unique(indices)) == order.steps * batch == length // batch * batch
        assert indices.min() >= 0 and indices.max() < length
    assert (epochs[0] == epochs[1]).mean() < 0.05


@pytest.mark.parametrize(("length", "batch", "window"), WINDOWED)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_everything_is_read_before_it_is_needed(length, batch, window, world):
    order = WindowedShuffle(length, batch, seed=3, window=window)
    share = batch // world
    for rank in range(world) if batch % world == 0 else ():
        for first in {0, order.steps // 2}:
            pieces = list(order.pieces(1, first, rank, world))
            assert [piece.batch for piece in pieces] == sorted(piece.batch for piece in pieces)
            read_at = np.full(length, order.steps)
            for piece in pieces:
                read_at[piece.start : piece.stop] = np.minimum(read_at[piece.start : piece.stop], piece.batch)
            batches = np.arange(first, order.steps)
            positions = (batches * batch)[:, None] + rank * share + np.arange(share)
            assert (read_at[order(1, positions)] <= batches[:, None]).all()


def test_ranks_read_equal_parts_in_large_pieces():
    order = WindowedShuffle(120_000, 192, seed=1, window=24_000)
    read = [sum(piece.stop - piece.start for piece in order.pieces(0, 0, rank, 4)) for rank in range(4)]
    assert sum(read) == 120_000 and max(read) - min(read) <= 12 * CHUNK
    sizes = [piece.stop - piece.start for piece in order.pieces(0, 0, 0, 4)]
    assert np.mean(sizes) > 0.8 * CHUNK


def test_windowed_order_is_random_within_its_window():
    """Images that are adjacent in the file are spread over their window; a batch has nearly as many classes as possible."""
    length, batch, per_class = 400_000, 480, 50
    order = WindowedShuffle(length, batch, seed=2, window=131_072)
    indices = order(0, np.arange(order.steps * batch))
    place = np.full(length, -1)
    place[indices] = np.arange(len(indices))
    apart = np.abs(np.diff(place[place >= 0]))
    assert np.quantile(apart, 0.05) > batch and np.median(apart) > 20 * batch / 2
    classes = [len(np.unique(row // per_class)) for row in indices.reshape(-1, batch)]
    shuffled = FullShuffle(length, batch, seed=2)(0, np.arange(20 * batch)).reshape(-1, batch)
    possible = np.mean([len(np.unique(row // per_class)) for row in shuffled])
    assert np.mean(classes) > 0.9 * possible


def test_the_order_of_the_files_is_used():
    file_order = np.random.default_rng(0).permutation(5000)
    plain, moved = (WindowedShuffle(5000, 48, 1, 1000, order) for order in (None, file_order))
    positions = np.arange(480)
    assert np.array_equal(moved(3, positions), file_order[plain(3, positions)])


@pytest.mark.parametrize("kind", ["full", "windowed"])
def test_ten_million_records_need_no_start_up_time(kind):
    begin = time.perf_counter()
    length = 10_000_000
    order = FullShuffle(length, 512, 1) if kind == "full" else WindowedShuffle(length, 512, 1, 131_072)
    indices = order(7, np.arange(5000 * 512, 5001 * 512))
    if isinstance(order, WindowedShuffle):
        next(order.pieces(7, 5000, 0, 2))
    assert time.perf_counter() - begin < 1
    assert len(np.unique(indices)) == 512 and indices.max() < length


def test_in_order():
    assert InOrder(100, 10)(4, np.arange(3, 6)).tolist() == [3, 4, 5] and InOrder(109, 10).steps == 10
