"""Exact self-join: all pairs of rows above a threshold, without computing those that cannot be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..engine import HERE, Engine
from ..folders import Progress, no_progress
from .blocks import Block, Matrix, total_rows
from .checkpoint import Checkpoint
from .exact import DoubleArray, FloatArray, IntArray, cosines, rounding_bound, unit_rows
from .panels import as_panels, draw_rows
from .sides import count_pairs, one_side, panel_pairs
from .sketch import FETCH, FIT_ROWS, TRIAL_ROWS, Basis, Sketch, choose_basis, row_norms

JOIN_ROWS, JOIN_COLUMNS = 2048, 8192  # 64 MB of similarities at once
BOUND_ROWS, BOUND_COLUMNS = 512, 2048  # 4 MB of bounds at once: they are compared while they are in the cache
PANEL_ROWS = 32_768  # of a task: two of them at once
PRUNE_ROWS = 16_384  # fewer rows are compared sooner than a bound is found
SAMPLED_PANELS = 4
GATHER = 128  # what making a row ready for a product of few rows takes, in pairs of a matrix product
EPSILON = 2.0**-52

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows ``first < second`` (p,) with their cosine ``similarity`` (p,), ordered by first, then second.

    ``pruned`` is the share of all pairs asked for that a bound excluded without their product; 0 where all were computed.
    """

    first: IntArray
    second: IntArray
    similarity: DoubleArray
    pruned: float = 0.0


def self_join(
    vectors: Matrix,
    *,
    threshold: float,
    bias: DoubleArray | None = None,
    groups: IntArray | None = None,
    sides: IntArray | None = None,
    engine: Engine = HERE,
    name: str | None = None,
    progress: Progress = no_progress,
) -> Pairs:
    """All pairs of rows whose similarity less the larger of their biases exceeds a threshold, exactly.

    ``s(i, j) - max(bias_i, bias_j) > threshold`` is the audit paper's symmetric rule, since both normalized scores are then
    above it. Only the upper triangle of the similarity matrix is looked at, tile by tile.

    **Pruning.** A sketch of each row, its coordinates along some directions and the length of the rest, bounds the cosines
    of all pairs from above; ``sketch.py`` proves it, rounding included. Pairs whose bound does not reach the threshold are not
    among the result, so only the others are computed: one by one in float64, or, where a tile has many, as the product of its
    rows and columns that have any. What decides is the float64 cosine in every case, as in brute force: the pairs and their
    similarities are the same. On a sample it is counted what that would cost, and brute force is used where it costs less.

    Parameters
    ----------
    vectors
        (n, d) float32, or blocks of them, float16 or float32, which are read when their turn comes, more than once.
        Blocks are joined into panels, of which two are held at once in half of ``engine.memory_bytes``; a block that is
        larger is a panel by itself.
    threshold
        On the normalized score.
    bias
        (n,) background bias of each row; default zero.
    groups
        (n,) rows of one group (windows of one clip) are not paired.
    sides
        (n,) the set that each row is of: rows of one set are not paired, and two panels of one set not looked at. None: all
        pairs.
    engine
        Where pairs of panels are compared.
    name
        Of this search among those that share ``engine.scratch``: it is continued from what is kept there.
    progress
        Called with pairs compared, of all pairs asked for.

    Raises
    ------
    ValueError
        A row is zero or not finite; ``bias``, ``groups`` or ``sides`` is not of length n; blocks differ in dimension.

    Examples
    --------
    >>> x = np.array([[1, 0], [1, 0.1], [0, 1]], dtype=np.float32)
    >>> self_join(x, threshold=0.9).first, self_join(x, threshold=0.9).second
    (array([0]), array([1]))
    """
    n = total_rows(vectors)
    bias = np.zeros(n) if bias is None else bias
    for what, values in (("bias", bias), ("groups", groups), ("sides", sides)):
        if values is not None and len(values) != n:
            raise ValueError(f"expected {what} of {n} rows, got {len(values)}")
    sides = None if sides is None else np.unique(sides, return_inverse=True)[1]
    panels = as_panels(vectors, partial(_panel_rows, engine))
    counts = panel_pairs(panels, sides)
    if not counts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    numbers, compared = list(counts), np.cumsum(list(counts.values())).tolist()
    few = compared[-1] < PRUNE_ROWS * (PRUNE_ROWS - 1) // 2
    basis = None if few else _basis(panels, threshold + bias, 2 * compared[-1] / n, engine)
    sketches = _sketches(panels, basis, n, engine)

    def side(number: int) -> _Side:
        rows = slice(panels[number].start, panels[number].stop)
        group, of = (None if values is None else values[rows] for values in (groups, sides))
        return _Side(panels[number], bias[rows], group, of, sketches[number])

    # the same number of pairs may be that of other rows
    checkpoint = Checkpoint(engine.scratch_file(name), compared, layout=[panel.stop for panel in panels])
    done, found = checkpoint.restore(_Part.nothing().arrays())
    jobs = ((side(one), side(other)) for one, other in numbers[done:])
    for at, part in enumerate(engine.map(_Join(threshold, basis), jobs), done + 1):
        found = {field: np.concatenate([array, part.arrays()[field]]) for field, array in found.items()}
        checkpoint.keep(at, found)
        progress(compared[at - 1], compared[-1], "pairs compared")
    order = np.lexsort((found["second"], found["first"]))
    first, second, similarity = (found[field][order] for field in ("first", "second", "similarity"))
    pruned = 0.0 if basis is None else 1 - int(found["computed"].sum()) / max(compared[-1], 1)
    return Pairs(first, second, similarity, pruned)


