"""Exact self-join: all pairs of rows above a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..folders import Progress, no_progress
from .exact import DoubleArray, FloatArray, IntArray, cosines, rounding_bound, unit_rows

JOIN_ROWS, JOIN_COLUMNS = 2048, 8192  # 64 MB of similarities at once


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows ``first < second`` (p,) with their cosine ``similarity`` (p,), ordered by first, then second."""

    first: IntArray
    second: IntArray
    similarity: DoubleArray


def self_join(
    vectors: FloatArray,
    *,
    threshold: float,
    bias: DoubleArray | None = None,
    groups: IntArray | None = None,
    progress: Progress = no_progress,
) -> Pairs:
    """All pairs of rows whose similarity less the larger of their biases exceeds a threshold, exactly.

    ``s(i, j) - max(bias_i, bias_j) > threshold`` is the audit paper's symmetric rule, since both normalized scores are then
    above it. Only the upper triangle of the similarity matrix is computed, tile by tile.

    Parameters
    ----------
    vectors
        (n, d) float32.
    threshold
        On the normalized score.
    bias
        (n,) background bias of each row; default zero.
    groups
        (n,) rows of one group (windows of one clip) are not paired.
    progress
        Called with rows done.

    Examples
    --------
    >>> x = np.array([[1, 0], [1, 0.1], [0, 1]], dtype=np.float32)
    >>> self_join(x, threshold=0.9).first, self_join(x, threshold=0.9).second
    (array([0]), array([1]))
    """
    units, norms = unit_rows(vectors)
    bias = np.zeros(len(vectors)) if bias is None else bias
    slack = rounding_bound(vectors.shape[1])
    first, second, similarity = [], [], []
    for row, column in _tiles(units, (threshold - slack + bias).astype(np.float32), progress):
        if groups is not None:
            apart = groups[row] != groups[column]
            row, column = row[apart], column[apart]
        exact = cosines(vectors, norms, vectors, norms, row, column)
        above = exact - np.maximum(bias[row], bias[column]) > threshold
        first.append(row[above])
        second.append(column[above])
        similarity.append(exact[above])
    if not first:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    pairs = Pairs(np.concatenate(first), np.concatenate(second), np.concatenate(similarity))
    order = np.lexsort((pairs.second, pairs.first))
    return Pairs(pairs.first[order], pairs.second[order], pairs.similarity[order])


def _tiles(units: FloatArray, level: FloatArray, progress: Progress) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield candidate pairs (row < column) of each tile: float32 similarity above both rows' level."""
    n = len(units)
    product = np.empty((JOIN_ROWS, JOIN_COLUMNS), np.float32)
    for top in range(0, n, JOIN_ROWS):
        bottom = min(top + JOIN_ROWS, n)
        for left in range(top, n, JOIN_COLUMNS):
            right = min(left + JOIN_COLUMNS, n)
            tile = np.matmul(units[top:bottom], units[left:right].T, out=product[: bottom - top, : right - left])
            above = np.flatnonzero(tile > level[top:bottom, None])
            row, column = above // (right - left) + top, above % (right - left) + left
            keep = (column > row) & (tile[row - top, column - left] > level[column])
            yield row[keep].astype(np.int64), column[keep].astype(np.int64)
        progress(bottom, n, "joined")
