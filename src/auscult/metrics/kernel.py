"""Kernel distance between two sets of features (KAD): unbiased, without a covariance, and so fit for small sets."""

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
from .intervals import FEWEST, RESAMPLES, Interval, resampled_counts, spread_interval

__all__ = ["bandwidth", "evaluate", "kernel_distance", "validate"]

SCALE = 100.0  # as published: the distance times 100
MOST_FRAMES = 10_000  # of a set: the cost is that of all pairs
BANDWIDTH_ROWS = 4000  # whose pairs the median is taken of: 64 MB
BLOCK_VALUES = 2**23  # of the kernel at once: 67 MB


def bandwidth(reference: npt.ArrayLike, *, seed: int = 0) -> float:
    """Median distance between two rows of the reference: the length over which the kernel tells features apart.

    Of the reference alone, so that all systems are measured with one ruler; kadtk takes it of the set to be scored, though
    its documentation says reference. Exact up to 4,000 rows; of 4,000 drawn rows beyond.

    Parameters
    ----------
    reference
        (n, d) frames.
    seed
        Of the drawn rows.

    Raises
    ------
    ValueError
        Fewer than two rows; a median of 0: most rows are equal.

    Examples
    --------
    >>> bandwidth([[0.0], [1.0], [3.0]])
    2.0
    """
    rows = checked_features(reference, REFERENCE)
    if len(rows) < 2:
        raise ValueError(f"a distance between rows needs at least 2 {REFERENCE} rows, got {len(rows)}")
    if len(rows) > BANDWIDTH_ROWS:
        rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), BANDWIDTH_ROWS, replace=False))]
    exact = rows.astype(np.float64)
    exact -= exact.mean(axis=0)
    distances = [np.sqrt(_squared_distances(exact[i : i + 1], exact[i + 1 :])[0]) for i in range(len(exact) - 1)]
    median = float(np.median(np.concatenate(distances)))
    length = float(np.sqrt(np.mean(np.sum(exact**2, axis=1))))
    if median <= 1e-7 * length or median == 0:  # what rounding leaves of equal rows
        raise ValueError(
            "the median distance between two rows of the reference is 0: most of its features are equal (silence, or one file "
            "many times?), so that there is no scale to compare others by; take a reference of various sounds"
        )
    return median


def _squared_distances(a: FloatArray, b: FloatArray) -> FloatArray:
    squared = np.einsum("ij,ij->i", a, a)[:, None] + np.einsum("ij,ij->i", b, b) - 2 * (a @ b.T)
    return np.maximum(squared, 0, out=squared)


def validate(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
) -> None:
    """Refuse sets that have no kernel distance.

    Raises
    ------
    ValueError
        Values that are not finite, sets of different dimensions, fewer than two clips of either.

    Examples
    --------
    >>> validate([[0.0], [1.0]], [[0.0], [1.0]], reference_clips=[5, 5])
    Traceback (most recent call last):
    ValueError: the kernel distance needs at least 2 reference clips, got 1 (with 2 rows): add clips, nothing can be said
    of how a single one varies
    """
    first, second = checked_features(generated, GENERATED), checked_features(reference, REFERENCE)
    check_same_dimension(first, second)
    for rows, clips, name in ((first, generated_clips, GENERATED), (second, reference_clips, REFERENCE)):
        check_two_clips(checked_clips(clips, len(rows), name), name, "the kernel distance")


