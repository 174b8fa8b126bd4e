"""Scores against verdicts: precision and recall at every threshold, and how often pairs of a given score are replications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .intervals import clopper_pearson
from .verdicts import pair_id
from .verified import REPLICATION, UNSURE, Verified

DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of what scores at or above each threshold.

    Attributes
    ----------
    threshold
        (n,) the distinct scores, highest first.
    precision, recall
        (n,) shares, 0 to 1, weighted.
    average_precision
        Precision averaged over recall, without interpolation.
    clips, replications
        Verified clips behind it (not weighted).
    """

    threshold: DoubleArray
    precision: DoubleArray
    recall: DoubleArray
    average_precision: float
    clips: int
    replications: int


def precision_recall(
    scores: npt.ArrayLike, replication: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> PrecisionRecall:
    """The precision-recall curve of scores against verdicts.

    With w the weights and y the truth, over clips with ``score >= t``: ``precision(t) = sum(w y) / sum(w)`` and
    ``recall(t) = sum(w y) / sum of w y over all``; ``average precision = sum((recall_k - recall_{k-1}) precision_k)`` over
    distinct scores, so that clips of equal score are retrieved together and their order cannot matter.

    Parameters
    ----------
    scores
        (n,) higher means closer; NaN: never retrieved.
    replication
        (n,) whether the clip is a replication.
    weights
        (n,) inverse of the probability with which each clip came to be verified: 1 where all are, ``N_h / n_h`` in a
        sampled stratum. Default: all 1.

    Raises
    ------
    ValueError
        Unequal lengths, weights that are not above 0, or no replication.

    Examples
    --------
    >>> curve = precision_recall([0.9, 0.8, 0.7], [True, False, True])
    >>> curve.precision.round(3).tolist(), curve.recall.tolist(), round(curve.average_precision, 4)
    ([1.0, 0.5, 0.667], [0.5, 0.5, 1.0], 0.8333)
    """
    score, truth = np.asarray(scores, np.float64), np.asarray(replication, np.bool_)
    weight = np.ones(len(score)) if weights is None else np.asarray(weights, np.float64)
    if not score.shape == truth.shape == weight.shape or score.ndim != 1:
        raise ValueError(
            f"scores, replication and weights should be equally long, got {score.shape}, {truth.shape} and {weight.shape}"
        )
    if not np.all(np.isfinite(weight) & (weight > 0)):
        raise ValueError("weights should be finite and above 0: each is how many clips a verified clip stands for")
    if not truth.any():
        raise ValueError("no verified clip is a replication, so there is no recall; verify more, or lower the threshold")
    order = np.argsort(-score, kind="stable")  # NaN last
    order = order[~np.isnan(score[order])]
    ordered = score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])  # of each run of equal scores
    hits, seen = np.cumsum((weight * truth)[order])[last], np.cumsum(weight[order])[last]
    precision, recall = hits / seen, np.minimum(hits / (weight * truth).sum(), 1.0)
    average = float((np.diff(recall, prepend=0.0) * precision).sum())
    return PrecisionRecall(ordered[last], precision, recall, average, len(score), int(truth.sum()))


def audit_curve(queries: pa.Table, verified: Verified) -> PrecisionRecall:
    """The curve of one descriptor's top-1 scores against the verdicts, those of another audit of the same clips included.

    A clip is a replication if ``verified`` says so, whichever descriptor showed it; so curves of several descriptors over the
    same verdicts compare. Unsure clips are left out. Without a random sample the curve is that of the flagged clips only, and
    its recall a share of what was flagged, not of all replications.

    Parameters
    ----------
    queries
        ``query_id, score`` of the descriptor's audit.
    verified
        Of :func:`~auscult.review.verified.verified_clips`.

    Raises
    ------
    ValueError
        Flagged clips are not all verified (then nothing says what the verified ones stand for), or none is a replication.
    """
    if not verified.flagged.census:
        flagged = verified.flagged
        raise ValueError(
            f"{flagged.size - flagged.verified:,} of {flagged.size:,} flagged clips have no verdict yet; a precision-recall "
            "curve needs all of them"
        )
    rows = [
        (np.nan if score is None else score, verified.clips[query] == REPLICATION, verified.weights[query])
        for query, score in zip(queries["query_id"].to_pylist(), queries["score"].to_pylist(), strict=True)
        if query in verified.weights and verified.clips[query] != UNSURE
    ]
    scores, truth, weights = zip(*rows, strict=True) if rows else ((), (), ())
    return precision_recall(scores, truth, weights)


