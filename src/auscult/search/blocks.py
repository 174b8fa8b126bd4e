"""Rows in blocks: in memory, or read from disk when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .exact import FloatArray, IntArray


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``stop`` of a matrix or list.

    Attributes
    ----------
    load
        Returns them: (stop - start, d) float16 or float32, or of the two-stage detector a list of levels. It can be pickled, so
        that another process may load them.
    """

    start: int
    stop: int
    load: Callable[[], Any]

    def __len__(self) -> int:
        return self.stop - self.start


Matrix = FloatArray | Sequence[Block]


def as_blocks(matrix: Matrix, rows: int | None = None, groups: IntArray | None = None) -> Sequence[Block]:
    """An array as blocks of at most ``rows`` rows (None: as one), no run of equal ``groups`` cut in two; blocks as they are.

    A block is larger if a run is.

    Examples
    --------
    >>> [(block.start, block.stop) for block in as_blocks(np.zeros((5, 2), np.float32), 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    if not isinstance(matrix, np.ndarray):
        return matrix
    if matrix.ndim != 2:
        raise ValueError(f"expected (n, d), got {matrix.shape}")
    n, step = len(matrix), rows or max(len(matrix), 1)
    ends = np.arange(1, n + 1) if groups is None else np.append(np.flatnonzero(groups[1:] != groups[:-1]) + 1, n)
    blocks, start = [], 0
    while start < n:
        last = int(np.searchsorted(ends, start + step, side="right")) - 1  # the last end within reach, or the first beyond
        stop = int(ends[last] if last >= 0 and ends[last] > start else ends[last + 1])
        blocks.append(Block(start, stop, partial(_itself, matrix[start:stop])))
        start = stop
    return blocks


def read_ahead(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks, each being read while the one before is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(block.load) for block in blocks[:1]]
        for at, block in enumerate(blocks):
            coming += [reader.submit(after.load) for after in blocks[at + 1 : at + 2]]
            yield replace(block, load=coming.pop(0).result)


def _itself(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array


def total_rows(matrix: Matrix) -> int:
    """How many rows a matrix has."""
    return len(matrix) if isinstance(matrix, np.ndarray) else sum(map(len, matrix))


def load_all(blocks: Sequence[Block]) -> npt.NDArray[Any]:
    """All rows of blocks in memory, float32 or uint8; beside the result, one block at a time. Of none, (0, 0)."""
    if not blocks:
        return np.zeros((0, 0), np.float32)
    first = blocks[0].load()
    whole = np.empty((total_rows(blocks), first.shape[1]), first.dtype if first.dtype == np.uint8 else np.float32)
    whole[: len(first)] = first
    for block in blocks[1:]:
        whole[block.start : block.stop] = block.load()
    return whole


def load_rows(job: tuple[Block, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Some rows of a block: their numbers in it, or a mask."""
    block, rows = job
    return np.asarray(block.load()[rows])


def taken(matrix: Matrix, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Some rows in memory, in the given order; blocks without any are not read."""
    if isinstance(matrix, np.ndarray):
        return matrix[rows]
    result: npt.NDArray[Any] | None = None
    for block in matrix:
        at = np.flatnonzero((rows >= block.start) & (rows < block.stop))
        if len(at):
            part = block.load()
            if result is None:
                result = np.empty((len(rows), part.shape[1]), np.float32)
            result[at] = part[rows[at] - block.start]
    return np.zeros((0, 0), np.float32) if result is None else result
