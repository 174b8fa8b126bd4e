"""How well predictions name and locate copies: micro-AP, recall at a precision, false alarms, spans.

Predictions of all queries, those that copy nothing included, form one ranking by score: what is measured is what one
threshold for everything can do. Intervals resample sources, because clips of one recording succeed and fail together.
Where predictions come from does not matter; ``auscult.metrics.tables`` reads anyone's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .intervals import RESAMPLES, Interval, percentile_interval
from .localization import lag_error, onset_error, temporal_iou
from .predictions import Prediction, Span, Truth, validate

__all__ = [
    "Interval",
    "OperatingPoint",
    "Prediction",
    "Span",
    "Truth",
    "breakdown",
    "evaluate",
    "lag_error",
    "micro_average_precision",
    "onset_error",
    "rank",
    "recall_at_false_positive_rate",
    "recall_at_precision",
    "temporal_iou",
    "validate",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

PRECISION = 0.9  # of the operating point
FALSE_POSITIVE_RATE = 0.01  # of the other operating point


@dataclass(frozen=True)
class OperatingPoint:
    """Accept what scores at least ``threshold``: this ``recall``, at this ``precision``.

    Where no threshold reaches the precision asked for, nothing is accepted: recall 0, precision NaN, threshold infinity.
    """

    recall: float
    precision: float
    threshold: float


def rank(scores: FloatArray, correct: BoolArray) -> IntArray:
    """Order by falling score; among equal scores the wrong ones come first.

    Any other order of ties could be chosen to please: a system that scores everything alike, right answers first in the
    file, would look perfect. The worst order is the only one that no file can improve on.

    Examples
    --------
    >>> rank(np.array([1.0, 2.0, 2.0]), np.array([True, True, False]))
    array([2, 1, 0])
    """
    return np.lexsort((correct, -scores)).astype(np.int64)


def micro_average_precision(scores: FloatArray, correct: BoolArray, positives: int) -> float:
    """Average precision of one ranking over all queries.

    ``uAP = (1 / P) sum_i correct_i * (correct_1 + ... + correct_i) / i``, i the place in the ranking.

    Parameters
    ----------
    scores, correct
        (n,): one entry per prediction, of all queries together; ties count against the system, see :func:`rank`.
    positives
        P, the copies there are to find, found or not.

    Returns
    -------
    float
        In [0, 1]; NaN if there is nothing to find.

    Examples
    --------
    >>> round(micro_average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), 2), 4)
    0.8333
    >>> round(micro_average_precision(np.array([1.0, 1.0]), np.array([True, False]), 1), 4)
    0.5

    References
    ----------
    Douze et al., "The 2021 Image Similarity Dataset and Challenge", arXiv 2106.09672, section 4.
    """
    if scores.shape != correct.shape or scores.ndim != 1:
        raise ValueError(f"expected scores and correct of one shape (n,), got {scores.shape} and {correct.shape}")
    if np.count_nonzero(correct) > positives:
        raise ValueError(f"{np.count_nonzero(correct)} predictions are correct, yet only {positives} copies exist")
    if positives == 0:
        return float("nan")
    hits = correct[rank(scores, correct)]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.sum(precision * hits) / positives)


def recall_at_precision(
    scores: FloatArray, correct: BoolArray, positives: int, *, precision: float = PRECISION
) -> OperatingPoint:
    """The threshold of largest recall whose precision is at least ``precision``.

    Only thresholds that accept equal scores together count. Among thresholds of equal recall the highest one is taken.

    Examples
    --------
    >>> recall_at_precision(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, True, False, True]), 4, precision=0.7)
    OperatingPoint(recall=0.75, precision=0.75, threshold=1.0)
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision should lie in (0, 1], got {precision}")
    order = rank(scores, correct)
    ranked, hits = scores[order], np.cumsum(correct[order])
    together = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    reached = np.flatnonzero(together & (hits >= precision * np.arange(1, len(ranked) + 1)))
    if positives == 0 or len(reached) == 0:
        return OperatingPoint(0.0, float("nan"), float("inf"))
    best = int(reached[np.argmax(hits[reached])])
    return OperatingPoint(float(hits[best] / positives), float(hits[best] / (best + 1)), float(ranked[best]))


