"""Copies with exact time maps: what every transformation returns and how chains compose.

A transformation takes audio and returns audio with *pieces*: where in its output every
part of its input sounds. `apply` composes the pieces of a chain, so each copy carries
exact spans on both sides however many steps made it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from auscult.metrics.copy_detection import Span

from .signals import Audio


@dataclass(frozen=True)
class Copy:
    """Audio ``(time,)`` and where in it the reference sounds."""

    audio: Audio
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Studio:
    """What a transformation may use: the rate in Hz, a generator, and unrelated sound."""

    rate: int
    rng: np.random.Generator
    beds: tuple[Audio, ...]

    def bed(self, n: int) -> Audio:
        """`n` samples of unrelated sound; a short bed is repeated."""
        audio = self.beds[int(self.rng.integers(len(self.beds)))]
        start = int(self.rng.integers(max(1, len(audio) - n)))
        return np.resize(audio[start:], n).astype(np.float32)

    def between(self, low: float, high: float) -> float:
        """One uniform draw."""
        return float(self.rng.uniform(low, high))

    def sign(self) -> int:
        """-1 or +1."""
        return 1 if self.rng.random() < 0.5 else -1


Result = tuple[Audio, tuple[Span, ...]]
Step = Callable[[Audio, Studio, int], Result]


@dataclass(frozen=True)
class Kind:
    """A named transformation: its group, its name and its step."""

    group: str
    name: str
    step: Step


def whole(audio_in: Audio, audio_out: Audio, rate: int, delay_s: float = 0.0) -> tuple[Span, ...]:
    """The piece of a step that keeps every moment: output time is input time times a constant."""
    scale = len(audio_out) / len(audio_in)
    end = len(audio_in) / rate
    if delay_s:
        last = min(end, end - delay_s)
        return (Span(max(0.0, delay_s), last + delay_s, max(0.0, -delay_s), last),)
    return (Span(0.0, end * scale, 0.0, end),)


def compose(spans: tuple[Span, ...], pieces: tuple[Span, ...]) -> tuple[Span, ...]:
    """Push `spans` (step input against reference) through `pieces` (step output against input)."""
    out = []
    for span in spans:
        slope = (span.reference_end_s - span.reference_start_s) / (span.query_end_s - span.query_start_s)
        for piece in pieces:
            low = max(span.query_start_s, piece.reference_start_s)
            high = min(span.query_end_s, piece.reference_end_s)
            if high - low < 0.02:
                continue
            width = piece.reference_end_s - piece.reference_start_s
            rate = (piece.query_end_s - piece.query_start_s) / width
            q = [piece.query_start_s + (t - piece.reference_start_s) * rate for t in (low, high)]
            r = [span.reference_start_s + (t - span.query_start_s) * slope for t in (low, high)]
            out.append(Span(q[0], q[1], r[0], r[1]))
    return tuple(sorted(out, key=lambda s: s.query_start_s))


def apply(audio: Audio, kinds: list[Kind], studio: Studio, level: int) -> Copy:
    """Apply a chain of transformations at one level (0 light, 1 medium, 2 heavy)."""
    start, end = audible(audio, studio.rate)
    spans = (Span(start, end, start, end),)
    for kind in kinds:
        audio, pieces = kind.step(audio, studio, level)
        spans = compose(spans, pieces)
    return Copy(safe(audio), spans)


def audible(audio: Audio, rate: int) -> tuple[float, float]:
    """First and last moment in seconds above -50 dB of the peak.

    Nobody can tell a copied silence from another one: true spans begin and end with sound.
    """
    level = np.abs(audio)
    loud = np.flatnonzero(level > level.max(initial=0.0) * 10 ** (-50 / 20))
    return (float(loud[0] / rate), float((loud[-1] + 1) / rate)) if len(loud) else (0.0, len(audio) / rate)


def safe(audio: Audio) -> Audio:
    """Scale down what would clip in a 16-bit file."""
    return (audio / max(1.0, float(np.abs(audio).max()))).astype(np.float32)
