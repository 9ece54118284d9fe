"""Pairs with similar features in large sets on a CPU, by faiss's inverted lists, if faiss is installed.

The features are divided into cells, and each is compared with those of the nearest cells only. That finds nearly all pairs as
similar as copies are (docs/RESULTS.md has the share) in a small part of the time, with 2 bytes per number in memory.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

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
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Most of the pairs (i, j) with a cosine of at least `threshold`, int64 [P] each. Without columns, pairs with i < j."""
    import faiss

    columns = rows_ND if columns_MD is None else columns_MD
    cells = max(1, int(_CELLS * math.sqrt(len(columns))))
    index = faiss.index_factory(columns.shape[1], f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    sample = np.unique(np.linspace(0, len(columns) - 1, min(len(columns), cells * _TRAINED_PER_CELL)).astype(np.int64))
    index.train(columns[sample].astype(np.float32))
    for start in range(0, len(columns), _BLOCK):
        index.add(columns[start : start + _BLOCK].astype(np.float32))
    index.nprobe = _CELLS_VISITED
    found = [np.empty((2, 0), np.int64)]
    for start in range(0, len(rows_ND), _BLOCK):
        rows = rows_ND[start : start + _BLOCK].astype(np.float32)
        ends, _, j = index.range_search(rows, float(threshold))
        i = start + np.repeat(np.arange(len(rows)), np.diff(ends.astype(np.int64)))
        pairs = np.stack([i, j.astype(np.int64)])
        found.append(pairs if columns_MD is not None else pairs[:, i < j])
        on_rows(len(rows))
    i, j = np.concatenate(found, axis=1)
    return i, j
