"""What the benchmark consists of: sounds by role, queries with their truth, and how many of each."""

from __future__ import annotations

from dataclasses import dataclass

from auscult.metrics.copy_detection import Truth

from .signals import Audio

RATE = 24_000  # Hz: covers the band that detectors use, and Opus accepts it


@dataclass(frozen=True)
class Sound:
    """A clip of known source. `steady` sounds are by definition never copies."""

    clip_id: str
    source: str
    audio: Audio
    steady: str = ""  # which kind of steady sound, if it is one


@dataclass(frozen=True)
class Query:
    """A query, the strength of its transformation (fixed, light, medium, heavy), and what it copies."""

    truth: Truth
    strength: str
    audio: Audio


@dataclass(frozen=True)
class Benchmark:
    """All sets, and the rate of their audio in Hz.

    Attributes
    ----------
    references
        What is indexed: the clips that are copied, steady sound, and `distractors` clips that no query stems from.
    queries
        Positives and negatives: one ranking, one threshold.
    apart
        Reversed copies. A listener would not call them the same sound, an owner might: they are neither positives nor
        negatives, are asked like every query and reported outside the overall numbers.
    background, null
        Unrelated sound for the normalization, and for p-values.
    """

    rate: int
    references: tuple[Sound, ...]
    queries: tuple[Query, ...]
    apart: tuple[Query, ...]
    background: tuple[Sound, ...]
    null: tuple[Sound, ...]
    distractors: int

    @property
    def truths(self) -> list[Truth]:
        """Of the queries, in their order."""
        return [query.truth for query in self.queries]

    @property
    def asked(self) -> tuple[Query, ...]:
        """What a system is asked: all queries, those that are reported apart included."""
        return self.queries + self.apart


@dataclass(frozen=True)
class Sizes:
    """Shares of the sounds by role (the rest are stock for distractors), and how many clips to make."""

    references: float = 0.40
    oneshots: float = 0.08
    negatives: float = 0.18
    null: float = 0.07
    background: float = 0.13
    beds: float = 0.06
    positives_per_kind: int = 11
    chains: int = 60
    negatives_per_positive: float = 4.0
    null_queries: int = 200
    distractors: int = 2_000
