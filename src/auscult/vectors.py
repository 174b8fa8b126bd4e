"""The descriptor vectors of a store: in memory, or in blocks that are read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .descriptors import DescriptorSpec
from .engine import Engine
from .search.blocks import Block, Matrix, as_blocks, load_rows, taken
from .search.exact import FloatArray

BLOCK_ROWS = 65536  # of vectors on disk read at once, at most: what a checkpoint may lose
TASK_ROWS = 8192  # the same on a cluster, where every block is a task
BLOCKS_AT_ONCE = 4  # queries, a block as it is kept, its unit rows, and the next one that is being read


@dataclass(frozen=True)
class Vectors:
    """Descriptor vectors, in memory or on disk.

    Attributes
    ----------
    vectors
        (n, d) float32, or uint8 levels; or blocks of them that are read when they are needed, each holding whole clips.
    clip
        (n,) row of each vector's clip in ``clips``.
    start_s
        (n,) where in its clip each vector's window starts.
    clips
        The table of clips (``clips.parquet``).
    window_s
        Length of a window in seconds.
    spec
        The descriptor.
    """

    vectors: Matrix
    clip: npt.NDArray[np.int64]
    start_s: npt.NDArray[np.float64]
    clips: pa.Table
    window_s: float
    spec: DescriptorSpec

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def clip_ids(self) -> npt.NDArray[np.str_]:
        """(number of clips,) the ids, in the order of ``clips``."""
        return np.asarray(self.clips["clip_id"].to_pylist(), dtype=np.str_)

    def subset(self, clip_rows: npt.NDArray[np.int64]) -> Vectors:
        """Some rows of ``clips`` only, in the given order of rows; in memory."""
        position = np.full(self.clips.num_rows, -1, np.int64)
        position[clip_rows] = np.arange(len(clip_rows))
        keep = np.flatnonzero(position[self.clip] >= 0)
        keep = keep[np.argsort(position[self.clip[keep]], kind="stable")]
        return Vectors(
            taken(self.vectors, keep),
            position[self.clip[keep]],
            self.start_s[keep],
            self.clips.take(clip_rows),
            self.window_s,
            self.spec,
        )

    def without(self, clip_rows: npt.NDArray[np.int64]) -> Vectors:
        """All rows of ``clips`` but these, in the order of the rows; on disk where the vectors are."""
        dropped = np.zeros(self.clips.num_rows, np.bool_)
        dropped[clip_rows] = True
        if not dropped.any():
            return self
        position = np.cumsum(~dropped) - 1
        rows = ~dropped[self.clip]
        vectors = self.vectors[rows] if isinstance(self.vectors, np.ndarray) else _filtered(self.vectors, rows)
        clips = self.clips.filter(pa.array(~dropped))
        return Vectors(vectors, position[self.clip[rows]], self.start_s[rows], clips, self.window_s, self.spec)

    def split(self, n_clips: int) -> tuple[Vectors, Vectors]:
        """The first ``n_clips`` clips and the others, where no block holds vectors of both."""
        at = int(np.searchsorted(self.clip, n_clips))
        before: Matrix
        after: Matrix
        if isinstance(self.vectors, np.ndarray):
            before, after = self.vectors[:at], self.vectors[at:]
        else:
            before = [block for block in self.vectors if block.stop <= at]
            after = [Block(block.start - at, block.stop - at, block.load) for block in self.vectors if block.start >= at]
        clip, start_s, clips = self.clip, self.start_s, self.clips
        first = Vectors(before, clip[:at], start_s[:at], clips.slice(0, n_clips), self.window_s, self.spec)
        second = Vectors(after, clip[at:] - n_clips, start_s[at:], clips.slice(n_clips), self.window_s, self.spec)
        return first, second

    def joined(self, other: Vectors) -> Vectors:
        """The clips of both, these first; on disk unless both are in memory."""
        n, vectors = len(self), self.vectors
        if isinstance(vectors, np.ndarray) and isinstance(other.vectors, np.ndarray):
            vectors = np.concatenate([vectors, other.vectors])
        else:
            after = [Block(block.start + n, block.stop + n, block.load) for block in as_blocks(other.vectors)]
            vectors = [*as_blocks(vectors), *after]
        return Vectors(
            vectors,
            np.concatenate([self.clip, other.clip + self.clips.num_rows]),
            np.concatenate([self.start_s, other.start_s]),
            pa.concat_tables([self.clips, other.clips]),
            self.window_s,
            self.spec,
        )

    def panels(self, engine: Engine) -> Iterator[tuple[slice, FloatArray]]:
        """The vectors part by part, in memory: which rows, and they themselves (float32)."""
        for block in as_blocks(self.vectors):
            vectors = block.load().astype(np.float32, copy=False)
            rows = max(1, engine.memory_bytes // (BLOCKS_AT_ONCE * 4 * vectors.shape[1]))
            for start in range(0, len(vectors), rows):
                stop = min(start + rows, len(vectors))
                yield slice(block.start + start, block.start + stop), vectors[start:stop]


def _filtered(blocks: Sequence[Block], rows: npt.NDArray[np.bool_]) -> tuple[Block, ...]:
    """The blocks with the marked rows only."""
    kept, start = [], 0
    for block in blocks:
        here = rows[block.start : block.stop]
        if count := int(np.count_nonzero(here)):
            kept.append(Block(start, start + count, partial(load_rows, (block, here))))
            start += count
    return tuple(kept)


def rows_at_once(engine: Engine, dimension: int) -> int:
    """Rows of a block of vectors on disk: few enough for the memory, and on a cluster for many tasks."""
    most = BLOCK_ROWS if engine.ray is None else TASK_ROWS
    return max(1, min(most, engine.memory_bytes // (BLOCKS_AT_ONCE * 8 * dimension)))
