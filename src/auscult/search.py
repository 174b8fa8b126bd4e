"""Exact nearest neighbours and exact self-join of descriptor vectors, in blocks.

Candidates come from a float32 matrix product (faiss, or BLAS for the self-join); what decides, the last few candidates
and every near-tie, is computed again in float64. So results do not depend on block sizes, threads or the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .folders import Progress, no_progress

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

QUERY_BLOCK = 4096
JOIN_ROWS, JOIN_COLUMNS = 2048, 8192  # 64 MB of similarities at once
SPARE = 8  # candidates beyond k, so that near-ties rarely need a second look
RESCORE_ROWS = 256  # pairs computed again at once: both sides in float64 stay in the cache
DECIMALS = 12  # similarities are rounded here, which is finer than any score means and hides summation order


@dataclass(frozen=True)
class TopK:
    """Nearest references of each query, best first.

    Attributes
    ----------
    index
        (n, k) rows of the references; -1 where a query has fewer than k.
    similarity
        (n, k) cosine in [-1, 1]; NaN where a query has fewer than k.
    """

    index: IntArray
    similarity: DoubleArray


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows ``first < second`` (p,) with their cosine ``similarity`` (p,), ordered by first, then second."""

    first: IntArray
    second: IntArray
    similarity: DoubleArray


def top_k(
    queries: FloatArray,
    references: FloatArray,
    *,
    k: int,
    exclude: tuple[IntArray, IntArray] | None = None,
    distinct: IntArray | None = None,
    rank: IntArray | None = None,
    progress: Progress = no_progress,
) -> TopK:
    """The k references of largest cosine similarity for each query, exactly.

    Parameters
    ----------
    queries, references
        (n, d) and (m, d) float32, any norm but zero.
    k
        How many.
    exclude
        ``(query_groups, reference_groups)`` of shapes (n,) or (n, e) and (m,): a reference is passed over if its group is
        one of the query's. Groups below 0 exclude nothing.
    distinct
        (m,) groups of references (windows of one clip) of which only the nearest counts.
    rank
        (m,) order among exactly equal similarities, smaller first; default: the row number.
    progress
        Called with queries done.

    Raises
    ------
    ValueError
        k < 1, or the dimensions differ.

    Examples
    --------
    >>> x = np.eye(3, dtype=np.float32)
    >>> top_k(x[:1], x, k=2, exclude=(np.array([0]), np.array([0, 1, 2]))).index
    array([[1, 2]])
    """
    if k < 1:
        raise ValueError(f"k should be at least 1, got {k}")
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise ValueError(f"expected (n, d) and (m, d), got {queries.shape} and {references.shape}")
    index = np.full((len(queries), k), -1, np.int64)
    similarity = np.full((len(queries), k), np.nan)
    if len(queries) == 0 or len(references) == 0:
        return TopK(index, similarity)
    finder = _Finder(references, exclude, distinct, np.arange(len(references)) if rank is None else rank, k)
    for start in range(0, len(queries), QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, len(queries))
        finder.fill(queries, start, stop, index[start:stop], similarity[start:stop])
        progress(stop, len(queries), "searched")
    return TopK(index, similarity)


