"""Where a query replays a reference: matching spans in seconds on both sides.

Runs on the few pairs that are reported, so it may look longer than the score did: it
refines the tempo, then takes segments off the frame-by-frame similarity one by one, each the
best stretch of any diagonal by maximum sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..descriptors.contrast import BANDS, FRAME_S, Frames, Levels, active, fingerprint, warp
from .correlation import CHUNK, unit_rows
from .parts import HYPOTHESES, LENGTHS, diagonals, scan

REFINEMENTS = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03)  # of the tempo, relative
PREFERENCE = 1.05  # a refined or warped map must beat the plain one by this factor
MIN_LEVEL, MAX_LEVEL = 0.05, 0.2  # of the similarity that a frame must exceed to pay its way
MAX_SEGMENTS = 8
SHARE = 0.1  # of the best segment's gain that a further segment must reach
BAND = 31  # lags, one second, around the strongest segment that are followed through long clips
BRIDGE_FRAMES = 31  # gaps up to one second on one diagonal are the same span
BRIDGE_LAG = 3  # frames of drift that still are the same diagonal


@dataclass(frozen=True)
class MatchSpan:
    """One matching stretch. `evidence` is its summed similarity, in units of `z`."""

    query_start_s: float
    query_end_s: float
    reference_start_s: float
    reference_end_s: float
    evidence: float


@dataclass(frozen=True)
class Alignment:
    """The map of a pair.

    Attributes
    ----------
    spans
        By query time; empty if nothing exceeds chance.
    lag_s
        Query time minus reference time at the start of the strongest span.
    tempo
        Reference seconds per query second: 1.1 means that the query plays 10 % faster than the reference.
    pitch
        Semitones by which the query lies above the reference.
    """

    spans: tuple[MatchSpan, ...]
    lag_s: float
    tempo: float
    pitch: float


@dataclass(frozen=True)
class _Segment:
    start: int  # query frame (on the warped clock), inclusive
    end: int  # exclusive
    lag: int  # reference frame minus query frame
    gain: float


def locate(
    query: Levels, reference: Levels, *, hypothesis: int = 0, query_start: int = 0, reference_start: int = 0
) -> Alignment:
    """Find the spans of one pair near the place where the score was reached.

    Parameters
    ----------
    query, reference
        Levels of the whole clips.
    hypothesis
        Index into `parts.HYPOTHESES` that `compare_whole` preferred.
    query_start, reference_start
        First frames of the chunks in which it was reached (0 for clips up to 10 s).
    """
    q = query[query_start : query_start + CHUNK]
    target = unit_rows(fingerprint(reference[reference_start : reference_start + CHUNK]))
    tempo, pitch, prints = _refine(q, target, hypothesis)
    slope = len(prints) / max(len(q), 1)  # warped frames per query frame, 1 / tempo
    segments = _segments(diagonals(prints, target), len(prints), 1 - len(prints))
    ahead = round(query_start * slope)
    segments = [_Segment(s.start + ahead, s.end + ahead, s.lag + reference_start - ahead, s.gain) for s in segments]
    if segments and max(len(query), len(reference)) > CHUNK:
        segments = _follow(segments, query, reference, tempo, pitch)
    spans = [_to_seconds(s, slope) for s in _bridge(segments, ~active(query), slope)]
    if not spans:
        return Alignment((), float("nan"), tempo, pitch)
    best = max(spans, key=lambda s: s.evidence)
    ordered = tuple(sorted(spans, key=lambda s: s.query_start_s))
    return Alignment(ordered, best.query_start_s - best.reference_start_s, 1 / tempo, pitch)


def _follow(segments: list[_Segment], query: Levels, reference: Levels, tempo: float, pitch: float) -> list[_Segment]:
    """Follow the strongest segment beyond its chunk, through all of two long clips.

    Only lags within `BAND` of its own are looked at; segments at other lags stay as they are.
    """
    lag = segments[0].lag
    prints = unit_rows(fingerprint(warp(query, tempo=tempo, pitch=pitch)))
    target = unit_rows(fingerprint(reference))
    similarity = np.zeros((len(prints), 2 * BAND + 1), np.float32)
    for column in range(2 * BAND + 1):
        shift = lag - BAND + column
        first, last = max(0, -shift), min(len(prints), len(target) - shift)
        if last > first:
            products = np.einsum("tb,tb->t", prints[first:last], target[first + shift : last + shift])
            similarity[len(prints) - last : len(prints) - first, column] = products[::-1]
    near = _segments(similarity, len(prints), lag - BAND)
    far = [s for s in segments if abs(s.lag - lag) > BAND]
    free = [s for s in far if all(s.end <= n.start or s.start >= n.end for n in near)]
    return near + free


def _refine(query: Levels, target: Frames, hypothesis: int) -> tuple[float, float, Frames]:
    """The tempo, pitch and fingerprint under which a stretch of the pair agrees best."""
    base, pitch = HYPOTHESES[hypothesis]
    trials = [(1.0, 0.0)] + [(base * (1 + d), pitch) for d in REFINEMENTS if (base, pitch, d) != (1.0, 0.0, 0.0)]
    best, chosen = -np.inf, None
    for i, (t, p) in enumerate(trials):
        prints = unit_rows(fingerprint(warp(query, tempo=t, pitch=p)))
        value = float(scan(prints, target).max()) * (PREFERENCE if i == 0 else 1.0)
        if value > best:
            best, chosen = value, (t, p, prints)
    assert chosen is not None  # the loop always runs
    return chosen


def _segments(similarity: NDArray[np.float32], n: int, first_lag: int) -> list[_Segment]:
    """Best stretches of the diagonals, strongest first, no query frame used twice.

    `similarity` has the layout of `parts.diagonals`, `n` query frames, and `first_lag` in column 0.
    """
    if similarity.size == 0:
        return []
    level = _level(similarity)
    # of the sum of a run of chance similarities less the level, after as many trials
    chance = 1.3 * np.log(similarity.size) / (2 * level * BANDS)
    gain = similarity - np.float32(level)
    found: list[_Segment] = []
    for _ in range(MAX_SEGMENTS):
        segment = _best_run(gain, n, first_lag)
        if segment.gain < max(chance, SHARE * (found[0].gain if found else 0.0)):
            break
        found.append(segment)
        gain[n - segment.end : n - segment.start] = -1.0
    return found


def _level(similarity: NDArray[np.float32]) -> float:
    """Half the mean similarity of the most significant stretch, within bounds."""
    total = np.cumsum(similarity, axis=0)
    best, mean = -np.inf, 0.0
    for n in LENGTHS:
        if n < len(similarity):
            peak = float((total[n:] - total[:-n]).max())
        else:
            n, peak = len(similarity), float(total[-1].max())
        if peak / np.sqrt(n) > best:
            best, mean = peak / np.sqrt(n), peak / n
    return float(np.clip(mean / 2, MIN_LEVEL, MAX_LEVEL))


def _best_run(gain: NDArray[np.float32], n: int, first_lag: int) -> _Segment:
    """Maximum-sum stretch of consecutive rows in any column (Kadane's algorithm, vectorized)."""
    total = np.cumsum(gain, axis=0)
    before = np.minimum.accumulate(np.vstack([np.zeros_like(total[:1]), total[:-1]]), axis=0)
    score = total - before
    last, column = np.unravel_index(int(np.argmax(score)), score.shape)
    path = np.concatenate([[0.0], total[: last + 1, column]])
    first = int(np.argmin(path[: last + 1]))
    # rows run backwards through the query
    return _Segment(n - 1 - int(last), n - first, int(column) + first_lag, float(score[last, column]))


def _bridge(segments: list[_Segment], silent: NDArray[np.bool_], slope: float) -> list[_Segment]:
    """Join neighbours on one diagonal over short or silent gaps."""
    out: list[_Segment] = []
    for segment in sorted(segments, key=lambda s: s.start):
        last = out[-1] if out else None
        if last and abs(last.lag - segment.lag) <= BRIDGE_LAG:
            gap = silent[int(last.end / slope) : int(segment.start / slope)]
            if segment.start - last.end <= BRIDGE_FRAMES or gap.all():
                lag = last.lag if last.gain >= segment.gain else segment.lag
                out[-1] = _Segment(last.start, segment.end, lag, last.gain + segment.gain)
                continue
        out.append(segment)
    return out


def _to_seconds(segment: _Segment, slope: float) -> MatchSpan:
    """Frames are centered on their time, so a run reaches half a frame beyond its centers."""
    q = [(t - 0.5) / slope * FRAME_S for t in (segment.start, segment.end)]
    r = [(t + segment.lag - 0.5) * FRAME_S for t in (segment.start, segment.end)]
    before = max(0.0, -q[0], -r[0])  # of the start of either clip; cut off both, so that the lag stays what it is
    return MatchSpan(q[0] + before, q[1], r[0] + before, r[1], segment.gain * float(np.sqrt(BANDS)))
