"""From parts of a score to one number that a single global threshold can use.

Each part is standardized by what the same query reaches on background sounds, which are
known to hold no copy:

    s_k = (part_k - mean_b part_k(b)) / ((1 - SHRINKAGE) sd_b part_k(b) + SHRINKAGE sd_k)
    score = (s_whole + max_k s_k) / 2

A drum loop reaches large values on every other drum loop, rain does not on rain; after
standardizing, the same number means the same surprise. `sd_k` are fixed (`USUAL_SPREAD`), so
that one query's score never depends on which others are scored with it. Half of the score
is the agreement over everything that overlaps, half the best stretch: the first is
steadier, the second finds excerpts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..descriptors.contrast import Frames, Levels
from .correlation import CHUNK, Bank, build_bank, join, unit_rows
from .parts import PART_NAMES, Parts, QueryPrints, compare_closely, compare_whole, prepare

SHRINKAGE = 0.15
# median over 1,064 benchmark queries (seeds 0, 1) of the spread over 50 background clips, by part
USUAL_SPREAD = np.array([0.65, 0.71, 0.72, 0.73, 0.73, 0.60, 0.84, 0.82, 0.81, 0.82, 0.75], np.float32)
MIN_BACKGROUND = 8
OUTLYING = 6.0  # robust standard deviations: chance does not reach so far in any background, copies lie far beyond


@dataclass(frozen=True)
class Clips:
    """Sounds made ready for comparison: a bank, and its chunks as unit-row fingerprints."""

    bank: Bank
    chunks: tuple[Frames, ...]


@dataclass(frozen=True)
class Scores:
    """One query against several references, in their order.

    Attributes
    ----------
    score
        ``(references,)``; larger is closer, unrelated pairs are near 0 with spread 1.
    halves
        What the score is the mean of: `s_whole` and the largest `s_k`. ``(references, 2)``
    parts
        ``(references, len(PART_NAMES))``, before standardizing.
    usual
        Mean `whole` of the query over the background.
    hypothesis, query_start, reference_start
        Where to start `spans.locate`. ``(references,)``
    """

    score: NDArray[np.float32]
    halves: NDArray[np.float32]
    parts: NDArray[np.float32]
    usual: float
    hypothesis: NDArray[np.intp]
    query_start: NDArray[np.intp]
    reference_start: NDArray[np.intp]


def prepare_clips(prints: Sequence[Frames]) -> Clips:
    """Transform the fingerprints of references or background, all chunks of them."""
    bank = build_bank(prints)
    pairs = zip(bank.owner.tolist(), bank.start.tolist(), strict=True)
    return Clips(bank, tuple(unit_rows(prints[i][at : at + CHUNK]) for i, at in pairs))


def standardize(parts: NDArray[np.float32], null: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(n, 2)``: `parts` ``(n, k)`` in standard deviations of the background's ``(m, k)``, of the whole and of the largest.

    The score is their mean.
    """
    if len(null) < MIN_BACKGROUND:
        raise ValueError(f"a background of at least {MIN_BACKGROUND} clips is needed, got {len(null)}; give --background")
    spread = (1 - SHRINKAGE) * null.std(axis=0) + SHRINKAGE * USUAL_SPREAD
    z = (parts - null.mean(axis=0)) / spread
    return np.stack([z[:, 0], z.max(axis=1)], axis=1).astype(np.float32)


def without_copies(null: NDArray[np.float32]) -> NDArray[np.float32]:
    """The background's parts without outliers in `whole`, beyond `OUTLYING` robust standard deviations (median, MAD).

    For a background drawn from the references themselves, which may hold what the query copies.
    """
    whole = null[:, 0]
    middle = np.median(whole)
    spread = 1.4826 * np.median(np.abs(whole - middle))
    keep = whole <= middle + OUTLYING * max(float(spread), float(USUAL_SPREAD[0]))
    if np.count_nonzero(keep) < MIN_BACKGROUND:  # copies of the query are most of them: the least alike serve
        return null[np.argsort(whole, kind="stable")[:MIN_BACKGROUND]]
    return null[keep]


def score(
    query: Levels, references: Clips, background: Clips, *, close: int | None = None, own_background: bool = False
) -> Scores:
    """Compare one query with prepared references.

    Parameters
    ----------
    close
        Scan only this many references of largest `whole` (default: all). The others are
        scored by `whole` alone, which is never above the full score.
    own_background
        Whether the background may hold copies of the query, which then are left out of it.

    Returns
    -------
    Scores
    """
    prints = prepare(query)
    count = int(references.bank.owner.max()) + 1
    parts = compare_whole(prints, join(references.bank, background.bank))
    chunks = references.chunks + background.chunks
    order = np.argsort(-parts.whole[:count], kind="stable")
    chosen = order[: count if close is None else close]
    null = compare_closely(prints, parts, chunks, np.arange(count, len(parts.whole)))
    if own_background:
        null = without_copies(null)
    full = np.repeat(parts.whole[:count, None], len(PART_NAMES), axis=1)
    full[:, 1:] = np.nan
    full[chosen] = compare_closely(prints, parts, chunks, chosen)
    filled = np.where(np.isnan(full), -np.inf, full)
    usual = float(null[:, 0].mean()) if len(null) else float("nan")
    halves = standardize(filled, null)
    return Scores(halves.mean(axis=1), halves, full, usual, *_places(prints, parts, references.bank, count))


def _places(prints: QueryPrints, parts: Parts, bank: Bank, count: int) -> tuple[NDArray[np.intp], ...]:
    starts = np.array(prints.starts, np.intp)
    return parts.hypothesis[:count], starts[parts.query_chunk[:count]], bank.start[parts.reference_chunk[:count]]