def recall_at_false_positive_rate(true: FloatArray, negative: FloatArray, *, rate: float = FALSE_POSITIVE_RATE) -> float:
    """Largest recall of a threshold that at most a share ``rate`` of the negatives reach.

    Unlike precision it does not depend on how many of the queries are copies.

    Parameters
    ----------
    true
        (p,) score of each positive's right reference, minus infinity if it was not named.
    negative
        (n,) largest score of each negative, minus infinity if it has none.

    Examples
    --------
    >>> recall_at_false_positive_rate(np.array([3.0, 2.0, 1.0, 0.5]), np.array([2.0, 0.6, 0.1, 0.0]), rate=0.25)
    0.75
    """
    if len(true) == 0 or len(negative) == 0:
        return float("nan")
    allowed = int(rate * len(negative) + 1e-9)
    highest = np.sort(negative)[::-1]
    return float(np.mean(true > (highest[allowed] if allowed < len(negative) else -np.inf)))


@dataclass(frozen=True)
class _Joined:
    """Predictions joined with the truth: one entry each (p,), and facts of the queries (n,)."""

    scores: FloatArray
    correct: BoolArray
    query: IntArray  # (p,) row of the query
    positive: BoolArray
    top_score: FloatArray  # -inf without predictions
    top_correct: BoolArray
    true_score: FloatArray  # of the right prediction, -inf if it is missing
    onset: FloatArray  # NaN where the best prediction is wrong, or there are no spans to compare
    lag: FloatArray
    iou: FloatArray


def _join(truths: Sequence[Truth], predictions: Sequence[Prediction]) -> _Joined:
    row = {truth.query_id: i for i, truth in enumerate(truths)}
    scores = np.array([p.score for p in predictions], np.float64)
    query = np.array([row[p.query_id] for p in predictions], np.int64)
    correct = np.array([truths[row[p.query_id]].reference_id == p.reference_id for p in predictions], np.bool_)
    n = len(truths)
    top_score, true_score = np.full(n, -np.inf), np.full(n, -np.inf)
    top_correct = np.zeros(n, np.bool_)
    onset, lag, iou = (np.full(n, np.nan) for _ in range(3))
    for place in rank(scores, correct):
        i, claimed, true = query[place], predictions[place].spans, truths[query[place]].spans
        if correct[place]:
            true_score[i] = scores[place]
        if top_score[i] > -np.inf:
            continue
        top_score[i], top_correct[i] = scores[place], correct[place]
        if correct[place] and claimed and true:
            onset[i], lag[i], iou[i] = onset_error(claimed, true), lag_error(claimed, true), temporal_iou(claimed, true)
    positive = np.array([truth.reference_id is not None for truth in truths], np.bool_)
    return _Joined(scores, correct, query, positive, top_score, top_correct, true_score, onset, lag, iou)


def _measure(joined: _Joined, times: IntArray, precision: float, threshold: float | None) -> dict[str, float]:
    """Every score, with query i counted ``times[i]`` times; the scores' names are those of :func:`evaluate`."""
    repeat = times[joined.query]
    scores, correct = np.repeat(joined.scores, repeat), np.repeat(joined.correct, repeat)
    copies, others = times * joined.positive, times * ~joined.positive
    positives = int(copies.sum())
    point = recall_at_precision(scores, correct, positives, precision=precision)
    limit = point.threshold if threshold is None else threshold
    located = np.repeat(np.isfinite(joined.onset), copies)
    onset, lag, iou = (np.repeat(x, copies)[located] for x in (joined.onset, joined.lag, joined.iou))
    return {
        "micro_ap": micro_average_precision(scores, correct, positives),
        "recall_at_precision": point.recall if positives else float("nan"),
        "threshold": point.threshold,
        "recall_at_threshold": _mean(np.repeat(joined.true_score, copies) >= limit),
        "top1": _mean(np.repeat(joined.top_correct, copies)),
        "recall_at_1pct_false_positives": recall_at_false_positive_rate(
            np.repeat(joined.true_score, copies), np.repeat(joined.top_score, others)
        ),
        "false_positive_rate": _mean(np.repeat(joined.top_score, others) >= limit),
        "located": _mean(located),
        "onset_error_s": float(np.median(onset)) if len(onset) else float("nan"),
        "lag_error_s": float(np.median(lag)) if len(lag) else float("nan"),
        "temporal_iou": _mean(iou),
    }


