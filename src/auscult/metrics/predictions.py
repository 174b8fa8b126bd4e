"""What is predicted and what is true: which query copies which reference, and which seconds of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """One stretch of a query and the stretch of its reference that it replays, in seconds."""

    query_start_s: float
    query_end_s: float
    reference_start_s: float
    reference_end_s: float

    @property
    def lag_s(self) -> float:
        """Query start minus reference start."""
        return self.query_start_s - self.reference_start_s


@dataclass(frozen=True)
class Truth:
    """What is known about a query.

    Attributes
    ----------
    query_id
        Unique.
    reference_id
        What it copies; None for a negative, which copies nothing.
    source
        The recording or uploader it stems from: the unit of the bootstrap.
    group, kind
        How the copy was made, coarsely and finely; for tables.
    spans
        Where it copies; empty if that is not known.
    """

    query_id: str
    reference_id: str | None
    source: str
    group: str = ""
    kind: str = ""
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A claim that ``query_id`` copies ``reference_id``; a larger ``score`` is a surer claim. Spans are optional."""

    query_id: str
    reference_id: str
    score: float
    spans: tuple[Span, ...] = ()


def validate(truths: Sequence[Truth], predictions: Sequence[Prediction]) -> None:
    """Check that predictions can be judged by these truths.

    Raises
    ------
    ValueError
        No query; a query or a pair that occurs twice; a prediction for an unknown query; a score that is not finite; a
        span that does not move forward; a negative with spans.

    Examples
    --------
    >>> validate([Truth("q", "r", "s")], [Prediction("Q", "r", 1.0)])
    Traceback (most recent call last):
    ...
    ValueError: 1 of 1 predictions are about queries that the truth does not hold, such as 'Q'; did you pass the
    predictions of another set, or the reference's name as query_id?
    """
    if not truths:
        raise ValueError("expected at least one query in the truth, got none")
    known = {truth.query_id for truth in truths}
    if len(known) < len(truths):
        twice = _first_repeated([truth.query_id for truth in truths])
        raise ValueError(f"expected each query once in the truth, got {twice!r} more than once; its spans go into one Truth")
    strangers = [p.query_id for p in predictions if p.query_id not in known]
    if strangers:
        raise ValueError(
            f"{len(strangers)} of {len(predictions)} predictions are about queries that the truth does not hold, such as "
            f"{strangers[0]!r}; did you pass the predictions of another set, or the reference's name as query_id?"
        )
    pairs = [(p.query_id, p.reference_id) for p in predictions]
    if len(set(pairs)) < len(pairs):
        raise ValueError(
            f"expected each pair of query and reference once, got {_first_repeated(pairs)!r} more than once; keep its best "
            "score, and put the spans of a pair into one prediction"
        )
    for prediction in predictions:
        if not np.isfinite(prediction.score):
            raise ValueError(
                f"score of {prediction.query_id!r} with {prediction.reference_id!r} should be finite, got "
                f"{prediction.score}; leave a pair out that has no score"
            )
        _check_spans(prediction.spans, prediction.query_id)
    for truth in truths:
        if truth.reference_id is None and truth.spans:
            raise ValueError(f"{truth.query_id!r} copies nothing (no reference_id), yet has spans")
        _check_spans(truth.spans, truth.query_id)


def _first_repeated(items: Sequence[Hashable]) -> Hashable:
    return Counter(items).most_common(1)[0][0]


def _check_spans(spans: Sequence[Span], query_id: str) -> None:
    for span in spans:
        for side, start, end in (
            ("query", span.query_start_s, span.query_end_s),
            ("reference", span.reference_start_s, span.reference_end_s),
        ):
            if not (np.isfinite(start) and np.isfinite(end) and start < end):
                raise ValueError(
                    f"{query_id!r}: a {side} span should start before it ends, in seconds, got {start} to {end}; "
                    "are the columns swapped, or is the second one a duration?"
                )