# --- panels and the bound -------------------------------------------------------------------------------------------


def _panel_rows(engine: Engine, dimension: int) -> int:
    """So that two panels, as they are and scaled to norm 1, take half of the memory."""
    return max(1, min(PANEL_ROWS, engine.memory_bytes // 2 // (2 * 8 * max(dimension, 1))))


def _basis(panels: Sequence[Block], level: DoubleArray, partners: float, engine: Engine) -> Basis | None:
    """What prunes best, judged on rows drawn from a few panels; None if nothing pays."""
    few = panels[:: -(-len(panels) // SAMPLED_PANELS)]
    sample, numbers = draw_rows(few, FIT_ROWS + TRIAL_ROWS, engine)
    return choose_basis(sample, level[numbers], partners)


def _sketches(panels: Sequence[Block], basis: Basis | None, n: int, engine: Engine) -> Sequence[Sketch | None]:
    """Sketches of all panels if half of the memory holds them; else tasks make their own."""
    if basis is None or n * 4 * (basis.directions.shape[1] + 3) > engine.memory_bytes // 2:
        return [None] * len(panels)
    return list(engine.map(partial(_sketch, basis), panels))


def _sketch(basis: Basis, panel: Block) -> Sketch:
    return _named(panel, basis.sketch, panel.load())


def _named(panel: Block, function: Callable[[npt.NDArray[Any]], Result], rows: npt.NDArray[Any]) -> Result:
    """The function of a panel's rows; an error says which panel."""
    try:
        return function(rows)
    except ValueError as error:
        raise ValueError(f"of rows {panel.start} to {panel.stop}: {error}") from None


# --- tasks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """A panel of rows, and what self_join knows of them."""

    panel: Block
    bias: DoubleArray
    groups: IntArray | None
    sides: IntArray | None
    sketch: Sketch | None


@dataclass(frozen=True)
class _Part:
    """The pairs of two panels, by row numbers of the whole, and how many pairs were computed to find them."""

    first: IntArray
    second: IntArray
    similarity: DoubleArray
    computed: int

    @classmethod
    def nothing(cls) -> _Part:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        computed = np.array([self.computed] if self.computed else [], np.int64)
        return {"first": self.first, "second": self.second, "similarity": self.similarity, "computed": computed}


@dataclass(frozen=True)
class _Join:
    """The comparison of two panels; what a cluster sends to its workers."""

    threshold: float
    basis: Basis | None

    def __call__(self, job: tuple[_Side, _Side]) -> _Part:
        left = _Rows(job[0], self.threshold, self.basis)
        same = job[0].panel.start == job[1].panel.start
        right = left if same else _Rows(job[1], self.threshold, self.basis)
        found = _Found(left, right, self.threshold)
        if self.basis is None:
            for rows, columns in _tiles(left, right, JOIN_ROWS, JOIN_COLUMNS):
                found.multiply(rows, columns)
        else:
            _pruned(found, left, right)
        return found.part()


class _Rows:
    """A panel in a task: what is made of it when it is needed first."""

    def __init__(self, side: _Side, threshold: float, basis: Basis | None) -> None:
        self.side, self.threshold, self.basis = side, threshold, basis
        self.levels: dict[float, FloatArray] = {}

    def __len__(self) -> int:
        return len(self.side.panel)

    @cached_property
    def vectors(self) -> npt.NDArray[Any]:
        return self.side.panel.load()

    @cached_property
    def all_units(self) -> FloatArray:
        return _named(self.side.panel, unit_rows, self.vectors)[0]

    @cached_property
    def norms(self) -> DoubleArray:
        return row_norms(self.vectors) if self.basis is None else self.sketch.norms

    @cached_property
    def sketch(self) -> Sketch:
        assert self.basis is not None
        return self.side.sketch or _named(self.side.panel, self.basis.sketch, self.vectors)

    def units(self, rows: IntArray | slice) -> FloatArray:
        """Some rows at norm 1: of the panel made ready where all are needed, made where few are."""
        return self.all_units[rows] if self.basis is None else unit_rows(self.vectors[rows])[0]

    def level(self, slack: float) -> FloatArray:
        """What a similarity that is off by ``slack`` must exceed for a pair to count, as far as each row's bias goes."""
        if slack not in self.levels:
            bias = self.side.bias
            rounding = 4 * EPSILON * (abs(self.threshold) + np.minimum(np.abs(bias), 1e300))  # of large biases in float64
            # no cosine is beyond 2, where float32 would overflow or lose the slack
            self.levels[slack] = np.clip(self.threshold + bias - slack - rounding, -2, 2).astype(np.float32)
        return self.levels[slack]


class _Found:
    """Pairs of two panels as they are found."""

    def __init__(self, left: _Rows, right: _Rows, threshold: float) -> None:
        self.left, self.right, self.threshold = left, right, threshold
        self.parts: list[tuple[IntArray, IntArray, DoubleArray]] = []
        self.computed = 0

    def multiply(self, rows: slice | IntArray, columns: slice | IntArray) -> None:
        """Compute all pairs of some rows and some columns in float32, and decide those that may count."""
        left, right = self.left.units(rows), self.right.units(columns)
        slack = rounding_bound(left.shape[1])
        product = left @ right.T
        row, column = _above(product, self.left.level(slack)[rows], self.right.level(slack)[columns])
        here, there = (np.arange(len(side))[part] for side, part in ((self.left, rows), (self.right, columns)))
        one, other = self.left.side.sides, self.right.side.sides
        self.computed += count_pairs(
            here,
            there,
            ordered=self.left is self.right,
            row_side=None if one is None else one[here],
            column_side=None if other is None else other[there],
        )
        self.decide(*self.wanted(here[row], there[column]))

    def wanted(self, row: IntArray, column: IntArray) -> tuple[IntArray, IntArray]:
        """The pairs that are asked for: each once, and of different sides."""
        if self.left is self.right:
            row, column = row[row < column], column[row < column]
        one, other = self.left.side.sides, self.right.side.sides
        if one is not None and other is not None:
            across = one[row] != other[column]
            row, column = row[across], column[across]
        return row, column

    def fetch(self, row: IntArray, column: IntArray) -> None:
        """Compute pairs one by one."""
        self.computed += len(row)
        self.decide(row, column)

    def decide(self, row: IntArray, column: IntArray) -> None:
        """Keep the pairs that count, by their float64 cosine."""
        one, other = self.left.side, self.right.side
        if one.groups is not None and other.groups is not None:
            apart = one.groups[row] != other.groups[column]
            row, column = row[apart], column[apart]
        if len(row) == 0:
            return
        exact = cosines(self.left.vectors, self.left.norms, self.right.vectors, self.right.norms, row, column)
        above = exact - np.maximum(one.bias[row], other.bias[column]) > self.threshold
        self.parts.append((row[above] + one.panel.start, column[above] + other.panel.start, exact[above]))

    def part(self) -> _Part:
        """All of them."""
        none = _Part.nothing()
        nothing = (none.first, none.second, none.similarity)
        first, second, similarity = (np.concatenate(column) for column in zip(nothing, *self.parts, strict=True))
        return _Part(first, second, similarity, self.computed)


def _tiles(left: _Rows, right: _Rows, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of two panels that hold wanted pairs; of a panel and itself, those that reach above the
    diagonal."""
    one, other = left.side.sides, right.side.sides
    for top in range(0, len(left), height):
        for start in range(top if left is right else 0, len(right), width):
            rows, columns = slice(top, min(top + height, len(left))), slice(start, min(start + width, len(right)))
            if one is None or other is None or not one_side(one[rows], other[columns]):
                yield rows, columns


def _above(product: FloatArray, row_level: FloatArray, column_level: FloatArray) -> tuple[IntArray, IntArray]:
    """Rows and columns of the entries above both levels."""
    row, column = np.divmod(np.flatnonzero(product > row_level[:, None]), product.shape[1])
    keep = product[row, column] > column_level[column]
    return row[keep], column[keep]


def _pruned(found: _Found, left: _Rows, right: _Rows) -> None:
    """Compute what the bound does not exclude: alone where a tile has few such pairs, as a product where it has many."""
    assert left.basis is not None
    slack = left.basis.slack
    row_level, column_level = left.level(slack), right.level(slack)
    buffer = np.empty(BOUND_ROWS * BOUND_COLUMNS, np.float32)
    for top, tiles in itertools.groupby(_tiles(left, right, BOUND_ROWS, BOUND_COLUMNS), key=lambda tile: tile[0].start):
        alone: list[tuple[IntArray, IntArray]] = []
        for rows, columns in tiles:
            one, other = left.sketch.columns[rows], right.sketch.columns[columns]
            bound = buffer[: len(one) * len(other)].reshape(len(one), len(other))
            row, column = _above(np.matmul(one, other.T, out=bound), row_level[rows], column_level[columns])
            row, column = found.wanted(row + top, column + columns.start)
            if len(row) == 0:
                continue
            some, others = np.unique(row), np.unique(column)
            if FETCH * len(row) > len(some) * len(others) + GATHER * (len(some) + len(others)):
                found.multiply(some, others)
            else:
                alone.append((row, column))
        if alone:
            found.fetch(*(np.concatenate(ends) for ends in zip(*alone, strict=True)))
