"""Randomness as a pure function of (seed, epoch, position): the same for any number of ranks, workers and restarts.

Nothing here holds state or costs memory in the number of records: random numbers are hashes, and the epoch's shuffle is
a keyed permutation that maps one position at a time.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64 bits that scatters well."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hash64(*parts: int | np.ndarray) -> np.ndarray:
    """A 64-bit hash of integers or integer arrays (broadcast against each other): uint64 array."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix((state + _GOLDEN) ^ _mix(np.asarray(part).astype(np.uint64) + _GOLDEN))
    return state


def uniforms(seed: int, epoch: int, positions: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` independent uniform numbers in [0, 1) for each position: float64 [N, count].

    `stream` separates uses that must not share numbers (the two views, say).
    """
    bits = hash64(seed, epoch, stream, positions[:, None], np.arange(count)[None, :])
    return (bits >> np.uint64(11)) * 2.0**-53


class Permutation:
    """A pseudo-random permutation of 0..length-1, evaluated where it is asked: a balanced Feistel network over the next
    power of four, walking its cycle until it lands inside (Black and Rogaway, CT-RSA 2002). No table, no start-up cost."""

    ROUNDS = 6

    def __init__(self, length: int, seed: int, epoch: int):
        self.length, self.seed, self.epoch = length, seed, epoch
        self._half_bits = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)

    def _encrypt(self, value: np.ndarray) -> np.ndarray:
        left, right = value >> self._half_bits, value & self._mask
        for number in range(self.ROUNDS):
            left, right = right, left ^ (hash64(self.seed, self.epoch, number, right) & self._mask)
        return (left << self._half_bits) | right

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices at `positions` (each in [0, length)): int64, of the same shape."""
        value = self._encrypt(np.asarray(positions).astype(np.uint64))
        outside = value >= self.length
        while outside.any():
            value[outside] = self._encrypt(value[outside])
            outside = value >= self.length
        return value.astype(np.int64)