def _mean(values: BoolArray | FloatArray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def evaluate(
    truths: Sequence[Truth],
    predictions: Sequence[Prediction],
    *,
    precision: float = PRECISION,
    threshold: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """All scores of a system, with bootstrap intervals by source.

    Parameters
    ----------
    truths
        Every query, negatives included.
    predictions
        At most one per pair of query and reference, any number per query. More than one per query is a risk: a query
        has one reference at most, so all but one are wrong.
    precision
        Of the operating point, in (0, 1].
    threshold
        Where ``recall_at_threshold`` and ``false_positive_rate`` are taken; None: at the operating point.
    resamples
        Draws of the bootstrap: sources with replacement, as many as there are, with all their queries. 0: no intervals.
    seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``micro_ap``;
        ``recall_at_precision`` and its ``threshold`` (infinite where the precision is never reached);
        ``recall_at_threshold``: share of positives whose right reference scores at least the threshold;
        ``top1``: share of positives whose best prediction is right;
        ``false_positive_rate``: share of negatives with a prediction at or above the threshold (at a given precision it
        grows with the share of copies among the queries: the more there are, the more false alarms are "few");
        ``recall_at_1pct_false_positives``, which does not;
        ``located``: share of positives whose best prediction is right and has spans; over these,
        ``onset_error_s`` and ``lag_error_s`` (medians) and ``temporal_iou`` (mean), see the functions of these names.
        NaN where there is nothing to measure.

    Raises
    ------
    ValueError
        See :func:`validate`.

    Examples
    --------
    >>> truths = [Truth("a", "r", "one"), Truth("b", "r", "two"), Truth("c", None, "three")]
    >>> scores = evaluate(truths, [Prediction("a", "r", 0.9), Prediction("c", "r", 0.5)], resamples=0)
    >>> scores["micro_ap"].value, scores["top1"].value, scores["threshold"].value, scores["false_positive_rate"].value
    (0.5, 0.5, 0.9, 0.0)
    """
    validate(truths, predictions)
    return _evaluate(truths, predictions, precision, threshold, resamples, seed)


def _evaluate(
    truths: Sequence[Truth],
    predictions: Sequence[Prediction],
    precision: float,
    threshold: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    joined = _join(truths, predictions)
    values = _measure(joined, np.ones(len(truths), np.int64), precision, threshold)
    sources, source = np.unique([truth.source for truth in truths], return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(len(sources), size=len(sources)), minlength=len(sources))
        draws.append(_measure(joined, times[source].astype(np.int64), precision, threshold))
    return {name: percentile_interval(value, [draw[name] for draw in draws]) for name, value in values.items()}


def breakdown(
    truths: Sequence[Truth],
    predictions: Sequence[Prediction],
    *,
    by: Callable[[Truth], str],
    precision: float = PRECISION,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """The scores of :func:`evaluate` for each part of the positives, against *all* negatives.

    ``recall_at_threshold`` and ``false_positive_rate`` are taken at the one threshold that all queries together set: what
    a user gets who has one threshold.

    Parameters
    ----------
    by
        Names the part of a positive, such as ``lambda truth: truth.kind``.

    Examples
    --------
    >>> truths = [Truth("a", "r", "1", kind="gain"), Truth("b", "r", "2", kind="noise"), Truth("c", None, "3")]
    >>> parts = breakdown(truths, [Prediction("a", "r", 0.9), Prediction("b", "x", 0.3)], by=lambda truth: truth.kind)
    >>> {name: scores["recall_at_threshold"].value for name, scores in parts.items()}
    {'gain': 1.0, 'noise': 0.0}
    """
    validate(truths, predictions)
    everything = _measure(_join(truths, predictions), np.ones(len(truths), np.int64), precision, None)
    positives = [truth for truth in truths if truth.reference_id is not None]
    negatives = [truth for truth in truths if truth.reference_id is None]
    parts = {}
    for name in dict.fromkeys(by(truth) for truth in positives):
        part = [truth for truth in positives if by(truth) == name] + negatives
        known = {truth.query_id for truth in part}
        kept = [p for p in predictions if p.query_id in known]
        parts[name] = _evaluate(part, kept, precision, everything["threshold"], resamples, seed)
    return parts
