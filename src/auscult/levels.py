"""The relative levels of whole clips, for the two-stage detector: in memory, or read from a store when their turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa

from .descriptors.contrast import BANDS, HOP, SAMPLE_RATE, Levels, assemble, relative_levels
from .engine import Engine
from .search import IntArray
from .search.blocks import Block
from .storage import Folder
from .store import DescriptorStore, read_shard, vector_matrix


@dataclass(frozen=True)
class LevelSet:
    """The clips of a store.

    Attributes
    ----------
    levels
        Relative levels (frames, 64) uint8 of each clip, in the order of ``clips``: a list of them, or a tuple of blocks that
        load such lists from disk.
    clips
        The table of clips.
    """

    levels: list[Levels] | tuple[Block, ...]
    clips: pa.Table

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    def read(self, rows: IntArray) -> list[Levels]:
        """Levels of some clips, in the given order; a block on disk is read once, and only if it holds any of them."""
        if isinstance(self.levels, list):
            return [self.levels[row] for row in rows.tolist()]
        found: dict[int, Levels] = {}
        wanted = np.unique(rows)
        for block in self.levels:
            here = wanted[(wanted >= block.start) & (wanted < block.stop)].tolist()
            if here:
                loaded = block.load()
                found.update((row, loaded[row - block.start]) for row in here)
        return [found[row] for row in rows.tolist()]

    def subset(self, rows: IntArray) -> LevelSet:
        """Some of the clips, in the given order; in memory."""
        return LevelSet(self.read(rows), self.clips.take(rows))

    def panels(self, most: int, start: int = 0) -> Iterator[tuple[IntArray, list[Levels]]]:
        """At most so many clips from row ``start`` on at a time, in memory: their rows and levels; silent ones are left out."""
        blocks = self.levels if isinstance(self.levels, tuple) else [Block(0, len(self), partial(list, self.levels))]
        for block in blocks:
            if block.stop <= start:
                continue
            heard = [(row, levels) for row, levels in enumerate(block.load(), block.start) if row >= start and levels.any()]
            for first in range(0, len(heard), most):
                part = heard[first : first + most]
                yield np.array([row for row, _ in part], np.int64), [levels for _, levels in part]


def load_levels(store: DescriptorStore, engine: Engine | None = None) -> LevelSet:
    """Read a store of the ``contrast`` descriptor; silent clips get levels of zero.

    If the levels would take more than the engine has for them, they stay where they are, a shard to a block.
    """
    clips = store.clips()
    frames = np.array([int(duration * SAMPLE_RATE) // HOP + 1 for duration in clips["duration_s"].to_pylist()], np.int64)
    ends = np.cumsum(clips["n_windows"].to_numpy())
    blocks, clip, window = [], 0, 0
    for name, count in zip(store.part_names, store.part_counts, strict=True):
        window += count
        stop = int(np.searchsorted(ends, window, side="right"))  # clips whose windows all lie in the shards so far
        ids = clips["clip_id"].slice(clip, stop - clip).to_pylist()
        blocks.append(Block(clip, stop, partial(_shard_levels, store.folder, name, ids, frames[clip:stop].tolist())))
        clip = stop
    if engine is not None and BANDS * int(frames.sum()) > engine.resident_bytes:
        return LevelSet(tuple(block for block in blocks if len(block)), clips)
    return LevelSet([levels for block in blocks for levels in block.load()], clips)


def _shard_levels(folder: Folder, name: str, ids: list[str], frames: list[int]) -> list[Levels]:
    """Levels of the clips ``ids``, whose windows lie in one shard, in this order."""
    table = read_shard(folder, name)
    rows = zip(table["clip_id"].to_pylist(), table["start_s"].to_pylist(), vector_matrix(table), strict=True)
    windows = {owner: [row[1:] for row in group] for owner, group in groupby(rows, key=lambda row: row[0])}
    return [
        relative_levels(assemble(windows[clip_id], count)) if clip_id in windows else np.zeros((1, BANDS), np.uint8)
        for clip_id, count in zip(ids, frames, strict=True)
    ]
