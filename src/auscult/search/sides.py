"""Pairs across sets: of rows that have a side, only those of different sides are wanted. How many these are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .blocks import Block
from .exact import IntArray


def panel_pairs(panels: Sequence[Block], sides: IntArray | None) -> dict[tuple[int, int], int]:
    """Numbers of two panels (each with itself too) that have wanted pairs, and how many; without sides, all of them.

    Examples
    --------
    >>> halves = [Block(0, 3, list), Block(3, 6, list)]
    >>> panel_pairs(halves, None)
    {(0, 0): 3, (0, 1): 9, (1, 1): 3}
    >>> panel_pairs(halves, np.array([0, 0, 0, 0, 1, 1]))
    {(0, 1): 6, (1, 1): 2}
    """
    sizes = [len(panel) for panel in panels]
    numbers = [(one, other) for one in range(len(panels)) for other in range(one, len(panels))]
    if sides is None:
        return {(a, b): sizes[a] * (sizes[a] - 1) // 2 if a == b else sizes[a] * sizes[b] for a, b in numbers}
    of_sides = [np.unique(sides[panel.start : panel.stop], return_counts=True) for panel in panels]
    counts = {}
    for a, b in numbers:
        (one, ones), (other, others) = of_sides[a], of_sides[b]
        _, here, there = np.intersect1d(one, other, assume_unique=True, return_indices=True)
        across = sizes[a] * sizes[b] - int(ones[here] @ others[there])
        counts[a, b] = across // 2 if a == b else across
    return {number: count for number, count in counts.items() if count}


def count_pairs(
    row: IntArray, column: IntArray, *, ordered: bool, row_side: IntArray | None, column_side: IntArray | None
) -> int:
    """Of all pairs of a row and a column (increasing numbers), how many are wanted.

    Parameters
    ----------
    ordered
        Only those of ``row < column``: both are of one panel.
    row_side, column_side
        Only those of different sides (not negative).

    Examples
    --------
    >>> count_pairs(np.arange(3), np.arange(3), ordered=True, row_side=np.array([0, 0, 1]), column_side=np.array([0, 0, 1]))
    2
    """
    count = len(row) * len(column)
    if ordered:
        count -= int(np.searchsorted(column, row, "right").sum())
    if row_side is None or column_side is None or count == 0:
        return count
    width = max(int(row[-1]), int(column[-1])) + 2
    keys = np.sort(column_side * width + column + 1)  # by side, then by number
    after = row_side * width + (row + 1 if ordered else 0)
    same = np.searchsorted(keys, (row_side + 1) * width) - np.searchsorted(keys, after, "right")
    return count - int(same.sum())


def one_side(row_side: IntArray, column_side: IntArray) -> bool:
    """Whether no pair of a row and a column is of different sides."""
    return bool((row_side == row_side[0]).all() and (column_side == row_side[0]).all())
