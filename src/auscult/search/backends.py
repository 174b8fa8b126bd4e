"""What proposes candidates to the exact search: the nearest rows of a block by a rough cosine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .exact import FloatArray, IntArray, rounding_bound


class Backend(Protocol):
    """One block of references, made ready for queries.

    A backend may have a method ``cosines`` as well, with the arguments and to the last bit the values of
    :func:`auscult.search.exact.cosines`; then the search computes there what decides. And it may have a number ``threads``: how
    many blocks of queries are asked about at once.
    """

    @property
    def slack(self) -> float:
        """How far a rough cosine may be from the exact one."""

    @property
    def exhaustive(self) -> bool:
        """Whether every row that is not listed is, by its rough cosine, no nearer than the last one listed."""

    def nearest(self, queries: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """Rough cosines, largest first, and rows (-1: none) of the ``count`` nearest, (n, count) each, of unit ``queries``."""


Prepare = Callable[[FloatArray], Backend]  # from the unit rows of a block


class FaissExact:
    """Brute force on the processor, at the speed of its matrix product."""

    exhaustive = True

    def __init__(self, units: FloatArray) -> None:
        self.units, self.slack = units, rounding_bound(units.shape[1])

    def nearest(self, queries: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """See :class:`Backend`."""
        import faiss

        rough, index = faiss.knn(queries, self.units, count, metric=faiss.METRIC_INNER_PRODUCT)
        return rough, index
