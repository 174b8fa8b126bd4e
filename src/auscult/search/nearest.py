"""The k nearest references of each query, block by block of references."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..engine import HERE, Engine
from ..folders import Progress, no_progress
from .backends import Backend, Prepare
from .blocks import Block, Matrix, as_blocks, read_ahead, total_rows
from .checkpoint import Checkpoint
from .device import prepare_for
from .exact import DoubleArray, FloatArray, IntArray, cosines, unit_rows

QUERY_BLOCK = 4096
PLACES = 8  # of a block of an array within the memory: its unit rows take one, and so many may be held beside them
SPARE = 8  # candidates beyond k, so that near-ties rarely need a second look

Exclusion = tuple[IntArray, IntArray]


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


def top_k(
    queries: FloatArray,
    references: Matrix,
    *,
    k: int,
    exclude: Exclusion | None = None,
    distinct: IntArray | None = None,
    rank: IntArray | None = None,
    engine: Engine = HERE,
    prepare: Prepare | None = None,
    name: str | None = None,
    progress: Progress = no_progress,
) -> TopK:
    """The k references of largest cosine similarity for each query, exactly.

    Parameters
    ----------
    queries
        (n, d) float32, any norm but zero.
    references
        (m, d) float32, or blocks of them, which are read one after the other.
    k
        How many.
    exclude
        ``(query_groups, reference_groups)`` of shapes (n,) or (n, e) and (m,): a reference is passed over if its group is
        one of the query's. Groups below 0 exclude nothing.
    distinct
        (m,) groups of references (windows of one clip) of which only the nearest counts. A group lies within one block.
    rank
        (m,) order among exactly equal similarities, smaller first; default: the row number.
    engine
        Where the blocks are searched.
    prepare
        What proposes candidates; None: all rows are compared, on the engine's device. If it is not exhaustive, neither is the
        result.
    name
        Of this search among those that share ``engine.scratch``: it is continued from what is kept there.
    progress
        Called with pairs compared, of all pairs.

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
    if queries.ndim != 2:
        raise ValueError(f"expected queries (n, d), got {queries.shape}")
    rows = max(1, engine.memory_bytes // (PLACES * 4 * max(queries.shape[1], 1)))
    blocks, n = as_blocks(references, rows, distinct), total_rows(references)
    rank = np.arange(n) if rank is None else rank
    found = TopK(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.nan))
    if len(queries) == 0 or n == 0:
        return found
    checkpoint = Checkpoint(engine.scratch_file(name), [block.stop for block in blocks])
    done, kept = checkpoint.restore({"index": found.index, "similarity": found.similarity})
    found = TopK(kept["index"], kept["similarity"])
    task = _Search(
        queries, None if exclude is None else exclude[0].reshape(len(queries), -1), k, prepare or prepare_for(engine)
    )

    def jobs() -> Iterator[_Job]:
        for block in blocks[done:] if engine.ray else read_ahead(blocks[done:]):
            here = slice(block.start, block.stop)
            groups = None if exclude is None else exclude[1][here]
            # what is farther than the k-th found so far need not be looked at; on a cluster, than those that have come in
            floor = np.where(found.index[:, -1] < 0, -np.inf, found.similarity[:, -1])
            yield _Job(block, groups, None if distinct is None else distinct[here], rank[here], floor)

    for at, nearest in enumerate(engine.map(task, jobs()), done + 1):
        found = _merged(found, nearest, rank)
        checkpoint.keep(at, {"index": found.index, "similarity": found.similarity})
        progress(len(queries) * blocks[at - 1].stop, len(queries) * n, "pairs compared")
    return found


def _merged(one: TopK, other: TopK, rank: IntArray) -> TopK:
    """The best of both, in order."""
    index = np.hstack([one.index, other.index])
    similarity = np.hstack([one.similarity, other.similarity])
    order = np.lexsort((rank[index], np.where(index < 0, np.inf, -similarity)))[:, : one.index.shape[1]]
    return TopK(np.take_along_axis(index, order, 1), np.take_along_axis(similarity, order, 1))


@dataclass(frozen=True)
class _Job:
    """A block of references, what top_k knows of its rows, and the similarity that a query's candidates must reach."""

    block: Block
    groups: IntArray | None
    distinct: IntArray | None
    rank: IntArray
    floor: DoubleArray


@dataclass(frozen=True)
class _Search:
    """The queries, and the search of one block for all of them; what a cluster sends to its workers."""

    queries: FloatArray
    groups: IntArray | None
    k: int
    prepare: Prepare

    def __call__(self, job: _Job) -> TopK:
        references = job.block.load()
        if references.ndim != 2 or references.shape[1] != self.queries.shape[1]:
            raise ValueError(f"expected (n, d) and (m, d), got {self.queries.shape} and {references.shape}")
        units, norms = unit_rows(references)
        finder = _Finder(self, job, references, norms, self.prepare(units))
        index = np.full((len(self.queries), self.k), -1, np.int64)
        similarity = np.full((len(self.queries), self.k), np.nan)

        def fill(start: int) -> None:
            rows = slice(start, start + QUERY_BLOCK)
            finder.fill(rows, index[rows], similarity[rows])

        starts, threads = range(0, len(self.queries), QUERY_BLOCK), getattr(finder.backend, "threads", 1)
        if threads == 1:  # in this thread, whose limits of BLAS and faiss hold
            for start in starts:
                fill(start)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, starts))
        return TopK(np.where(index < 0, -1, index + job.block.start), similarity)


