"""What is left of a query when the reference it may have been copied from is taken away: silence, if it is a copy.

The reference is aligned by the strongest matching span, moved to the fraction of a sample where it fits best, scaled by
least squares and subtracted. A detector's spans are frames of 32 ms, so the place is searched 30 ms around them; a copy that
was played faster or slower by resampling is resampled back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
import soxr

from ..figures import FloatArray
from .streaming import ClipAudio, read_mono

DoubleArray = npt.NDArray[np.float64]

SEARCH_S = 0.03  # around the place that the spans tell
LONGEST_S = 60.0  # of a span; a minute tells a copy, and two hours would take long
SHORTEST_S = 0.02
SAME_SPEED = 0.002  # relative: less than the spans can tell
SPEED_ERROR = 0.015  # relative: half a step of the detector's tempos, and a bit
PIECE_S, PIECES = 0.2, 24  # whose lags tell the exact speed
NO_COPY_DB = -3.0  # a residual above it makes us look for a speed that the detector took for no change
MEANINGFUL_DB = -1.0  # with the speed changed, a residual above this says that resampling does not explain the change
FLOOR_DB = -120.0
SUBSAMPLE = 64  # steps per sample


@dataclass(frozen=True, eq=False)
class Difference:
    """Query minus aligned reference.

    Attributes
    ----------
    samples
        ``(time,)`` float32 mono at ``sample_rate_hz`` over the span; None if a difference means nothing.
    sample_rate_hz
        The lower of both files' rates, and at most 48 kHz: what the other holds above it is not compared.
    residual_db
        Energy of the difference relative to the query's, over the span: about -30 for a verbatim copy after lossy coding,
        `FLOOR_DB` at the least, about 0 for unrelated sound; NaN without samples.
    gain
        Factor of the reference, negative if its polarity is reversed.
    lag_s
        Query time minus reference time at the start of the span, to a sample.
    speed
        Reference seconds per query second.
    query_start_s, query_end_s
        The span in the query.
    reason
        Why there is no difference; None if there is one.
    """

    samples: FloatArray | None
    sample_rate_hz: int
    residual_db: float
    gain: float = 0.0
    lag_s: float = 0.0
    speed: float = 1.0
    query_start_s: float = 0.0
    query_end_s: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Place:
    """Where both sides of a pair begin to match, for how long, and at which speeds the reference may have been played.

    The middle of the reference's stretch meets that of the query's at any speed: a span that was found at a wrong speed is
    right there, and off at both ends.
    """

    query_start_s: float
    reference_start_s: float
    reference_middle_s: float
    length_s: float
    speeds: tuple[float, ...]


def strongest_place(row: Mapping[str, Any]) -> Place | None:
    """The strongest span of a row of ``matches.parquet``, or of two windows the shorter length; None if it tells neither."""
    spans: Sequence[Mapping[str, float]] = row.get("spans") or ()
    tempo, pitch = float(row.get("tempo") or 1.0), float(row.get("pitch_semitones") or 0.0)
    best: Mapping[str, Any] = max(spans, key=lambda span: span["evidence"]) if spans else row
    names = "query_start_s", "query_end_s", "reference_start_s", "reference_end_s"
    times = [best.get(name) for name in names]
    if any(time is None or not np.isfinite(time) for time in times):
        return None
    query_start, query_end, reference_start, reference_end = map(float, (time for time in times if time is not None))
    length = query_end - query_start
    if spans:
        slope = (reference_end - reference_start) / length if length > 0 else 1.0
    else:
        length, slope = min(length, reference_end - reference_start), 1.0
    length = min(length, LONGEST_S)
    middle = reference_start + slope * length / 2
    # played faster by resampling, a sound lies higher; the detector tells the one, the other or both
    speeds = [1.0, tempo, 2 ** (pitch / 12)]
    speeds = [speed for number, speed in enumerate(speeds) if all(abs(speed - s) > SAME_SPEED for s in speeds[:number])]
    return Place(query_start, reference_start, middle, length, tuple(speeds))


def subtract(query: ClipAudio, reference: ClipAudio, place: Place) -> Difference:
    """The difference of two clips, of the speeds that a place allows the one that leaves least.

    Raises
    ------
    AudioDecodeError
        One of the files is gone, has changed or is damaged.
    """
    rate = min(query.sample_rate_hz, reference.sample_rate_hz)
    q_start = round(max(place.query_start_s, 0.0) * rate) / rate  # on a sample, so that the lag is exact
    q_end = min(q_start + place.length_s, query.duration_s)
    if q_end - q_start < SHORTEST_S or place.reference_start_s >= reference.duration_s:
        return Difference(None, rate, float("nan"), reason=f"the matching stretch is shorter than {SHORTEST_S * 1000:.0f} ms")
    wanted = read_mono(query, q_start, q_end, rate)
    if not wanted.any():
        return Difference(None, rate, float("nan"), reason="the query is silent here")
    changed = place.speeds != (1.0,)
    margin = SEARCH_S * 3 + place.length_s * SPEED_ERROR
    best: Difference | None = None
    half_s = len(wanted) / rate / 2
    for speed in place.speeds:
        middle = place.reference_middle_s + (q_start + half_s - place.query_start_s - place.length_s / 2) * speed
        from_s = round((middle - (half_s + margin) * speed) * rate) / rate
        other = read_mono(reference, from_s, middle + (half_s + margin) * speed, rate)
        if not other.any():
            return Difference(None, rate, float("nan"), reason="the reference is silent here")
        for refined in (False, True):
            if refined and not changed and best is not None and best.residual_db < NO_COPY_DB:
                break  # the usual case: a copy at its own speed
            exact, at_s = (speed, middle - from_s)
            if refined:
                exact, at_s = _exact_speed(wanted, other, rate, at_s, speed)
            found = _subtracted(wanted, other, rate, at_s, exact)
            if best is None or found.residual_db < best.residual_db:
                best = replace(found, lag_s=q_start - (from_s + found.lag_s), query_start_s=q_start, query_end_s=q_end)
    assert best is not None  # a place has a speed
    if changed and best.residual_db > MEANINGFUL_DB:
        reason = "tempo or pitch were changed, and not together as by resampling: a difference means nothing"
        return Difference(None, rate, float("nan"), reason=reason)
    return best


def _subtracted(wanted: FloatArray, other: FloatArray, rate: int, middle_s: float, exact: float) -> Difference:
    """The difference at one exact speed, the middle near ``middle_s`` of the other; its ``lag_s`` is where it begins there."""
    ready = other if exact == 1.0 else soxr.resample(other, rate * exact, rate, quality="VHQ")
    search = SEARCH_S if exact == 1.0 else 2 * SEARCH_S
    place, fitted = _fitted(wanted, ready, middle_s / exact * rate - len(wanted) / 2, search * rate)
    gain = float(fitted @ wanted) / max(float(fitted @ fitted), 1e-20)
    rest = wanted - np.float32(gain) * fitted
    share = float(rest.astype(np.float64) @ rest) / float(wanted.astype(np.float64) @ wanted)
    residual = float(10 * np.log10(max(share, 10 ** (FLOOR_DB / 10))))
    return Difference(rest, rate, residual, gain, place / rate * exact, exact)


def _correlation(query: FloatArray, other: FloatArray) -> DoubleArray:
    """Inner products of the query with the other at every start at which it lies within, ``(len(other) - len(query) + 1,)``."""
    size = scipy.fft.next_fast_len(len(other), real=True)
    spectrum = scipy.fft.rfft(query.astype(np.float64), size).conj() * scipy.fft.rfft(other.astype(np.float64), size)
    return scipy.fft.irfft(spectrum, size)[: len(other) - len(query) + 1]


def _fitted(query: FloatArray, other: FloatArray, origin: float, search: float) -> tuple[float, FloatArray]:
    """Where in the other the query lies best, in samples and their fractions, and the other from there on.

    The place is the largest absolute correlation, relative to the other's energy there: a loud neighbor does not win.
    """
    n = len(query)
    pad = int(search) + 4
    first = int(np.floor(origin)) - pad
    stretch = _cut(other, first, n + 2 * pad)
    products = _correlation(query, stretch)
    energy = np.concatenate([[0.0], np.cumsum(stretch.astype(np.float64) ** 2)])
    energy = energy[n:] - energy[:-n]
    score = products**2 / np.maximum(energy, 1e-6 * energy.max(initial=1e-20))
    score[:2] = score[-2:] = -1.0  # neighbors are needed
    best = int(np.argmax(score))
    shifts = np.arange(-SUBSAMPLE, SUBSAMPLE + 1) / SUBSAMPLE
    near = np.arange(best - 16, best + 17)
    known = np.where((near >= 0) & (near < len(products)), products[np.clip(near, 0, len(products) - 1)], 0.0)
    fine = np.abs(np.sinc(best + shifts[:, None] - near) @ known)
    fraction = float(shifts[int(np.argmax(fine))])
    whole = _cut(stretch, best, n)
    if fraction == 0.0:
        return first + best, whole
    moved = _moved(_cut(other, first + best - 256, n + 512), fraction)[256 : 256 + n]
    return first + best + fraction, moved


def _moved(samples: FloatArray, fraction: float) -> FloatArray:
    """Samples between the samples, ``fraction`` later, by a phase ramp; the ends wrap and are to be cut."""
    size = scipy.fft.next_fast_len(len(samples), real=True)
    spectrum = scipy.fft.rfft(samples, size)
    ramp = np.exp(2j * np.pi * np.arange(len(spectrum)) / size * fraction)
    return scipy.fft.irfft(spectrum * ramp.astype(np.complex64), size)[: len(samples)].astype(np.float32)


def _cut(samples: FloatArray, first: int, count: int) -> FloatArray:
    """``count`` samples from ``first`` on, zeros where there are none."""
    begin, end = min(max(first, 0), len(samples)), min(max(first + count, 0), len(samples))
    piece = samples[begin:end]
    before = min(max(0, -first), count)
    return np.pad(piece, (before, count - before - len(piece)))


def _exact_speed(query: FloatArray, other: FloatArray, rate: int, middle_s: float, speed: float) -> tuple[float, float]:
    """The speed within `SPEED_ERROR` of a rough one, from how the lags of short pieces drift, and the middle in the other.

    Short pieces agree in spite of a wrong speed; the line through their lags, weighted by how well they agree, gives a
    better speed, with which they agree better.
    """
    exact, error = speed, SPEED_ERROR
    size = min(int(PIECE_S * rate), len(query))
    starts = np.linspace(0, len(query) - size, min(PIECES, max(2, len(query) // size * 2))).astype(int)
    places = starts + size / 2 - len(query) / 2  # of the pieces' middles, from the middle
    for _ in range(4):
        ready = soxr.resample(other, rate * exact, rate, quality="HQ")
        lags, weights = [], []
        for start, place in zip(starts, places, strict=True):
            expected = middle_s / exact * rate + place - size / 2
            reach = SEARCH_S * rate + error * abs(place)
            first = int(expected - reach)
            stretch = _cut(ready, first, size + int(2 * reach) + 1)
            piece = query[start : start + size]
            products = _correlation(piece, stretch)
            energy = np.concatenate([[0.0], np.cumsum(stretch.astype(np.float64) ** 2)])
            score = np.abs(products) / np.sqrt(np.maximum(energy[size:] - energy[:-size], 1e-12))
            best, own = int(np.argmax(score)), float(np.linalg.norm(piece))
            lags.append(first + best + _vertex(np.abs(products), best) - expected)
            weights.append((float(score[best]) / own) ** 4 * own if own > 0 else 0.0)
        slope, at_middle = _line(places, np.array(lags, float), np.array(weights))
        middle_s += at_middle / rate * exact
        exact *= 1 + float(np.clip(slope, -error, error))
        error = max(error / 3, 2e-4)
    return exact, middle_s


def _vertex(values: DoubleArray, peak: int) -> float:
    """How far from a peak's sample the parabola through it and its neighbors is highest, within half a sample."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    left, middle, right = values[peak - 1 : peak + 2]
    bend = left - 2 * middle + right
    return float(np.clip((left - right) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


def _line(x: DoubleArray, y: DoubleArray, weights: DoubleArray) -> tuple[float, float]:
    """Slope and intercept of the weighted line that is least far from most points (reweighted least absolute deviations)."""
    w = weights + 1e-12
    slope, at_zero = 0.0, float(np.average(y, weights=w))
    for _ in range(20):
        mean_x, mean_y = np.average(x, weights=w), np.average(y, weights=w)
        slope = float(np.sum(w * (x - mean_x) * (y - mean_y)) / max(float(np.sum(w * (x - mean_x) ** 2)), 1e-12))
        at_zero = float(mean_y - slope * mean_x)
        w = (weights + 1e-12) / np.maximum(np.abs(y - at_zero - slope * x), 1.0)
    return slope, at_zero