class _Finder:
    """The references prepared once, and the loop that fetches more candidates until k are certain."""

    def __init__(
        self,
        references: FloatArray,
        exclude: tuple[IntArray, IntArray] | None,
        distinct: IntArray | None,
        rank: IntArray,
        k: int,
    ) -> None:
        self.references = references
        self.units, self.norms = unit_rows(references)
        self.distinct, self.rank, self.k = distinct, rank, k
        self.query_groups = self.reference_groups = None
        self.first_fetch = k + SPARE
        if exclude is not None:
            self.query_groups = exclude[0].reshape(len(exclude[0]), -1)
            self.reference_groups = exclude[1]
            self.first_fetch += self.query_groups.shape[1]

    def fill(self, queries: FloatArray, start: int, stop: int, index: IntArray, similarity: DoubleArray) -> None:
        """Write the k best of queries ``start`` to ``stop`` into ``index`` and ``similarity``; ask again where uncertain."""
        import faiss

        itself = queries is self.references
        queries = queries[start:stop]
        units, norms = (self.units[start:stop], self.norms[start:stop]) if itself else unit_rows(queries)
        rows = np.arange(len(queries))
        fetch = min(self.first_fetch, len(self.references))
        slack = rounding_bound(queries.shape[1])
        while len(rows):
            rough, candidates = faiss.knn(units[rows], self.units, fetch, metric=faiss.METRIC_INNER_PRODUCT)
            allowed = self._allowed(rows + start, candidates)
            exact = self._rescored(queries[rows], norms[rows], rough, candidates, allowed, slack)
            best, certain = self._best(candidates, exact, rough[:, -1] + slack, whole=fetch == len(self.references))
            for to, source in ((index, candidates), (similarity, exact)):
                to[rows[certain]] = np.where(
                    best[certain] >= 0,
                    np.take_along_axis(source[certain], np.maximum(best[certain], 0), 1),
                    to[rows[certain]],
                )
            rows = rows[~certain]
            fetch = min(4 * fetch, len(self.references))

    def _allowed(self, queries: IntArray, candidates: IntArray) -> npt.NDArray[np.bool_]:
        if self.query_groups is None or self.reference_groups is None:
            return np.ones(candidates.shape, np.bool_)
        theirs = self.reference_groups[candidates][:, :, None]
        mine = self.query_groups[queries][:, None, :]
        allowed: npt.NDArray[np.bool_] = ~((theirs == mine) & (mine >= 0)).any(axis=2)
        return allowed

    def _rescored(
        self,
        queries: FloatArray,
        norms: DoubleArray,
        rough: FloatArray,
        candidates: IntArray,
        allowed: npt.NDArray[np.bool_],
        slack: float,
    ) -> DoubleArray:
        """Float64 cosines of the candidates that may be among the best k; -inf for the others."""
        score = np.where(allowed, rough, -np.inf)
        if self.distinct is None:
            kth = -np.partition(-score, min(self.k, score.shape[1]) - 1, axis=1)[:, min(self.k, score.shape[1]) - 1]
        else:
            kth = np.full(len(score), -np.inf)  # several windows of one clip may crowd the list: look at all of it
        row, column = np.nonzero(allowed & (score >= (kth - 2 * slack)[:, None]))
        exact = np.full(rough.shape, -np.inf)
        chosen = candidates[row, column]
        exact[row, column] = cosines(queries, norms, self.references, self.norms, row, chosen)
        return exact

    def _best(
        self, candidates: IntArray, exact: DoubleArray, unseen: FloatArray, *, whole: bool
    ) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Columns of the k best candidates (-1: none), and whether no reference outside the list can be among them."""
        order = np.lexsort((self.rank[candidates], -exact))
        found = np.take_along_axis(exact, order, 1) > -np.inf
        if self.distinct is not None:
            found &= _first_of_group(np.take_along_axis(self.distinct[candidates], order, 1))
        # stable: columns that count come first, in order
        picked = np.argsort(~found, axis=1, kind="stable")[:, : self.k]
        best = np.where(np.take_along_axis(found, picked, 1), np.take_along_axis(order, picked, 1), -1)
        if best.shape[1] < self.k:
            best = np.pad(best, ((0, 0), (0, self.k - best.shape[1])), constant_values=-1)
        if whole:
            return best, np.ones(len(best), np.bool_)
        kth = np.take_along_axis(exact, np.maximum(best[:, -1:], 0), 1)[:, 0]
        return best, (best[:, -1] >= 0) & (kth > unseen)


def _first_of_group(groups: IntArray) -> npt.NDArray[np.bool_]:
    """Whether each entry is the first of its group in its row."""
    first = np.ones(groups.shape, np.bool_)
    order = np.argsort(groups, axis=1, kind="stable")
    ordered = np.take_along_axis(groups, order, 1)
    repeated = np.zeros(groups.shape, np.bool_)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    np.put_along_axis(first, order, ~repeated, 1)
    return first


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


def unit_rows(vectors: FloatArray) -> tuple[FloatArray, DoubleArray]:
    """Rows scaled to norm 1 (float32), and their norms (float64).

    Raises
    ------
    ValueError
        A row is zero or not finite.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise ValueError(f"{len(bad)} vectors are zero or not finite, the first at row {bad[0]}; silence has no direction")
    return vectors / norms[:, None].astype(np.float32), norms


def cosines(
    left: FloatArray,
    left_norms: DoubleArray,
    right: FloatArray,
    right_norms: DoubleArray,
    row: IntArray,
    column: IntArray,
) -> DoubleArray:
    """Cosines of the pairs ``(left[row], right[column])`` in float64."""
    result = np.empty(len(row))
    for start in range(0, len(row), RESCORE_ROWS):
        part = slice(start, start + RESCORE_ROWS)
        result[part] = np.einsum("ij,ij->i", left[row[part]].astype(np.float64), right[column[part]].astype(np.float64)) / (
            left_norms[row[part]] * right_norms[column[part]]
        )
    return np.round(result, DECIMALS)


def rounding_bound(dimension: int) -> float:
    """How far a float32 cosine of unit vectors may be off: ``8 sqrt(d) 2^-24``, eight standard deviations of a random walk of
    d roundings of at most half a unit in the last place of 1."""
    return 8.0 * float(np.sqrt(dimension)) * 2.0**-24
