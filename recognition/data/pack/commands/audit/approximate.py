"""Pairs with similar features in large sets on a CPU, by faiss's inverted lists, if faiss is installed.

The features are divided into cells, and each is compared with those of the nearest cells only. That finds nearly all pairs as
similar as copies are (docs/RESULTS.md has the share) in a small part of the time, with 2 bytes per number in memory.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

MANY = 200_000  # rows from which it pays
_BLOCK = 4096  # rows
_CELLS, _CELLS_VISITED = 4, 8  # cells: times the root of the number of columns (faiss advises 4 to 16)
_TRAINED_PER_CELL = 40  # rows; faiss asks for 39


def is_possible() -> bool:
    """Whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def approximate_pairs(
    rows_ND: npt.NDArray[np.floating],
    columns_MD: npt.NDArray[np.floating] | None,
    threshold: float,
    on_rows: Callable[[int], object] = lambda done: None,
    hidden: Sequence[npt.NDArray[np.bool_]] = (),
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Most of the pairs (i, j) with a cosine of at least `threshold`, int64 [P] each. Without columns, pairs with i < j.

    hidden: bool [N] and [M], rows and columns that take part in no pair. Raises UserError if there are too many pairs.
    """
    import faiss

    from eval.protocols.products import refuse_too_many  # here, because it imports PyTorch, which takes seconds

    columns = rows_ND if columns_MD is None else columns_MD
    nothing = np.zeros(len(rows_ND), bool), np.zeros(len(columns), bool)
    shown_rows, shown = (np.flatnonzero(~each) for each in hidden or nothing)
    cells = max(1, min(int(_CELLS * math.sqrt(len(shown))), len(shown) // _TRAINED_PER_CELL))
    index = faiss.index_factory(columns.shape[1], f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    sample = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), cells * _TRAINED_PER_CELL)).astype(np.int64))
    index.train(columns[shown[sample]].astype(np.float32))
    for start in range(0, len(shown), _BLOCK):
        index.add(columns[shown[start : start + _BLOCK]].astype(np.float32))
    index.nprobe = _CELLS_VISITED
    found, total = [np.empty((2, 0), np.int64)], 0
    for start in range(0, len(shown_rows), _BLOCK):
        rows = shown_rows[start : start + _BLOCK]
        ends, _, j = index.range_search(rows_ND[rows].astype(np.float32), float(threshold))
        pairs = np.stack([np.repeat(rows, np.diff(ends.astype(np.int64))), shown[j]])
        found.append(pairs if columns_MD is not None else pairs[:, pairs[0] < pairs[1]])
        total += found[-1].shape[1]
        refuse_too_many(total, threshold)
        on_rows(len(rows))
    i, j = np.concatenate(found, axis=1)
    return i, j