class _Finder:
    """A block ready to be searched, and the loop that fetches more candidates until k are certain."""

    def __init__(
        self, task: _Search, job: _Job, references: npt.NDArray[np.floating], norms: DoubleArray, backend: Backend
    ) -> None:
        self.task, self.job, self.references, self.norms, self.backend = task, job, references, norms, backend
        self.cosines = getattr(backend, "cosines", cosines)  # on the device, where the backend has one
        self.first_fetch = task.k + SPARE + (0 if task.groups is None else task.groups.shape[1])

    def fill(self, part: slice, index: IntArray, similarity: DoubleArray) -> None:
        """Write the k best of some queries into ``index`` and ``similarity``; ask again where uncertain."""
        queries, floor = self.task.queries[part], self.job.floor[part]
        groups = None if self.task.groups is None else self.task.groups[part]
        units, norms = unit_rows(queries)
        rows = np.arange(len(queries))
        n, slack = len(self.references), self.backend.slack
        fetch = min(self.first_fetch, n)
        while len(rows):
            rough, candidates = self.backend.nearest(units[rows], fetch)
            allowed = self._allowed(None if groups is None else groups[rows], candidates)
            exact = self._rescored(queries[rows], norms[rows], rough, candidates, allowed, floor[rows])
            whole = fetch == n or not self.backend.exhaustive
            unseen = np.full(len(rows), -np.inf) if whole else rough[:, -1] + slack
            best, certain = self._best(candidates, exact, unseen)
            certain |= unseen < floor[rows]
            for to, source in ((index, candidates), (similarity, exact)):
                to[rows[certain]] = np.where(
                    best[certain] >= 0,
                    np.take_along_axis(source[certain], np.maximum(best[certain], 0), 1),
                    to[rows[certain]],
                )
            rows = rows[~certain]
            fetch = min(4 * fetch, n)

    def _allowed(self, mine: IntArray | None, candidates: IntArray) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = candidates >= 0
        if mine is None or self.job.groups is None:
            return found
        theirs = self.job.groups[candidates][:, :, None]
        return found & ~((theirs == mine[:, None, :]) & (mine[:, None, :] >= 0)).any(axis=2)

    def _rescored(
        self,
        queries: FloatArray,
        norms: DoubleArray,
        rough: FloatArray,
        candidates: IntArray,
        allowed: npt.NDArray[np.bool_],
        floor: DoubleArray,
    ) -> DoubleArray:
        """Float64 cosines of the candidates that may be among the best k; -inf for the others."""
        score, k = np.where(allowed, rough, -np.inf), self.task.k
        if self.job.distinct is None:
            kth = -np.partition(-score, min(k, score.shape[1]) - 1, axis=1)[:, min(k, score.shape[1]) - 1]
        else:
            kth = np.full(len(score), -np.inf)  # several windows of one clip may crowd the list: look at all of it
        least = np.maximum(kth - 2 * self.backend.slack, floor - self.backend.slack)
        row, column = np.nonzero(allowed & (score >= least[:, None]))
        exact = np.full(rough.shape, -np.inf)
        exact[row, column] = self.cosines(queries, norms, self.references, self.norms, row, candidates[row, column])
        return exact

    def _best(
        self, candidates: IntArray, exact: DoubleArray, unseen: npt.NDArray[np.floating]
    ) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Columns of the k best candidates (-1: none), and whether no reference outside the list can be among them."""
        order = np.lexsort((self.job.rank[candidates], -exact))
        found = np.take_along_axis(exact, order, 1) > -np.inf
        if self.job.distinct is not None:
            found &= _first_of_group(np.take_along_axis(self.job.distinct[candidates], order, 1))
        # stable: columns that count come first, in order
        picked = np.argsort(~found, axis=1, kind="stable")[:, : self.task.k]
        best = np.where(np.take_along_axis(found, picked, 1), np.take_along_axis(order, picked, 1), -1)
        if best.shape[1] < self.task.k:
            best = np.pad(best, ((0, 0), (0, self.task.k - best.shape[1])), constant_values=-1)
        kth = np.take_along_axis(exact, np.maximum(best[:, -1:], 0), 1)[:, 0]
        return best, np.isneginf(unseen) | ((best[:, -1] >= 0) & (kth > unseen))


def _first_of_group(groups: IntArray) -> npt.NDArray[np.bool_]:
    """Whether each entry is the first of its group in its row."""
    first = np.ones(groups.shape, np.bool_)
    order = np.argsort(groups, axis=1, kind="stable")
    ordered = np.take_along_axis(groups, order, 1)
    repeated = np.zeros(groups.shape, np.bool_)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    np.put_along_axis(first, order, ~repeated, 1)
    return first
