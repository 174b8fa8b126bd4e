"""First stage: which references deserve a closer look, by exhaustive correlation.

Every query is correlated with every reference at all lags on a clock of 64 ms, under a
few pitch and tempo hypotheses. No pair is left out; what this stage can miss is what its coarser clock and its
coarser grid of tempos and pitches blur, among so many references that the blurred ones fall out of the list.
`benchmarks/copy_detection` measures its recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..descriptors.contrast import Frames, Levels, fingerprint, warp
from ..engine import HERE, Engine
from ..search.blocks import Block
from ..search.checkpoint import Checkpoint
from .correlation import CHUNK, Bank, build_bank, chunk_starts, correlate, decimate

STEP = 2  # frames per tick of the coarse clock
HYPOTHESES = ((1.0, 0.0), (1.0, -2.0), (1.0, 2.0), (0.85, 0.0), (0.93, 0.0), (1.08, 0.0), (1.18, 0.0))  # tempo, semitones
PRIOR = 0.95  # of the z of any but the plain hypothesis: it had more chances to be large
BLOCK = 128  # reference chunks at a time: the products of a block stay in the cache, also when two threads share it
QUERIES = 4  # query chunks per matrix product


@dataclass(frozen=True)
class Candidates:
    """The best references of each query: `index` and `z`, both ``(queries, k)``, best first.

    Where fewer than `k` references exist, `index` is -1 and `z` is ``-inf``.
    """

    index: NDArray[np.intp]
    z: NDArray[np.float32]


def query_variants(levels: Levels) -> list[list[Frames]]:
    """For each chunk of a query, its coarse fingerprint under every hypothesis."""
    out = []
    for start in chunk_starts(len(levels)):
        piece = levels[start : start + CHUNK]
        prints = [fingerprint(warp(piece, tempo=t, pitch=p)) for t, p in HYPOTHESES]
        out.append([decimate(f, STEP)[: CHUNK // STEP] for f in prints])
    return out


def candidates(
    queries: Sequence[Levels],
    references: list[Levels] | tuple[Block, ...],
    *,
    k: int = 100,
    engine: Engine = HERE,
    name: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Candidates:
    """The `k` references of largest `z` for each query; ties by lower index.

    Parameters
    ----------
    queries, references
        Relative levels, `(frames, BANDS)` uint8 each. References are read once, in blocks, which may lie on disk.
    engine
        Where the blocks are searched; the result does not depend on it.
    name
        Of this search among those that share ``engine.scratch``.
    progress
        Called with the number of references searched so far.

    Returns
    -------
    Candidates
    """
    variants = [query_variants(q) for q in queries]
    owner = np.repeat(np.arange(len(queries)), [len(v) for v in variants])
    task = _FirstStage([chunk for query in variants for chunk in query], owner, len(queries), k)
    best = np.full((len(queries), k), -np.inf, np.float32)
    index = np.full((len(queries), k), -1, np.intp)
    blocks = list(_blocks(references)) if isinstance(references, list) else references
    checkpoint = Checkpoint(engine.scratch_file(name), [block.stop for block in blocks])
    done, kept = checkpoint.restore({"z": best, "index": index})
    best, index = kept["z"], kept["index"]
    for at, (z, found) in enumerate(engine.map(task, blocks[done:], threads=engine.workers), done + 1):
        best, index = _keep(np.hstack([best, z]), np.hstack([index, found]), k)
        checkpoint.keep(at, {"z": best, "index": index})
        if progress:
            progress(blocks[at - 1].stop)
    return Candidates(index, best)


@dataclass(frozen=True)
class _FirstStage:
    """The queries made ready, and the search of one block of references for all of them."""

    flat: list[list[Frames]]
    owner: NDArray[np.intp]
    count: int
    k: int

    def __call__(self, references: Block) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        best, index = np.zeros((self.count, 0), np.float32), np.zeros((self.count, 0), np.intp)
        for block in _blocks(references.load()):
            bank = build_bank([fingerprint(levels) for levels in block.load()], step=STEP)
            z = _best_z(self.flat, self.owner, self.count, bank)
            ids = np.broadcast_to(references.start + np.arange(block.start, block.stop), z.shape)
            best, index = _keep(np.hstack([best, z]), np.hstack([index, ids]), self.k)
        return best, index


def _blocks(references: list[Levels]) -> Iterator[Block]:
    """Consecutive references, `BLOCK` chunks at a time."""
    start, chunks = 0, 0
    for stop, levels in enumerate(references, 1):
        chunks += len(chunk_starts(len(levels)))
        if chunks >= BLOCK or stop == len(references):
            yield Block(start, stop, partial(list, references[start:stop]))
            start, chunks = stop, 0


def _best_z(flat: list[list[Frames]], owner: NDArray[np.intp], count: int, bank: Bank) -> NDArray[np.float32]:
    """Largest `z` over lags, hypotheses and chunks, ``(queries, references of the bank)``."""
    prior = np.array([1.0] + [PRIOR] * (len(HYPOTHESES) - 1), np.float32)
    edges = np.flatnonzero(np.diff(bank.owner, prepend=-1))
    out = np.full((count, len(edges)), -np.inf, np.float32)
    for at in range(0, len(flat), QUERIES):
        group = flat[at : at + QUERIES]
        flat_group = [variant for chunk in group for variant in chunk]
        overlaps = [i // len(HYPOTHESES) for i in range(len(flat_group))]  # one a chunk: this stage can do without exact ones
        peak = correlate(flat_group, bank, overlaps=overlaps).max(axis=0)
        peak = (peak.reshape(len(group), len(prior), -1) * prior[:, None]).max(axis=1)
        peak = np.maximum.reduceat(peak, edges, axis=1)
        np.maximum.at(out, owner[at : at + QUERIES], peak)
    return out


def _keep(z: NDArray[np.float32], index: NDArray[np.intp], k: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    order = np.argsort(-z, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(z, order, 1), np.take_along_axis(index, order, 1)
