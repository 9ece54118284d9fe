"""Sampling of the classes that a step compares with: those that occur in the batch, and a random part of the others (partial FC,
An et al., CVPR 2022 workshops, https://arxiv.org/abs/2203.15565, section 3).

Classes are cut into blocks of 100, and the same number is drawn from every block: the classes with the smallest hashes of (seed,
draw, class). So the sample depends on these three alone, not on the number of ranks; it is drawn on the device; and the host
computes its size without asking the device.

Shapes: N labels, S sampled rows of this rank, P blocks, Q classes drawn per block. Classes are int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from utils.dist import ShardRange
from utils.randomness import GOLDEN, hash64, mix64
from utils.transfer import to_device

BLOCK = 100
_HASH_MASK = ~127 & torch.iinfo(torch.int64).max  # not negative, with 7 bits free for the position in the block


@dataclass(frozen=True)
class ClassSampler:
    """Draws the sample of one rank's shard. rate: the fraction of the classes that is drawn, in [0, 1], in whole percent.

    >>> import torch
    >>> sampler = ClassSampler(ShardRange(total=10, start=0, stop=10), rate=0.3, seed=1)
    >>> sampler.rows(0, torch.tensor([4, 4, 7]), torch.device("cpu"))  # those of the batch, and 30 % of all
    tensor([0, 4, 5, 7])
    """

    shard: ShardRange
    rate: float
    seed: int

    def rows(self, draw: int, host_label_N: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The rows of the shard in sample number `draw`: int64 [S] on the device, increasing. Does not wait for the device.

        host_label_N: the labels of all gathered features, on the CPU.
        """
        first, last = self.shard.start // BLOCK, -(-self.shard.stop // BLOCK)
        drawn = self._chosen(draw, torch.arange(first, last, device=device)).flatten()
        before, after = self._chosen_up_to(draw, self.shard.start), self._chosen_up_to(draw, self.shard.stop)
        drawn = drawn[before - first * self._quota(BLOCK) :][: after - before]
        missing = to_device(self._not_drawn(draw, host_label_N), device)
        return torch.cat([drawn, missing]).sort().values - self.shard.start

    def _quota(self, size: int) -> int:
        """The number of classes that are drawn from a block of `size`."""
        return int(self.rate * size + 0.5)

    def _chosen(self, draw: int, block_P: torch.Tensor) -> torch.Tensor:
        """The classes drawn from each block, increasing: [P, Q]. If the last block is shorter, fewer are drawn from it; its
        surplus places hold a number above all classes."""
        position_S = torch.arange(BLOCK, device=block_P.device)
        class_PS = block_P[:, None] * BLOCK + position_S
        base = int(hash64(self.seed, draw).view(np.int64)[0])
        hash_PS = mix64(class_PS * GOLDEN + base)  # SplitMix64's output number `class` from the state `base`
        key_PS = (hash_PS & _HASH_MASK) | position_S  # the position makes all keys of a block different
        key_PS.masked_fill_(class_PS >= self.shard.total, torch.iinfo(torch.int64).max)
        key_PQ, chosen_PQ = key_PS.topk(self._quota(BLOCK), dim=1, largest=False, sorted=True)
        class_PQ = class_PS.gather(1, chosen_PQ)
        short = self.shard.total % BLOCK
        if short:
            surplus_Q = torch.arange(key_PQ.shape[1], device=block_P.device) >= self._quota(short)
            is_short_P = block_P == self.shard.total // BLOCK
            class_PQ.masked_fill_(is_short_P[:, None] & surplus_Q, 1 << 62)
        return class_PQ.sort(dim=1).values

    def _chosen_up_to(self, draw: int, index: int) -> int:
        """The number of drawn classes below `index`, computed on the host."""
        block, inside = divmod(index, BLOCK)
        if not inside:
            return block * self._quota(BLOCK)
        return block * self._quota(BLOCK) + int((self._chosen(draw, torch.tensor([block])) < index).sum())

    def _not_drawn(self, draw: int, host_label_N: torch.Tensor) -> torch.Tensor:
        """The classes of this shard that occur in the batch but were not drawn, on the host."""
        label_P = host_label_N[self.shard.owns(host_label_N)].unique()
        drawn_PQ = self._chosen(draw, label_P // BLOCK)
        return label_P[~(drawn_PQ == label_P[:, None]).any(dim=1)]
