"""Cosines of all pairs of features, in blocks: memory for one block, whatever the number of features.

Features are rows of length 1, in memory or in a file (`numpy.memmap`), of any float type; products are formed in float32.
Shapes: N rows, M columns, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import UserError

BLOCK = 4096  # rows and columns: 64 MiB of products
MOST_PAIRS = 20_000_000


@dataclass(frozen=True)
class Block:
    """The cosines of rows row, row + 1, … with columns column, column + 1, …: float32 [n, m] on the device.

    upper: of one set with itself, and on the diagonal, so that only entries above the diagonal are new pairs.
    """

    row: int
    column: int
    cosines_nm: torch.Tensor
    upper: bool = False


def product_blocks(
    rows_ND: np.ndarray,
    columns_MD: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    block: int = BLOCK,
    on_rows: Callable[[int], object] = lambda done: None,
) -> Iterator[Block]:
    """Yield the cosines of all rows with all columns, by row and then by column.

    Without columns, yield those of every pair of rows once: the blocks on and above the diagonal. `on_rows` receives the number
    of rows whenever that many more are done.
    """
    columns = rows_ND if columns_MD is None else columns_MD
    for row in range(0, len(rows_ND), block):
        rows = _on(device, rows_ND[row : row + block])
        for column in range(row if columns_MD is None else 0, len(columns), block):
            on_diagonal = columns_MD is None and column == row
            others = rows if on_diagonal else _on(device, columns[column : column + block])
            yield Block(row, column, rows @ others.T, on_diagonal)
        on_rows(len(rows))


def _on(device: torch.device | str, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, np.float32)).to(device)


def close_pairs(
    rows_ND: np.ndarray,
    columns_MD: np.ndarray | None = None,
    threshold: float = 0.9,
    device: torch.device | str = "cpu",
    block: int = BLOCK,
    on_rows: Callable[[int], object] = lambda done: None,
    score: Callable[[Block], Block] = lambda block: block,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs (i, j) with a cosine of at least `threshold`, by block: int64 [P], int64 [P], float32 [P].

    Without columns, the pairs of rows with i < j. `score` may replace the cosines by other scores. Raises UserError if there are
    more than `MOST_PAIRS`.
    """
    found: list[tuple[np.ndarray, ...]] = []
    total = 0
    for part in map(score, product_blocks(rows_ND, columns_MD, device, block, on_rows)):
        near = (part.cosines_nm.amax(dim=1) >= threshold).nonzero()[
            :, 0
        ]  # quicker than comparing everything: most rows have none
        i, j = (part.cosines_nm[near] >= threshold).nonzero(as_tuple=True)
        i = near[i]
        if part.upper:
            i, j = i[i < j], j[i < j]
        total += len(i)
        refuse_too_many(total, threshold)
        if len(i):
            pairs = i + part.row, j + part.column, part.cosines_nm[i, j]
            found.append(tuple(column.cpu().numpy() for column in pairs))
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, cosines = (np.concatenate(column) for column in zip(empty, *found, strict=True))
    return first, second, cosines


def refuse_too_many(pairs: int, threshold: float) -> None:
    """Raise UserError if there are more than `MOST_PAIRS`."""
    if pairs > MOST_PAIRS:
        raise UserError(
            f"more than {MOST_PAIRS:,} pairs have a cosine of at least {threshold:.3f}; "
            "the encoder hardly distinguishes these images: raise the threshold or use another encoder"
        )


def nearest(
    rows_ND: np.ndarray,
    columns_MD: np.ndarray,
    own_N: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    block: int = BLOCK,
    on_rows: Callable[[int], object] = lambda done: None,
    score: Callable[[Block], Block] = lambda block: block,
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar column of each row, other than its own: int64 [N], -1 without other columns, and its cosine, float32 [N].

    own_N: int64, the column that a row must not find; -1 for a row without one. `score`: as for `close_pairs`.
    """
    best, cosine = np.full(len(rows_ND), -1, np.int64), np.full(len(rows_ND), -np.inf, np.float32)
    for part in map(score, product_blocks(rows_ND, columns_MD, device, block, on_rows)):
        span = slice(part.row, part.row + len(part.cosines_nm))
        if own_N is not None:
            own = own_N[span] - part.column
            inside = np.flatnonzero((own >= 0) & (own < part.cosines_nm.shape[1]))
            part.cosines_nm[torch.from_numpy(inside), torch.from_numpy(own[inside])] = -torch.inf
        values, places = (tensor.cpu().numpy() for tensor in part.cosines_nm.max(dim=1))
        better = values > cosine[span]
        best[span][better], cosine[span][better] = places[better] + part.column, values[better]
    return best, cosine
