"""Whether generated clips look real, and whether they are all that is real: precision, recall, density, coverage.

Around each item lies a ball that reaches to its k-th nearest neighbor of the same set, itself not counted; what lies in a ball
of the reference looks real.
"""

from __future__ import annotations

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
from .intervals import RESAMPLES, Interval, ratio_interval, share_interval
from .neighbors import distances, halves_variance, squared_radii

__all__ = ["coverage", "density", "evaluate", "precision", "recall", "validate"]

NAMES = ("precision", "recall", "density", "coverage")
K = 5
MOST_FRAMES = 10_000  # of a set: the cost is that of all pairs


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
        check_two_clips(checked_clips(clips, len(rows), name), name, "each of precision, recall, density and coverage")
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
class _Items:
    """Items (n, d) about the reference's center, and the clip of each, numbered from 0."""

    rows: FloatArray
    clip: IntArray

    @property
    def clips(self) -> int:
        """How many clips they are of."""
        return int(self.clip.max()) + 1


@dataclass(frozen=True)
class _Members:
    """What is averaged: one number per generated item (n,) or reference item (m,)."""

    precise: FloatArray
    dense: FloatArray
    recalled: FloatArray
    covered: FloatArray


def _members(generated: npt.ArrayLike, reference: npt.ArrayLike, k: int, seed: int) -> _Members:
    validate(generated, reference, k=k)
    return _inside(*_prepared(generated, reference, None, None, seed), k)


def _prepared(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    generated_clips: npt.ArrayLike | None,
    reference_clips: npt.ArrayLike | None,
    seed: int,
) -> tuple[_Items, _Items]:
    center = np.asarray(reference).mean(axis=0, dtype=np.float64)  # far from 0 the differences would lose digits
    return (
        _sampled(np.asarray(generated), generated_clips, GENERATED, center, seed),
        _sampled(np.asarray(reference), reference_clips, REFERENCE, center, seed),
    )


def _inside(x: _Items, y: _Items, k: int) -> _Members:
    radius_x, radius_y = squared_radii(x.rows, k), squared_radii(y.rows, k)
    dense, recalled, covered = np.zeros(len(x.rows)), np.zeros(len(y.rows)), np.zeros(len(y.rows))
    for here, squared, slack in distances(y.rows, x.rows):
        within_y = squared <= radius_y[here, None] + slack
        dense += np.count_nonzero(within_y, axis=0)
        covered[here] = within_y.any(axis=1)
        recalled[here] = (squared <= radius_x + slack).any(axis=1)
    return _Members((dense > 0).astype(np.float64), dense / k, recalled, covered)


def _sampled(
    features: npt.NDArray[np.float64], clips: npt.ArrayLike | None, name: str, center: FloatArray, seed: int
) -> _Items:
    clip = checked_clips(clips, len(features), name)
    kept = some_clips(clip, MOST_FRAMES, seed=seed)
    return _Items(features[kept].astype(np.float64) - center, np.unique(clip[kept], return_inverse=True)[1].astype(np.int64))


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
    """All four, with intervals for both sets being samples: those that are averaged and those that make the balls.

    Variances come from random halves of both sets (:func:`~auscult.metrics.neighbors.halves_variance`); the ends of shares are
    those of Clopper and Pearson for as many independent clips as would vary so much, those of density lie as many times below
    as above, and are left out where so little lies in balls that they would be anywhere. In simulations with 30 to 300 clips
    that were independent they held the expectation in 92 to 99 % of samples; where a few outliers with large balls decide
    about all (two sets that hardly meet, in few dimensions), in 85 to 90 %. They hold less where half of the clips is not to
    the halves as all are to all: where clips come in tight groups of about k, of which a half has no balls left (96 clips of
    16 tight sounds: recall 62 %, precision 84 %), and above 1,000 items, where what halves of 1,000 show is scaled down
    (6,000 against 6,000 in 3 dimensions, a standard deviation and a half apart: density 71 %, recall 88 %, precision 91 %).

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
        Draws; 0: no intervals. Neither are there any where half of the clips of a set are not more than k.
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
    validate(generated, reference, k=k, generated_clips=generated_clips, reference_clips=reference_clips)
    x, y = _prepared(generated, reference, generated_clips, reference_clips, seed)
    found = _inside(x, y, k)
    values = [float(np.mean(one)) for one in (found.precise, found.recalled, found.dense, found.covered)]
    variances = halves_variance(x.rows, x.clip, y.rows, y.clip, k, resamples=resamples, seed=seed)
    if variances is None:
        return {name: Interval(value) for name, value in zip(NAMES, values, strict=True)}
    of = {"precision": x, "recall": y, "density": x, "coverage": y}
    return {
        name: _interval(name, value, float(variance), of[name])
        for name, value, variance in zip(NAMES, values, variances, strict=True)
    }


def _interval(name: str, value: float, variance: float, averaged: _Items) -> Interval:
    if name == "density" and value > 0:
        return ratio_interval(value, variance)
    return share_interval(value, variance, clips=averaged.clips, items=len(averaged.rows))  # a density of 0: no item is inside
