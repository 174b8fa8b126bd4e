"""Second stage: does this query replay that reference, and where?

Parts of the score, per pair, all on the scale of `correlation.correlate`:

``whole``    largest z over all lags and 19 tempo and pitch hypotheses
``short_n``  largest z of `n` consecutive frames on any diagonal of the frame-by-frame
             similarity, plain hypothesis (a copy inside other sound)
``warped_n`` the same under the hypothesis that `whole` preferred

A pair's parts mean little by themselves: rhythmic or sparse sounds reach larger values by
chance than others. `scoring` compares them with what the same query reaches on
background sounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..descriptors.contrast import BANDS, Frames, Levels, fingerprint, warp
from .correlation import CHUNK, Bank, chunk_starts, correlate, unit_rows

TEMPOS = (0.80, 0.84, 0.89, 0.94, 1.06, 1.12, 1.19, 1.26)
PITCHES = (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)
SPEEDS = ((0.94, 1.0), (0.97, 0.5), (1.03, -0.5), (1.06, -1.0))  # tape: what plays slower lies lower
HYPOTHESES: tuple[tuple[float, float], ...] = (
    (1.0, 0.0),
    *((tempo, 0.0) for tempo in TEMPOS),
    *((1.0, pitch) for pitch in PITCHES),
    *SPEEDS,
)
OVERLAPS = tuple(sorted({t for t, _ in HYPOTHESES}).index(t) for t, _ in HYPOTHESES)  # one for each tempo
PRIOR = 0.9  # of the z of any but the plain hypothesis: 18 of them had their chances
LENGTHS = (10, 20, 40, 80, 160)  # frames: 0.32 to 5.1 s
PART_NAMES = ("whole", *(f"short_{n}" for n in LENGTHS), *(f"warped_{n}" for n in LENGTHS))


@dataclass(frozen=True)
class QueryPrints:
    """A query's fingerprints: per chunk its first frame and one array per hypothesis."""

    starts: tuple[int, ...]
    prints: tuple[tuple[Frames, ...], ...]


@dataclass(frozen=True)
class Parts:
    """Scores of one query with many references.

    Attributes
    ----------
    whole
        ``(references,)`` float32.
    hypothesis, query_chunk, reference_chunk
        Where `whole` was reached: index into `HYPOTHESES`, index of the query's chunk, and
        index of the chunk in the bank. ``(references,)``
    """

    whole: NDArray[np.float32]
    hypothesis: NDArray[np.intp]
    query_chunk: NDArray[np.intp]
    reference_chunk: NDArray[np.intp]


def prepare(levels: Levels) -> QueryPrints:
    """Fingerprint every chunk of a query under every hypothesis."""
    starts = chunk_starts(len(levels))
    prints = []
    for start in starts:
        piece = levels[start : start + CHUNK]
        variants = [unit_rows(fingerprint(warp(piece, tempo=t, pitch=p))) for t, p in HYPOTHESES]
        prints.append(tuple(v[:CHUNK] for v in variants))
    return QueryPrints(tuple(starts), tuple(prints))


def compare_whole(query: QueryPrints, bank: Bank) -> Parts:
    """`whole` of a query against every clip of a bank."""
    count = int(bank.owner.max()) + 1
    best = Parts(
        np.full(count, -np.inf, np.float32), np.zeros(count, np.intp), np.zeros(count, np.intp), np.zeros(count, np.intp)
    )
    for c, prints in enumerate(query.prints):
        peak = correlate(prints, bank, overlaps=OVERLAPS).max(axis=0)
        peak[1:] *= PRIOR
        hypothesis, value = peak.argmax(axis=0), peak.max(axis=0)
        for chunk in np.lexsort((np.arange(len(value)), -value)):  # best chunk of a clip first
            clip = bank.owner[chunk]
            if value[chunk] > best.whole[clip]:
                best.whole[clip], best.hypothesis[clip] = value[chunk], hypothesis[chunk]
                best.query_chunk[clip], best.reference_chunk[clip] = c, chunk
    return best


def diagonals(query: Frames, reference: Frames) -> NDArray[np.float32]:
    """Frame similarities with diagonals as columns, ``(query frames, lags)``.

    Row ``i`` is query frame ``len(query) - 1 - i``; column ``c`` pairs query frame ``t`` with
    reference frame ``t + c - len(query) + 1``. Made by padding each row and reading the
    memory with rows one element shorter, which shifts every row by one: no copies of diagonals.
    """
    n, m = len(query), len(reference)
    padded = np.zeros((n, n + m), np.float32)
    np.matmul(query[::-1], reference.T, out=padded[:, :m])
    return padded.ravel()[: n * (n + m - 1)].reshape(n, n + m - 1)


def scan(query: Frames, reference: Frames) -> NDArray[np.float32]:
    """Largest ``sqrt(BANDS / n) sum`` of `n` neighbours on a diagonal, for `n` in `LENGTHS`."""
    total = np.cumsum(diagonals(query, reference), axis=0)
    out = np.empty(len(LENGTHS), np.float32)
    for i, n in enumerate(LENGTHS):
        if n < len(query):
            peak = max(float((total[n:] - total[:-n]).max()), float(total[n - 1].max()))
        else:
            peak = float(total[-1].max())
        out[i] = peak * np.sqrt(BANDS / n)
    return out


def compare_closely(query: QueryPrints, parts: Parts, chunks: Sequence[Frames], clips: NDArray[np.intp]) -> NDArray[np.float32]:
    """All parts for chosen clips of a bank.

    Parameters
    ----------
    chunks
        Unit-row fingerprints of the bank's chunks, in the bank's order.
    clips
        Indices of clips, ``(n,)``.

    Returns
    -------
    ndarray
        ``(n, len(PART_NAMES))`` float32.
    """
    out = np.empty((len(clips), len(PART_NAMES)), np.float32)
    for row, clip in enumerate(clips):
        prints, reference = query.prints[parts.query_chunk[clip]], chunks[parts.reference_chunk[clip]]
        plain = scan(prints[0], reference)
        h = parts.hypothesis[clip]
        warped = scan(prints[h], reference) if h else plain
        out[row] = np.concatenate([[parts.whole[clip]], plain, warped])
    return out
