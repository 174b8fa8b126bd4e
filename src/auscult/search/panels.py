"""Blocks joined into panels that fit the memory, and rows drawn from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import Engine
from .blocks import Block, Matrix, as_blocks, load_rows
from .exact import IntArray


def as_panels(matrix: Matrix, rows: Callable[[int], int]) -> Sequence[Block]:
    """An array in blocks, or consecutive blocks joined, of at most ``rows(d)`` rows of dimension d; a larger block stays whole.

    Examples
    --------
    >>> blocks = as_blocks(np.zeros((10, 4), np.float32), 2)
    >>> [(panel.start, panel.stop) for panel in as_panels(blocks, lambda d: d + 1)]
    [(0, 4), (4, 8), (8, 10)]
    """
    if isinstance(matrix, np.ndarray):
        as_blocks(matrix)  # says what is wrong with it
        return as_blocks(matrix, rows(matrix.shape[1])) if len(matrix) else []
    blocks = [block for block in matrix if len(block)]
    if not blocks:
        return []
    most = rows(blocks[0].load().shape[1])
    runs: list[list[Block]] = []
    for block in blocks:
        if runs and block.stop - runs[-1][0].start <= most:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [Block(run[0].start, run[-1].stop, partial(_load_all, tuple(block.load for block in run))) for run in runs]


def _load_all(loads: tuple[Callable[[], npt.NDArray[Any]], ...]) -> npt.NDArray[Any]:
    parts = [load() for load in loads]
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(f"expected blocks of one dimension, got {sorted({part.shape[1] for part in parts})}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def draw_rows(panels: Sequence[Block], count: int, engine: Engine) -> tuple[npt.NDArray[Any], IntArray]:
    """At most ``count`` rows of the panels in random order, the same in every run, and their numbers."""
    rng = np.random.default_rng(0)
    total = sum(map(len, panels))
    picked = np.sort(rng.choice(total, min(count, total), replace=False))
    edges = np.cumsum([0, *map(len, panels)])
    rows = [picked[(low <= picked) & (picked < high)] - low for low, high in itertools.pairwise(edges)]
    drawn = np.concatenate(list(engine.map(load_rows, zip(panels, rows, strict=True))))
    numbers = np.concatenate([row + panel.start for panel, row in zip(panels, rows, strict=True)])
    order = rng.permutation(len(drawn))
    return drawn[order], numbers[order]