def kernel_distance(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
    h: float | None = None,
    paired: bool = False,
    seed: int = 0,
) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel, times 100.

    ``100 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))`` with ``k(x, y) = exp(-|x - y|^2 / (2 h^2))``, x and x' generated
    frames of different clips, y and y' reference frames of different clips. Frames of one clip resemble each other in every
    set; with them the mean within a set would be too large.

    Parameters
    ----------
    generated, reference
        (n, d) and (m, d) frames. Of sets of more than 10,000, whole clips are drawn up to that many.
    generated_clips, reference_clips
        (n,), (m,) which clip each frame belongs to; None: each frame is a clip of its own.
    h
        Bandwidth in the unit of the features; None: :func:`bandwidth` of the whole reference.
    paired
        Clips of one number in both sets are one clip and a version of it (the same file, a degraded copy): they are not
        compared across the sets either, and a set against itself gives 0. Clips that only one set holds have numbers that
        the other has not.
    seed
        Of what is drawn from large sets.

    Returns
    -------
    float
        In [-200, 200], its expectation 0 where the distributions are one, so that about half of such scores are below 0.
        Clearly below 0 means that the sets share clips: a set of n clips against itself, not ``paired``, gives about
        ``-200 (1 - mean k) / n``, since there each clip meets itself, but only across.

    Raises
    ------
    ValueError
        See :func:`validate` and :func:`bandwidth`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> same, other = rng.normal(0, 1, (300, 4)), rng.normal(1, 1, (300, 4))
    >>> reference = rng.normal(0, 1, (300, 4))
    >>> abs(kernel_distance(same, reference)) < 0.5 < 10 < kernel_distance(other, reference)
    True

    References
    ----------
    Chung et al., "KAD: No More FAD!", arXiv 2502.15602; the estimator is that of Gretton et al., "A kernel two-sample test",
    2012.
    """
    validate(generated, reference, generated_clips=generated_clips, reference_clips=reference_clips)
    sets = _prepared(generated, reference, generated_clips, reference_clips, h, paired, seed)
    counts = np.ones((1, sets.generated.n_clips)), np.ones((1, sets.reference.n_clips))
    return float(_distances(sets, *counts)[0])


@dataclass(frozen=True)
class _Set:
    """Rows in the unit of the bandwidth, the clip of each, and the given number of each clip."""

    rows: FloatArray
    clip: IntArray
    numbers: npt.NDArray[np.int64]

    @property
    def n_clips(self) -> int:
        """How many clips the rows are of."""
        return len(self.numbers)


@dataclass(frozen=True)
class _Sets:
    generated: _Set
    reference: _Set
    paired: bool


def _prepared(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    generated_clips: npt.ArrayLike | None,
    reference_clips: npt.ArrayLike | None,
    h: float | None,
    paired: bool,
    seed: int,
) -> _Sets:
    if h is not None and not h > 0:
        raise ValueError(f"the bandwidth h should exceed 0, got {h}")
    length = bandwidth(reference, seed=seed) if h is None else h
    center = np.asarray(reference).mean(axis=0, dtype=np.float64)  # far from 0 the differences would lose digits
    first = _sampled(np.asarray(generated), generated_clips, center, length, seed)
    second = _sampled(np.asarray(reference), reference_clips, center, length, seed)
    return _Sets(first, second, paired)


def _sampled(
    features: npt.NDArray[np.float64], clips: npt.ArrayLike | None, center: FloatArray, length: float, seed: int
) -> _Set:
    numbers = np.arange(len(features)) if clips is None else np.asarray(clips)
    kept = some_clips(checked_clips(clips, len(features), "these"), MOST_FRAMES, seed=seed)
    numbers, clip = np.unique(numbers[kept], return_inverse=True)
    return _Set((features[kept].astype(np.float64) - center) / length, clip.astype(np.int64), numbers)


def _distances(sets: _Sets, generated: FloatArray, reference: FloatArray) -> FloatArray:
    """(draws,) the distance where each clip counts as often as ``generated`` and ``reference`` (draws, clips) say.

    A clip drawn twice is not compared with itself: its own pairs stay out, as they do of the value.
    """
    first = _mean_kernel(sets.generated, sets.generated, generated, generated, apart=True)
    second = _mean_kernel(sets.reference, sets.reference, reference, reference, apart=True)
    across = _mean_kernel(sets.generated, sets.reference, generated, reference, apart=sets.paired)
    return SCALE * (first + second - 2 * across)


def _mean_kernel(a: _Set, b: _Set, weights_a: FloatArray, weights_b: FloatArray, *, apart: bool) -> FloatArray:
    """(draws,) weighted mean of the kernel over the pairs of a row of each; if ``apart`` of clips of different numbers only."""
    by_row_a, by_row_b = weights_a[:, a.clip], weights_b[:, b.clip]
    number_a, number_b = a.numbers[a.clip], b.numbers[b.clip]
    total, pairs = np.zeros(len(weights_a)), by_row_a.sum(axis=1) * by_row_b.sum(axis=1)
    step = max(1, BLOCK_VALUES // len(b.rows))
    for start in range(0, len(a.rows), step):
        here = slice(start, start + step)
        kernel = np.exp(-0.5 * _squared_distances(a.rows[here], b.rows))
        if apart:
            kernel[number_a[here, None] == number_b] = 0
        total += np.sum((by_row_a[:, here] @ kernel) * by_row_b, axis=1)
    if apart:
        _, in_a, in_b = np.intersect1d(a.numbers, b.numbers, return_indices=True)
        rows_a, rows_b = (weights_a * np.bincount(a.clip))[:, in_a], (weights_b * np.bincount(b.clip))[:, in_b]
        pairs -= np.sum(rows_a * rows_b, axis=1)
    # a draw of one clip alone has no pairs, and no value
    return np.divide(total, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def evaluate(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
    h: float | None = None,
    paired: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Kernel distance with the interval that resampling the clips of both sets gives; the bandwidth stays that of the data.

    Near 0 the interval is wider than the score spreads, up to twofold: no draw knows that the distributions are one.

    Parameters are those of :func:`kernel_distance`; ``resamples`` draws, none for 0 or where a set has fewer than six clips:
    so few vary by much more than their draws do.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> result = evaluate(rng.normal(0, 1, (100, 4)), rng.normal(0, 1, (100, 4)))
    >>> result.low < 0 < result.high
    True
    """
    validate(generated, reference, generated_clips=generated_clips, reference_clips=reference_clips)
    sets = _prepared(generated, reference, generated_clips, reference_clips, h, paired, seed)
    n, m = sets.generated.n_clips, sets.reference.n_clips
    resamples = resamples if min(n, m) >= FEWEST else 0
    first = _counts(n, resamples, seed)
    together = paired and np.array_equal(sets.generated.numbers, sets.reference.numbers)
    second = first if together else _counts(m, resamples, seed + 1)  # of the same clips, a clip and its version
    value, *draws = _distances(sets, first, second)
    return spread_interval(float(value), [draw for draw in draws if not np.isnan(draw)])


def _counts(n: int, resamples: int, seed: int) -> FloatArray:
    """(1 + resamples, n): every clip once, and the draws."""
    return np.array([np.ones(n), *resampled_counts(n, resamples=resamples, seed=seed)], np.float64)
