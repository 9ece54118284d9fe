"""Blockwise products of all pairs, against the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest

from eval.protocols import products
from eval.protocols.identification import normalised
from eval.protocols.products import close_pairs, nearest, product_blocks
from utils.errors import UserError

ROWS = normalised(np.random.default_rng(0).standard_normal((53, 6)), "rows").astype(np.float32)
COLUMNS = normalised(np.random.default_rng(1).standard_normal((31, 6)), "columns").astype(np.float32)
BLOCKS = (1, 7, 31, 64)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("columns", [None, COLUMNS])
def test_every_pair_is_visited_once(block, columns):
    visited = np.zeros((len(ROWS), len(ROWS if columns is None else columns)), int)
    done = []
    for part in product_blocks(ROWS, columns, block=block, on_rows=done.append):
        cosines = part.cosines_nm.numpy()
        area = visited[part.row : part.row + len(cosines), part.column : part.column + cosines.shape[1]]
        area += np.triu(np.ones_like(area), 1) if part.upper else 1
    assert sum(done) == len(ROWS)
    np.testing.assert_array_equal(visited, np.triu(np.ones_like(visited), 1) if columns is None else 1)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("columns", [None, COLUMNS])
def test_close_pairs_are_those_of_the_dense_matrix(block, columns):
    dense = ROWS @ (ROWS if columns is None else columns).T
    expected = np.argwhere(np.triu(dense >= 0.5, 1) if columns is None else dense >= 0.5)
    i, j, cosines = close_pairs(ROWS, columns, 0.5, block=block)
    order = np.lexsort((j, i))
    np.testing.assert_array_equal(np.stack([i, j], axis=1)[order], expected)
    np.testing.assert_allclose(cosines, dense[i, j], rtol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_nearest_column_other_than_the_own(block):
    own = np.random.default_rng(2).integers(-1, len(COLUMNS), len(ROWS))
    dense = ROWS @ COLUMNS.T
    dense[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
    best, cosine = nearest(ROWS, COLUMNS, own, block=block)
    np.testing.assert_array_equal(best, dense.argmax(axis=1))
    np.testing.assert_allclose(cosine, dense.max(axis=1), rtol=1e-6)
    assert nearest(ROWS[:2], COLUMNS[:1], np.array([0, -1]), block=block)[0].tolist() == [-1, 0]


def test_features_may_be_a_file_of_half_precision(tmp_path):
    stored = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float16, ROWS.shape)
    stored[:] = ROWS
    stored = np.load(tmp_path / "rows.npy", mmap_mode="r")
    i, j, cosines = close_pairs(stored, None, 0.5, block=7)
    exact = stored.astype(np.float32)
    np.testing.assert_allclose(cosines, (exact[i] * exact[j]).sum(axis=1), rtol=1e-6)


def test_an_encoder_that_distinguishes_nobody_is_named(monkeypatch):
    monkeypatch.setattr(products, "MOST_PAIRS", 10)
    with pytest.raises(UserError, match=r"more than 10 pairs have a cosine of at least 0\.900; the encoder hardly distinguishes"):
        close_pairs(np.ones((6, 1), np.float32))
