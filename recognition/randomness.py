"""Random numbers on the device (dropout, stochastic depth): a function of seed, step and rank, so that none of it is state.

What batches hold is random too, but a function of the position in the epoch: utils/randomness.py.
"""

from __future__ import annotations

import hashlib

import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's generators, of all devices, for one step of one rank."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
