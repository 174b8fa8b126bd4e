"""How well a copy is located: temporal IoU, errors of onset and lag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .predictions import Span

SAME_MOMENT_S = 0.05  # true spans whose distances from a moment differ by less are equally near


def union(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Intervals merged into disjoint sorted ones.

    >>> union([(2, 3), (0, 1), (0.5, 1.5)])
    [(0, 1.5), (2, 3)]
    """
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def temporal_iou(predicted: Sequence[Span], true: Sequence[Span]) -> float:
    """Seconds of the query in both sets of spans over seconds in either: intersection over union, in [0, 1].

    Examples
    --------
    >>> round(temporal_iou([Span(0, 2, 5, 7)], [Span(1, 3, 6, 8)]), 4)
    0.3333
    """
    first, second = (union([(s.query_start_s, s.query_end_s) for s in spans]) for spans in (predicted, true))
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second)
    either = sum(end - start for start, end in [*first, *second]) - both
    return float(both / either) if either > 0 else 0.0


def onset_error(predicted: Sequence[Span], true: Sequence[Span]) -> float:
    """Seconds between where the copied sound is said to begin in the query and where it begins.

    >>> onset_error([Span(1.25, 2, 0, 0.75)], [Span(1, 2, 0, 1)])
    0.25
    """
    begin = [min(span.query_start_s for span in spans) for spans in (predicted, true)]
    return abs(begin[0] - begin[1])


def lag_error(predicted: Sequence[Span], true: Sequence[Span]) -> float:
    """Seconds between the moment of the reference that a claim plays to a moment of the query, and the true one.

    The middle of the query side of each predicted span is mapped to the reference by the claim and by the truth; the
    median distance over spans is returned. A middle outside every true span is mapped by the nearest one; where several
    are equally near (a loop plays a moment twice), by the one that fits best.

    Examples
    --------
    >>> lag_error([Span(1, 2, 0, 1)], [Span(1, 3, 0.25, 2.25)])
    0.25
    """
    errors = []
    for span in predicted:
        middle = 0.5 * (span.query_start_s + span.query_end_s)
        claimed = 0.5 * (span.reference_start_s + span.reference_end_s)
        errors.append(min(abs(claimed - moment) for moment in _true_moments(middle, true)))
    return float(np.median(errors))


def _true_moments(time_s: float, true: Sequence[Span]) -> list[float]:
    """Moments of the reference that the truth gives to a moment of the query."""
    distance = [max(span.query_start_s - time_s, time_s - span.query_end_s, 0.0) for span in true]
    moments = []
    for span, gap in zip(true, distance, strict=True):
        if gap <= min(distance) + SAME_MOMENT_S:
            slope = (span.reference_end_s - span.reference_start_s) / (span.query_end_s - span.query_start_s)
            moments.append(span.reference_start_s + (time_s - span.query_start_s) * slope)
    return moments
