"""Transformations of the moment: shifts, and excerpts alone or inside unrelated sound."""

from __future__ import annotations

import numpy as np

from auscult.metrics.copy_detection import Span

from . import signals
from .signals import Audio
from .timeline import Result, Studio, audible

# --- shift: the same sound at another moment -------------------------------------------


def _move(audio: Audio, rate: int, shift: int) -> Result:
    """Delay by `shift` samples (negative: earlier) at constant length."""
    n = len(audio)
    out = np.zeros_like(audio)
    if shift >= 0:
        out[shift:] = audio[: n - shift]
        return out, (Span(shift / rate, n / rate, 0.0, (n - shift) / rate),)
    out[:shift] = audio[-shift:]
    return out, (Span(0.0, (n + shift) / rate, -shift / rate, n / rate),)


def _time_shift(audio: Audio, studio: Studio, level: int) -> Result:
    seconds = studio.between(*((0.01, 0.1), (0.1, 0.5), (0.5, 1.5))[level])
    seconds = min(seconds, 0.4 * len(audio) / studio.rate)
    return _move(audio, studio.rate, studio.sign() * int(seconds * studio.rate))


def _pad(audio: Audio, studio: Studio, level: int) -> Result:
    before = int(studio.between(*((0.1, 0.5), (0.5, 2.0), (2.0, 5.0))[level]) * studio.rate)
    out = np.pad(audio, (before, before // 2))
    start, n = before / studio.rate, len(audio) / studio.rate
    return out, (Span(start, start + n, 0.0, n),)


def _crop_start(audio: Audio, studio: Studio, level: int) -> Result:
    """Lose the beginning, counted from where the sound begins: what is left must sound."""
    first, last = audible(audio, studio.rate)
    start = int((first + (0.1, 0.2, 0.35)[level] * (last - first)) * studio.rate)
    n = (len(audio) - start) / studio.rate
    return audio[start:], (Span(0.0, n, start / studio.rate, start / studio.rate + n),)


def _loop(audio: Audio, studio: Studio, level: int) -> Result:
    """Repeat the clip from a point inside it, as a sequencer would."""
    start = int(studio.between(0.1, 0.6) * len(audio))
    out = np.concatenate([audio[start:], audio, audio])[: int((1.0, 1.5, 2.0)[level] * len(audio))]
    edges = [0, len(audio) - start, 2 * len(audio) - start, 3 * len(audio) - start]
    offsets = [start, 0, 0]
    spans = []
    for low, high, offset in zip(edges[:-1], edges[1:], offsets, strict=True):
        high = min(high, len(out))
        if high > low:
            r = studio.rate
            spans.append(Span(low / r, high / r, offset / r, (offset + high - low) / r))
    return out, tuple(spans)


SHIFT = (("time_shift", _time_shift), ("pad", _pad), ("crop_start", _crop_start), ("loop", _loop))


# --- partial: excerpts, alone or inside unrelated sound --------------------------------


def _active_start(audio: Audio, n: int, studio: Studio) -> int:
    """A start from which `n` samples hold at least a quarter of the average power.

    An excerpt of silence is no copy: a draw that landed there would be an unanswerable query.
    """
    power = np.cumsum(np.concatenate([[0.0], np.square(audio, dtype=np.float64)]))
    starts = np.arange(0, max(1, len(audio) - n), max(1, studio.rate // 100))
    mean = (power[starts + n] - power[starts]) / n
    good = starts[mean >= max(0.25 * power[-1] / len(audio), 1e-12)]
    return int(studio.rng.choice(good)) if len(good) else int(starts[np.argmax(mean)])


def _excerpt(audio: Audio, studio: Studio, level: int) -> Result:
    n = min(len(audio), max(int((0.75, 0.5, 0.25)[level] * len(audio)), int(0.3 * studio.rate)))
    start = _active_start(audio, n, studio)
    r = studio.rate
    return audio[start : start + n], (Span(0.0, n / r, start / r, (start + n) / r),)


def _splice(audio: Audio, studio: Studio, share: float, pieces: int) -> Result:
    """Set 1-3 excerpts, together `share` of the clip, into unrelated sound of the same length, with 5 ms fades."""
    r, total = studio.rate, max(len(audio), int(3.0 * studio.rate))
    out = studio.bed(total)
    out *= np.float32(max(signals.rms(audio), 1e-4) / max(signals.rms(out), 1e-4))
    n = max(int(share * len(audio)) // pieces, int(0.2 * r))  # less than 0.2 s nobody would recognize
    n = min(n, len(audio), total // pieces)
    slots = np.sort(studio.rng.integers(0, total - pieces * n + 1, pieces)) + np.arange(pieces) * n
    fade = np.ones(n, np.float32)
    edge = min(int(0.005 * r), n // 4)
    fade[:edge] = np.linspace(0, 1, edge)
    fade[n - edge :] = fade[:edge][::-1]
    spans = []
    for at in slots.tolist():
        start = _active_start(audio, n, studio)
        out[at : at + n] = out[at : at + n] * (1 - fade) + audio[start : start + n] * fade
        spans.append(Span(at / r, (at + n) / r, start / r, (start + n) / r))
    return out, tuple(spans)


PARTIAL = (
    ("excerpt", _excerpt),
    ("splice_1", lambda a, s, level: _splice(a, s, (0.75, 0.5, 0.3)[level], 1)),
    ("splice_2", lambda a, s, level: _splice(a, s, (0.75, 0.5, 0.3)[level], 2)),
    ("splice_3", lambda a, s, level: _splice(a, s, (0.75, 0.6, 0.5)[level], 3)),
    ("splice_short", lambda a, s, level: _splice(a, s, (0.25, 0.1, 0.05)[level], 1)),
)
