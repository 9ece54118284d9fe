"""Randomness as a pure function of a seed and what it is used for: the same for any number of ranks, workers and restarts.

Two functions cover every use, and neither holds state:

- `hash64` computes random numbers directly, one per index: augmentation, the order of an epoch, sampled classes.
- `seed_for` returns the seed of a generator: initial classifier rows, dropout.

A shuffle is a keyed permutation that maps one position at a time, so memory does not depend on the number of records.
This module imports NumPy only, because loader workers import it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed number: SplitMix64's increment
_GOLDEN = np.uint64(GOLDEN + (1 << 64))
_FACTOR_1, _FACTOR_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_ROUNDS = 6


def seed_for(*key: int) -> int:
    """A 32-bit seed for a generator (PyTorch's CPU generator uses no more bits), from numbers such as (seed, step, rank).

    Keys that differ only in their last number always have different seeds.
    """
    *first, last = key
    return (zlib.crc32(" ".join(map(str, first)).encode()) + last * 0x9E3779B1) & 0xFFFFFFFF


def mix64(value: Any) -> Any:
    """Scatter 64-bit numbers: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), a bijection.

    value: int64, a NumPy array or a PyTorch tensor; so is the result. The masks drop the copies of the sign that a right
    shift of signed numbers brings in.
    """
    value = (value ^ (value >> 30 & (1 << 34) - 1)) * (_FACTOR_1 - (1 << 64))
    value = (value ^ (value >> 27 & (1 << 37) - 1)) * (_FACTOR_2 - (1 << 64))
    return value ^ (value >> 31 & (1 << 33) - 1)


def _mix_int(value: int) -> int:
    """`mix64` of one unsigned Python integer, in a tenth of NumPy's time."""
    value = (value ^ value >> 30) * _FACTOR_1 & _WORD
    value = (value ^ value >> 27) * _FACTOR_2 & _WORD
    return value ^ value >> 31


def _mix(value: UInt64Array) -> UInt64Array:
    return mix64(value.view(np.int64)).view(np.uint64)


def hash64(*parts: int | np.ndarray) -> UInt64Array:
    """A 64-bit hash of integers or integer arrays (broadcast against each other): uint64 array."""
    state: int | UInt64Array = 0
    with np.errstate(over="ignore"):
        for part in parts:
            if isinstance(part, int) and isinstance(state, int):
                state = _mix_int((state + int(_GOLDEN) & _WORD) ^ _mix_int((part & _WORD) + int(_GOLDEN) & _WORD))
            else:
                state = _mix((np.asarray(state, np.uint64) + _GOLDEN) ^ _mix(np.asarray(part).astype(np.uint64) + _GOLDEN))
    return np.atleast_1d(np.asarray(state, np.uint64))


def uniforms(seed: int, epoch: int, positions: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` independent uniform numbers in [0, 1) per position: float64 [N, count].

    The first numbers do not depend on `count`. `stream` separates uses that must not share numbers, such as the two views.
    """
    bits = hash64(seed, epoch, stream, positions[:, None], np.arange(count)[None, :])
    return (bits >> np.uint64(11)) * 2.0**-53


def permute(values: np.ndarray, lengths: int | np.ndarray, keys: int | np.ndarray) -> npt.NDArray[np.int64]:
    """The images of `values` under pseudo-random permutations of 0 … length-1, one permutation per key: int64.

    Lengths (at least 1) and keys are numbers, or arrays that broadcast against `values`. There is no table: a generalised
    Feistel network on Z_a x Z_b, with a b slightly above the length, walks its cycle until it lands inside (Black and Rogaway,
    CT-RSA 2002).
    """
    shape = np.broadcast_shapes(np.shape(values), np.shape(lengths))
    value, length, key = (
        np.broadcast_to(np.asarray(each).astype(np.uint64), shape or 1).ravel() for each in (values, lengths, keys)
    )
    value = value.copy()
    left_size = np.sqrt(length.astype(np.float64)).astype(np.uint64)  # any size works; near the root it mixes best
    left_size = np.maximum(left_size, np.uint64(1))
    right_size = (length + left_size - np.uint64(1)) // left_size
    walking = slice(None)
    while True:
        value[walking] = _feistel(value[walking], left_size[walking], right_size[walking], key[walking])
        walking = np.flatnonzero(value >= length)  # type: ignore[assignment]
        if not len(walking):  # type: ignore[arg-type]
            return value.astype(np.int64).reshape(shape)


def _feistel(value: UInt64Array, left_size: UInt64Array, right_size: UInt64Array, key: UInt64Array) -> UInt64Array:
    left, right = value // right_size, value % right_size
    with np.errstate(over="ignore"):
        for number in range(0, _ROUNDS, 2):
            left = (left + _scatter(key, number, right)) % left_size
            right = (right + _scatter(key, number + 1, left)) % right_size
    return left * right_size + right


def _scatter(key: UInt64Array, number: int, value: UInt64Array) -> UInt64Array:
    return _mix((key ^ np.uint64(number)) + value * _GOLDEN) >> np.uint64(1)  # 63 bits, so that the sum cannot wrap


class Permutation:
    """A pseudo-random permutation of 0 … length-1 for an epoch, computed per position: no table, no start-up cost."""

    def __init__(self, length: int, seed: int, epoch: int):
        self.length, self._key = length, hash64(seed, epoch)

    def __call__(self, positions: np.ndarray) -> npt.NDArray[np.int64]:
        """Indices at `positions` (each in [0, length)): int64, of the same shape."""
        return permute(positions, self.length, self._key)
