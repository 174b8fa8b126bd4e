"""Approximate search behind the exact search's function: faiss's inverted lists and small-world graphs, one index a block.

What an index proposes is computed again in float64 by ``top_k``, so every similarity is exact; what it does not propose is
missing. How much that is, :mod:`auscult.search.recall` measures in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from .backends import Backend, FaissExact, Prepare
from .exact import FloatArray, IntArray, rounding_bound

Storage = Literal["float16", "float32"]

FEWEST_ROWS = 4096  # below, brute force is faster than an index that has to be built first
ROWS_A_LIST = 39  # fewer to train a list's center on, and faiss calls it unreliable
TRAINING_ROWS_A_LIST = 64
TRAINING_ROUNDS = 5
FETCH = 4  # times as many candidates as were asked for: other windows of a clip and excluded clips take places


@dataclass(frozen=True)
class Ivf:
    """Inverted lists: rows go to the nearest of ``lists`` centers, and a query looks into the lists of ``probes`` centers.

    Attributes
    ----------
    lists
        None: ``2 sqrt(n)``, at most n / 39. Training takes about as many products as exact search of 1,300 queries, and
        filling as many as one of ``2 sqrt(n)`` queries.
    probes
        None: a sixteenth of the lists, at least 16.
    storage
        Of the rows in the index: ``float16`` halves the memory, and costs no accuracy of the result but the last bits of
        what is proposed.
    fetch
        How many times as many candidates are proposed as asked for.
    seed
        Of the rows that the centers are trained on, and of the training.
    """

    lists: int | None = None
    probes: int | None = None
    storage: Storage = "float16"
    fetch: int = FETCH
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, "lists", "probes", "fetch")

    def chosen(self, rows: int) -> tuple[int, int]:
        """Lists and probes for a block of so many rows.

        Examples
        --------
        >>> Ivf().chosen(1_000_000), Ivf(probes=20).chosen(10_000)
        ((2000, 125), (200, 20))
        """
        lists = self.lists or max(min(round(2 * rows**0.5), rows // ROWS_A_LIST), 1)
        return lists, min(self.probes or max(lists // 16, 16), lists)

    def indexes(self, rows: int) -> bool:
        """Whether a block of so many rows gets an index; else brute force searches it, exactly."""
        return rows >= max(FEWEST_ROWS if self.lists is None else 0, self.chosen(rows)[0])

    def __call__(self, units: FloatArray) -> Backend:
        """Make a block ready; a :data:`~auscult.search.backends.Prepare`."""
        if not self.indexes(len(units)):
            return FaissExact(units)
        lists, probes = self.chosen(len(units))
        import faiss

        dimension = units.shape[1]
        index: Any
        quantizer = faiss.IndexFlatIP(dimension)
        quantizer.add(_centers(units, lists, self.seed))
        if self.storage == "float16":
            kind = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexIVFScalarQuantizer(quantizer, dimension, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
            index.train(units[:lists])  # nothing to learn: the centers are there, and float16 has no parameters
        else:
            index = faiss.IndexIVFFlat(quantizer, dimension, lists, faiss.METRIC_INNER_PRODUCT)
            index.is_trained = True
        index.add(units)
        index.nprobe = probes
        return _Indexed(index, units, self.storage, self.fetch)


@dataclass(frozen=True)
class Hnsw:
    """A graph of small worlds: each row is linked to near ones on several levels, and a query walks along the links.

    Attributes
    ----------
    links
        Of a row on each level; twice as many on the lowest.
    build_breadth, search_breadth
        Candidates that are kept on the walk, when a row is linked and when a query is answered (at least what is asked for).
    storage, fetch
        As for :class:`Ivf`.
    repeatable
        Build with one thread. With several, the links depend on which thread was first, so two runs may differ in what
        they miss.
    """

    links: int = 32
    build_breadth: int = 200
    search_breadth: int = 256
    storage: Storage = "float16"
    fetch: int = FETCH
    repeatable: bool = True

    def __post_init__(self) -> None:
        _check(self, "links", "build_breadth", "search_breadth", "fetch")
        if self.links < 2:
            raise ValueError(f"links should be at least 2, got {self.links}")

    def indexes(self, rows: int) -> bool:
        """As for :class:`Ivf`."""
        return rows >= FEWEST_ROWS

    def __call__(self, units: FloatArray) -> Backend:
        """Make a block ready; a :data:`~auscult.search.backends.Prepare`."""
        if not self.indexes(len(units)):
            return FaissExact(units)
        import faiss

        index: Any
        metric: int = faiss.METRIC_INNER_PRODUCT
        if self.storage == "float16":
            kind: Any = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexHNSWSQ(units.shape[1], kind, self.links, metric)
            index.train(units[:1])  # nothing to learn
        else:
            index = faiss.IndexHNSWFlat(units.shape[1], self.links, metric)
        index.hnsw.efConstruction = self.build_breadth
        with threadpool_limits(1 if self.repeatable else None, user_api="openmp"):
            index.add(units)
        return _Indexed(index, units, self.storage, self.fetch, partial(_widen, breadth=self.search_breadth))


def _check(settings: Ivf | Hnsw, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} should be at least 1, got {value}")
    if settings.storage not in {"float16", "float32"}:
        raise ValueError(f"storage should be 'float16' or 'float32', got {settings.storage!r}")


METHODS = ("exact", "ivf", "hnsw")


def prepare_approximate(name: str) -> Prepare:
    """The search of a name with its default settings: ``exact``, ``ivf`` or ``hnsw``.

    Raises
    ------
    ValueError
        There is no such search.
    """
    check_method(name)
    known: dict[str, Prepare] = {"exact": FaissExact, "ivf": Ivf(), "hnsw": Hnsw()}
    return known[name]


def check_method(name: str) -> None:
    """Refuse the name of a search that there is none of.

    Raises
    ------
    ValueError
        See :func:`prepare_approximate`.
    """
    if name not in METHODS:
        raise ValueError(f"unknown search {name!r}; there are: {', '.join(METHODS)}")


def _centers(units: FloatArray, lists: int, seed: int) -> FloatArray:
    """Centers of the lists, of length 1: k-means on a seeded sample."""
    import faiss

    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(units), min(len(units), TRAINING_ROWS_A_LIST * lists), replace=False))
    training = faiss.Kmeans(
        units.shape[1],
        lists,
        niter=TRAINING_ROUNDS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAINING_ROWS_A_LIST,
    )
    training.train(np.ascontiguousarray(units[rows]))
    return np.asarray(training.centroids)


class _Indexed:
    """A block in an index of faiss's."""

    exhaustive = False

    def __init__(
        self, index: Any, units: FloatArray, storage: Storage, fetch: int, widen: Callable[[Any, int], None] | None = None
    ) -> None:
        self.index, self.fetch, self.widen, self.dimension = index, fetch, widen, units.shape[1]
        self.slack = rounding_bound(units.shape[1]) + (_float16_loss(units) if storage == "float16" else 0.0)

    def nearest(self, queries: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """See :class:`~auscult.search.backends.Backend`; ``fetch`` times as many, as far as the index finds them.

        Raises
        ------
        ValueError
            The queries have another dimension.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"expected queries (n, {self.dimension}), got {queries.shape}")
        wanted = min(self.fetch * count, self.index.ntotal)
        if self.widen is not None:
            self.widen(self.index, wanted)
        rough, row = self.index.search(np.ascontiguousarray(queries), wanted)
        return np.where(row < 0, np.float32(-np.inf), rough), row


def _widen(index: Any, wanted: int, *, breadth: int) -> None:
    index.hnsw.efSearch = max(breadth, wanted)


def _float16_loss(units: FloatArray) -> float:
    """The longest that a row's rounding to float16 is: by Cauchy-Schwarz no cosine with a unit vector changes by more."""
    longest = 0.0
    for start in range(0, len(units), 4096):
        rows = units[start : start + 4096]
        lost = rows - rows.astype(np.float16).astype(np.float32)
        longest = max(longest, float(np.sqrt(np.einsum("ij,ij->i", lost, lost).max())))
    return longest * 1.001