@dataclass(frozen=True)
class Reliability:
    """How often pairs of a given score or p-value are replications.

    Attributes
    ----------
    edges
        (bins + 1,) bin i holds values from ``edges[i]`` up to ``edges[i + 1]``, which belongs to the next bin, except the last.
    verified, replications
        (bins,) counts.
    share, low, high
        (bins,) share of replications and its Clopper-Pearson interval; NaN, 0 and 1 in a bin without a pair.
    level
        Of the intervals, each by itself.
    """

    edges: DoubleArray
    verified: IntArray
    replications: IntArray
    share: DoubleArray
    low: DoubleArray
    high: DoubleArray
    level: float


def reliability(
    values: npt.ArrayLike, replication: npt.ArrayLike, *, bins: int | Sequence[float] = 10, level: float = 0.95
) -> Reliability:
    """Share of replications among verified pairs, by bins of their score or p-value.

    Parameters
    ----------
    values
        (n,) finite scores or p-values.
    replication
        (n,) whether the pair is a replication.
    bins
        Number of bins that hold nearly equally many pairs (fewer where values are equal), or the edges.
    level
        Coverage of each bar.

    Raises
    ------
    ValueError
        No pairs, unequal lengths, values that are not finite or outside the edges, or edges that do not increase.

    Examples
    --------
    >>> reliability([0.1, 0.2, 0.8, 0.9], [False, False, True, False], bins=[0, 0.5, 1]).share.tolist()
    [0.0, 0.5]
    """
    value, truth = np.asarray(values, np.float64), np.asarray(replication, np.bool_)
    if value.ndim != 1 or value.shape != truth.shape or not len(value):
        raise ValueError(f"expected equally long, not empty values and verdicts, got {value.shape} and {truth.shape}")
    if not np.isfinite(value).all():
        raise ValueError("values should be finite; leave out pairs without a score")
    if isinstance(bins, int):
        if bins < 1:
            raise ValueError(f"bins should be at least 1, got {bins}")
        edges = np.unique(np.quantile(value, np.linspace(0, 1, bins + 1)))
        edges = edges if len(edges) > 1 else np.array([edges[0], np.nextafter(edges[0], np.inf)])
    else:
        edges = np.asarray(bins, np.float64)
    if len(edges) < 2 or not np.all(np.diff(edges) > 0) or value.min() < edges[0] or value.max() > edges[-1]:
        raise ValueError(
            f"edges should increase and enclose the values ({value.min():g} to {value.max():g}), got {edges.tolist()}"
        )
    bin_of = np.minimum(np.searchsorted(edges, value, side="right") - 1, len(edges) - 2)
    verified = np.bincount(bin_of, minlength=len(edges) - 1)
    found = np.bincount(bin_of[truth], minlength=len(edges) - 1)
    bounds = np.array([clopper_pearson(int(x), int(n), level=level) for x, n in zip(found, verified, strict=True)])
    share = np.divide(found, verified, out=np.full(len(verified), np.nan), where=verified > 0)
    return Reliability(edges, verified, found, share, bounds[:, 0], bounds[:, 1], level)


def audit_reliability(
    matches: pa.Table,
    verdicts: Mapping[str, str],
    *,
    column: str = "p_value",
    bins: int | Sequence[float] = 10,
    level: float = 0.95,
) -> Reliability:
    """Reliability of an audit's ``column`` (``p_value`` or ``score``), over the listed pairs that have a verdict.

    Unsure pairs and pairs without a value are left out. Pairs are not weighted: each bin speaks for the pairs in it that were
    chosen for review, which is fair where the choice looked at the value that is binned, or at nothing.
    """
    columns = ("query_id", "reference_id", column)
    rows = [
        (value, verdicts[pair] == REPLICATION)
        for query, reference, value in zip(*(matches[name].to_pylist() for name in columns), strict=True)
        if value is not None and verdicts.get(pair := pair_id(query, reference), UNSURE) != UNSURE
    ]
    values, truth = zip(*rows, strict=True) if rows else ((), ())
    return reliability(values, truth, bins=bins, level=level)
