"""Whether generated clips look real, and whether they are all that is real: precision, recall, density, coverage.

Around each item lies a ball that reaches to its k-th nearest neighbor of the same set, itself not counted; what lies in a ball
of the reference looks real.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .frames import (
    GENERATED,
    REFERENCE,
    FloatArray,
    IntArray,
    check_same_dimension,
    check_two_clips,
    checked_clips,
    checked_features,
    some_clips,
)
from .intervals import RESAMPLES, Interval, percentile_interval, resampled_counts

__all__ = ["coverage", "density", "evaluate", "precision", "recall", "validate"]

K = 5
MOST_FRAMES = 10_000  # of a set: the cost is that of all pairs
BLOCK_VALUES = 2**23  # distances at once: 67 MB
EPSILON = np.finfo(np.float64).eps


def validate(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    k: int = K,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
) -> None:
    """Refuse sets in which not every item has a k-th neighbor.

    Raises
    ------
    ValueError
        Values that are not finite, sets of different dimensions, fewer than two clips, no more than k items in a set, k
        below 1.

    Examples
    --------
    >>> validate(np.zeros((9, 2)), np.zeros((5, 2)))
    Traceback (most recent call last):
    ValueError: neighbor number 5 needs at least 6 reference items, got 5: add clips, or take a smaller k
    """
    first, second = checked_features(generated, GENERATED), checked_features(reference, REFERENCE)
    check_same_dimension(first, second)
    if k < 1:
        raise ValueError(f"k counts neighbors and should be at least 1, got {k}")
    for rows, clips, name in ((first, generated_clips, GENERATED), (second, reference_clips, REFERENCE)):
        check_two_clips(checked_clips(clips, len(rows), name), name, "coverage")
        if len(rows) <= k:
            raise ValueError(
                f"neighbor number {k} needs at least {k + 1} {name} items, got {len(rows)}: add clips, or take a smaller k"
            )


def precision(generated: npt.ArrayLike, reference: npt.ArrayLike, *, k: int = K, seed: int = 0) -> float:
    """Share of the generated items that lie in the ball of at least one reference item: what looks real.

    Parameters
    ----------
    generated, reference
        (n, d), (m, d); of sets of more than 10,000, that many are drawn.
    k
        The balls reach to the k-th nearest neighbor, and include it: an item as far as the radius lies inside.
    seed
        Of what is drawn from large sets.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        See :func:`validate`.

    Examples
    --------
    Reference at 0, 1, 3 with radii 1, 1, 2 (k = 1): the ball of 3 reaches from 1 to 5.

    >>> precision([[5.0], [5.5]], [[0.0], [1.0], [3.0]], k=1)
    0.5

    References
    ----------
    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", arXiv 1904.06991.
    """
    return float(np.mean(_members(generated, reference, k, seed).precise))


def recall(generated: npt.ArrayLike, reference: npt.ArrayLike, *, k: int = K, seed: int = 0) -> float:
    """Share of the reference items that lie in the ball of at least one generated item: what the model can make.

    Parameters and errors as for :func:`precision`, of which it is the mirror. A single generated outlier has a large ball, in
    which much of the reference may lie; :func:`coverage` does not fall for it.

    Examples
    --------
    Generated items at 5 and 5.5 have radius 0.5.

    >>> recall([[5.0], [5.5]], [[0.0], [4.5], [6.5], [7.0]], k=1)
    0.25
    """
    return float(np.mean(_members(generated, reference, k, seed).recalled))


def density(generated: npt.ArrayLike, reference: npt.ArrayLike, *, k: int = K, seed: int = 0) -> float:
    """How many reference balls a generated item lies in, on average, over k: may exceed 1 where generated items crowd.

    Parameters and errors as for :func:`precision`.

    Examples
    --------
    1 lies in all three balls, 5 in one.

    >>> density([[1.0], [5.0]], [[0.0], [1.0], [3.0]], k=1)
    2.0

    References
    ----------
    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", arXiv 2002.09797. Their code leaves out what
    lies exactly on a ball; here it is inside, as in precision, and as duplicates need it.
    """
    return float(np.mean(_members(generated, reference, k, seed).dense))


def coverage(generated: npt.ArrayLike, reference: npt.ArrayLike, *, k: int = K, seed: int = 0) -> float:
    """Share of the reference items in whose ball at least one generated item lies: what the model does make.

    Parameters, errors and source as for :func:`density`. Of two samples of one distribution it is about ``1 - 2^-k``.

    Examples
    --------
    >>> coverage([[5.0], [5.5]], [[0.0], [1.0], [3.0]], k=1)
    0.3333333333333333
    """
    return float(np.mean(_members(generated, reference, k, seed).covered))


@dataclass(frozen=True)
class _Members:
    """What is averaged: one number per generated item (n,) or reference item (m,), and the clip of each."""

    precise: FloatArray
    dense: FloatArray
    recalled: FloatArray
    covered: FloatArray
    generated_clip: IntArray
    reference_clip: IntArray


def _members(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    k: int,
    seed: int,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
) -> _Members:
    validate(generated, reference, k=k, generated_clips=generated_clips, reference_clips=reference_clips)
    center = np.asarray(reference).mean(axis=0, dtype=np.float64)  # far from 0 the differences would lose digits
    x, clip_x = _sampled(np.asarray(generated), generated_clips, GENERATED, center, seed)
    y, clip_y = _sampled(np.asarray(reference), reference_clips, REFERENCE, center, seed)
    radius_x, radius_y = _squared_radii(x, k), _squared_radii(y, k)
    dense, recalled, covered = np.zeros(len(x)), np.zeros(len(y)), np.zeros(len(y))
    for here, squared, slack in _distances(y, x):
        within_y = squared <= radius_y[here, None] + slack
        dense += np.count_nonzero(within_y, axis=0)
        covered[here] = within_y.any(axis=1)
        recalled[here] = (squared <= radius_x + slack).any(axis=1)
    return _Members((dense > 0).astype(np.float64), dense / k, recalled, covered, clip_x, clip_y)


def _sampled(
    features: npt.NDArray[np.float64], clips: npt.ArrayLike | None, name: str, center: FloatArray, seed: int
) -> tuple[FloatArray, IntArray]:
    clip = checked_clips(clips, len(features), name)
    kept = some_clips(clip, MOST_FRAMES, seed=seed)
    return features[kept].astype(np.float64) - center, np.unique(clip[kept], return_inverse=True)[1].astype(np.int64)


def _distances(a: FloatArray, b: FloatArray) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
    """Squared distances of some rows of ``a`` to all of ``b``, and what rounding may have added to or taken from each.

    By products, since differences would take minutes: two equal rows then come out not quite 0 apart, hence the slack, within
    which distances count as equal.
    """
    length_a, length_b = (np.einsum("ij,ij->i", rows, rows) for rows in (a, b))
    step = max(1, BLOCK_VALUES // len(b))
    for start in range(0, len(a), step):
        here = slice(start, start + step)
        lengths = length_a[here, None] + length_b
        yield here, lengths - 2 * (a[here] @ b.T), (64 + a.shape[1]) * EPSILON * lengths


def _squared_radii(rows: FloatArray, k: int) -> FloatArray:
    """(n,) squared distance to the k-th nearest other row."""
    radii = np.empty(len(rows))
    for here, squared, _ in _distances(rows, rows):
        own = np.arange(len(rows))[here]
        squared[np.arange(len(own)), own] = np.inf
        radii[here] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return np.maximum(radii, 0)


def evaluate(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
    k: int = K,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """All four, with intervals from resampling the clips that are averaged; the balls stay those of the data.

    Resampled clips of a set that makes the balls would lie in each other's, at distance 0. The intervals therefore say how sure
    a mean over these clips is, given these balls.

    Parameters
    ----------
    generated, reference
        (n, d), (m, d) items.
    generated_clips, reference_clips
        (n,), (m,) which clip each item belongs to; None: each item is a clip of its own. Neighbors may be of the same clip, as
        in the published definitions: with many frames a clip the balls are small, and take a backend of one vector a clip
        where you can.
    k
        Neighbors.
    resamples
        Draws; 0: no intervals.
    seed
        Of the draws, and of what is drawn from large sets.

    Returns
    -------
    dict
        ``precision`` and ``density`` (means over generated items), ``recall`` and ``coverage`` (over reference items).

    Raises
    ------
    ValueError
        See :func:`validate`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores = evaluate(rng.normal(0, 0.1, (200, 3)), rng.normal(0, 1, (200, 3)))  # real, and ever the same
    >>> scores["precision"].value, scores["recall"].value < 0.3 > scores["coverage"].value
    (1.0, True)
    """
    members = _members(generated, reference, k, seed, generated_clips, reference_clips)
    result = {}
    for clip, offset, of in (
        (members.generated_clip, 0, {"precision": members.precise, "density": members.dense}),
        (members.reference_clip, 1, {"recall": members.recalled, "coverage": members.covered}),
    ):
        sizes = np.bincount(clip)
        times = list(resampled_counts(len(sizes), resamples=resamples, seed=seed + offset))
        for name, values in of.items():
            sums = np.bincount(clip, weights=values)
            draws = [float(counts @ sums) / float(counts @ sizes) for counts in times]
            result[name] = percentile_interval(float(values.mean()), draws)
    return {name: result[name] for name in ("precision", "recall", "density", "coverage")}
