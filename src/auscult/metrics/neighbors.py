"""Distances within and between two sets of items, and how what depends on nearest neighbors varies from sample to sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .frames import FloatArray, IntArray, some_clips

BoolArray = npt.NDArray[np.bool_]

BLOCK_VALUES = 2**23  # distances at once: 67 MB
POOL = 1000  # items of a set that halves are drawn of: 24 MB of distances
EPSILON = np.finfo(np.float64).eps


def distances(a: FloatArray, b: FloatArray) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
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


def squared_radii(rows: FloatArray, k: int) -> FloatArray:
    """(n,) squared distance to the k-th nearest other row."""
    radii = np.empty(len(rows))
    for here, squared, _ in distances(rows, rows):
        own = np.arange(len(rows))[here]
        squared[np.arange(len(own)), own] = np.inf
        radii[here] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return np.maximum(radii, 0)


def insides(within_y: BoolArray, within_x: BoolArray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage, of which item of x (columns) lies in the ball of which item of y (rows), and
    which item of y in that of which item of x."""
    balls = np.count_nonzero(within_y, axis=0)
    return (
        float(np.mean(balls > 0)),
        float(within_x.any(axis=1).mean()),
        float(balls.mean() / k),
        float(within_y.any(axis=1).mean()),
    )


def halves_variance(
    x: FloatArray, x_clip: IntArray, y: FloatArray, y_clip: IntArray, k: int, *, resamples: int, seed: int
) -> FloatArray | None:
    """(4,) sampling variance of precision, recall, density and coverage, from random halves of both sets.

    A draw with replacement would not do: copies of a clip lie in each other's balls, at distance 0. Half of the clips, drawn
    without replacement, have neighbors of their own, and so the balls vary from draw to draw as they do from sample to sample.
    A mean over half of n clips varies, about that of all n, as much as the mean of n does about the truth: by
    ``(1 / h - 1 / n) = 1 / n`` for ``h = n / 2``. For a number that is no mean this is too much, seldom too little (Efron and
    Stein 1981). Of sets above ``POOL`` items, halves of so many are drawn, and the variance is that of the smaller sample,
    times the share of the set that it is.

    Parameters
    ----------
    x, y
        (n, d), (m, d) generated and reference items.
    x_clip, y_clip
        (n,), (m,) clip of each item, numbered from 0: clips are drawn whole.
    k
        Neighbors.
    resamples
        Draws.
    seed
        Of the draws.

    Returns
    -------
    array or None
        None with fewer than two draws, or where half of the clips of a set are not more than k.

    References
    ----------
    McCarthy, "Pseudo-Replication: Half Samples", Review of the International Statistical Institute 37 (1969).
    """
    pools = [_pool(rows, clip, seed) for rows, clip in ((x, x_clip), (y, y_clip))]
    counts = [int(clip.max()) + 1 for _, clip, _ in pools]
    if resamples < 2 or min(counts) // 2 <= k:
        return None
    (a, a_clip, a_share), (b, b_clip, b_share) = pools
    own_a, own_b, cross = _whole(a, a), _whole(b, b), _whole(b, a, slack=True)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        i, j = (_half(clip, count, rng) for clip, count in zip((a_clip, b_clip), counts, strict=True))
        between = cross[np.ix_(j, i)]
        draws.append(insides(between <= _radii(own_b, j, k)[:, None], between <= _radii(own_a, i, k), k))
    kept = max(count // 2 / count for count in counts)  # a little less than half of an odd number
    variance: FloatArray = np.var(draws, axis=0, ddof=1) * kept / (1 - kept) * max(a_share, b_share)
    return variance


def _pool(rows: FloatArray, clip: IntArray, seed: int) -> tuple[FloatArray, IntArray, float]:
    """Items to draw of, their clips numbered from 0, and which share of the clips that is."""
    kept = some_clips(clip, POOL, seed=seed)
    number = np.unique(clip[kept], return_inverse=True)[1].astype(np.int64)
    return rows[kept], number, (int(number.max()) + 1) / (int(clip.max()) + 1)


def _whole(a: FloatArray, b: FloatArray, *, slack: bool = False) -> FloatArray:
    return np.concatenate([squared - spare if slack else squared for _, squared, spare in distances(a, b)])


def _half(clip: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Items of half of the clips."""
    kept = np.zeros(count, np.bool_)
    kept[rng.permutation(count)[: count // 2]] = True
    return np.flatnonzero(kept[clip]).astype(np.int64)


def _radii(own: FloatArray, rows: IntArray, k: int) -> FloatArray:
    squared = own[np.ix_(rows, rows)]
    np.fill_diagonal(squared, np.inf)
    return np.maximum(np.partition(squared, k - 1, axis=1)[:, k - 1], 0)
