"""A trace in a few numbers: of each sample over its steps, and of all samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trace import TraceRow


@dataclass(frozen=True)
class SampleSummary:
    """One sample over all its steps.

    Attributes
    ----------
    call, sample
        Which.
    steps, fired_steps
        Steps taken, and those at which the gate was open.
    first_similarity, last_similarity, highest_similarity
        At the first and the last step that was looked at, and the highest; None where none was.
    neighbor, neighbor_caption
        The reference of the highest similarity.
    text_norm
        Mean over steps: high for prompts that are memorized (Wen et al. 2024).
    """

    call: int
    sample: int
    steps: int
    fired_steps: int
    first_similarity: float | None
    last_similarity: float | None
    highest_similarity: float | None
    neighbor: str | None
    neighbor_caption: str | None
    text_norm: float | None


@dataclass(frozen=True)
class TraceSummary:
    """A trace in a few numbers. Means are over samples, and None where nothing was looked at.

    Attributes
    ----------
    calls, samples
        Calls of the pipeline, and samples of all of them.
    steps
        Steps of the sampler in all calls.
    looked_at
        Share of rows whose similarity was measured.
    fired_samples, fired_share
        Samples whose gate opened at least once, and their share of all.
    fired_steps
        Mean number of steps at which the gate of a sample was open.
    first_similarity, last_similarity
        Means at the first and at the last step that was looked at.
    highest_similarity
        Of any sample at any step.
    highest_last_similarity
        Of any sample at its last step: what came out nearest to a reference.
    text_norm
        Mean over samples.
    reasons
        ``(reason, rows)``, the most frequent first.
    """

    calls: int
    samples: int
    steps: int
    looked_at: float
    fired_samples: int
    fired_share: float
    fired_steps: float
    first_similarity: float | None
    last_similarity: float | None
    highest_similarity: float | None
    highest_last_similarity: float | None
    text_norm: float | None
    reasons: tuple[tuple[str, int], ...]


def sample_summaries(rows: Iterable[TraceRow]) -> list[SampleSummary]:
    """One summary for each sample of each call, in their order."""
    grouped: dict[tuple[int, int], list[TraceRow]] = {}
    for row in rows:
        grouped.setdefault((row.call, row.sample), []).append(row)
    return [_sample(sorted(grouped[key], key=lambda row: row.step)) for key in sorted(grouped)]


def trace_summary(rows: Sequence[TraceRow]) -> TraceSummary:
    """How often the gate opened, and similarity at the start, at the end and at its highest."""
    samples = sample_summaries(rows)
    fired = sum(one.fired_steps > 0 for one in samples)
    return TraceSummary(
        calls=len({row.call for row in rows}),
        samples=len(samples),
        steps=len({(row.call, row.step) for row in rows}),
        looked_at=sum(map(_looked_at, rows)) / max(len(rows), 1),
        fired_samples=fired,
        fired_share=fired / max(len(samples), 1),
        fired_steps=sum(one.fired_steps for one in samples) / max(len(samples), 1),
        first_similarity=_mean(one.first_similarity for one in samples),
        last_similarity=_mean(one.last_similarity for one in samples),
        highest_similarity=_highest(one.highest_similarity for one in samples),
        highest_last_similarity=_highest(one.last_similarity for one in samples),
        text_norm=_mean(one.text_norm for one in samples),
        reasons=tuple(Counter(row.reason for row in rows if row.reason).most_common()),
    )


def _sample(rows: Sequence[TraceRow]) -> SampleSummary:
    """Rows of one sample, in the order of their steps."""
    seen = [row for row in rows if _looked_at(row)]
    nearest = max(seen, key=_similarity, default=None)  # the first of equals
    return SampleSummary(
        call=rows[0].call,
        sample=rows[0].sample,
        steps=len(rows),
        fired_steps=sum(row.fired for row in rows),
        first_similarity=seen[0].similarity if seen else None,
        last_similarity=seen[-1].similarity if seen else None,
        highest_similarity=nearest.similarity if nearest else None,
        neighbor=nearest.neighbor if nearest else None,
        neighbor_caption=nearest.neighbor_caption if nearest else None,
        text_norm=_mean([row.text_norm for row in rows]),
    )


def _looked_at(row: TraceRow) -> bool:
    return row.similarity is not None and not math.isnan(row.similarity)


def _similarity(row: TraceRow) -> float:
    return -math.inf if row.similarity is None else row.similarity


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
