"""Intervals of scores, the draws of clips that they come from, and pairs that are all wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtri

IntArray = npt.NDArray[np.int64]

FEWEST = 6  # clips that an interval is drawn from: of fewer, even the range misses their median in more than 5 % of samples
RESAMPLES = 200  # enough for a 95 % interval whose ends wobble by a few percent of its width
LOW, HIGH = 2.5, 97.5  # percentiles


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval (NaN where none was drawn)."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def percentile_interval(value: float, draws: npt.ArrayLike) -> Interval:
    """The 2.5 and 97.5 percentiles of the draws of a bootstrap, of those that are numbers.

    A draw itself rather than a mean of two, since a draw may be infinite.

    Examples
    --------
    >>> percentile_interval(0.5, [0.25, 0.5, 0.75, float("nan")])
    Interval(value=0.5, low=0.25, high=0.75)
    >>> percentile_interval(0.5, [])
    Interval(value=0.5, low=nan, high=nan)
    """
    numbers = np.asarray(draws, np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers) == 0:
        return Interval(value)
    low, high = np.percentile(numbers, [LOW, HIGH], method="nearest")
    return Interval(value, float(low), float(high))


def mean_interval(values: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of what independent clips score, with the percentiles of means of resampled clips.

    No ends for fewer than ``FEWEST`` = 6 clips. A draw of them is never wider than they are themselves: a single clip would
    have an interval without width, and all of n clips lie on one side of their median in ``2^(1 - n)`` of samples, 6 % of five.

    Examples
    --------
    >>> mean_interval([0.25])
    Interval(value=0.25, low=nan, high=nan)
    >>> interval = mean_interval([0.0, 1.0] * 20)
    >>> interval.value, 0.3 < interval.low < 0.4 < 0.6 < interval.high < 0.7
    (0.5, True)
    """
    scores = np.asarray(values, np.float64)
    draws = [
        float(times @ scores) / len(scores)
        for times in resampled_counts(len(scores), resamples=resamples if len(scores) >= FEWEST else 0, seed=seed)
    ]
    return percentile_interval(float(scores.mean()), draws)


def spread_interval(value: float, draws: npt.ArrayLike, *, least: float = -np.inf) -> Interval:
    """The value, and the spread of the draws of a bootstrap about their own mean laid around it.

    For a score that depends on the number of distinct clips (a Frechet distance falls with it), and so is biased upwards in
    every draw, which holds two thirds of them: there the percentiles of the draws would not even contain the value. What
    is left is the spread; the bias of the value itself is not in it.

    Parameters
    ----------
    least
        Bound of the score, at which an interval is cut.

    Examples
    --------
    >>> spread_interval(1.0, [1.5, 2.0, 2.5])
    Interval(value=1.0, low=0.5, high=1.5)
    """
    numbers = np.asarray(draws, np.float64)
    if len(numbers) == 0:
        return Interval(value)
    low, high = np.percentile(numbers - numbers.mean(), [LOW, HIGH], method="nearest")
    return Interval(value, max(least, float(value + low)), max(least, float(value + high)))


def share_interval(value: float, variance: float, *, clips: int, items: int) -> Interval:
    """Clopper and Pearson's interval of a share, for as many independent clips as its variance is that of.

    Shares are no normal numbers near 0 and 1, and at 0 and 1 themselves nothing was seen to vary: ends from a standard error
    would have no width there. ``value (1 - value) / variance`` independent trials would vary as much.

    Parameters
    ----------
    value
        The share.
    variance
        Its sampling variance.
    clips
        Independent clips that were averaged: trials where the share is 0 or 1.
    items
        All that was averaged: there are no more trials than that.

    Examples
    --------
    >>> interval = share_interval(0.5, 0.25 / 40, clips=80, items=80)  # varies like 20 of 40
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.338, 0.662)
    >>> round(share_interval(1.0, 0.0, clips=80, items=80).low, 3)  # 80 of 80
    0.955

    References
    ----------
    Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from survey
    data", Survey Methodology 24 (1998).
    """
    spread = value * (1 - value)
    trials = float(clips) if spread == 0 else min(spread / variance if variance > 0 else np.inf, float(items))
    hits, tail = value * trials, (100 - HIGH) / 100
    low = float(betaincinv(hits, trials - hits + 1, tail)) if value > 0 else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if value < 1 else 1.0
    return Interval(value, low, high)


def ratio_interval(value: float, variance: float) -> Interval:
    """Interval of a number above 0 that varies by factors: 1.96 standard errors of its logarithm either side.

    Without ends where it was not seen to vary, and where its standard error is as large as itself: the logarithm of what may
    as well be 0 varies without bound.

    Examples
    --------
    >>> ratio_interval(1.0, 0.0), ratio_interval(1.0, 1.0)
    (Interval(value=1.0, low=nan, high=nan), Interval(value=1.0, low=nan, high=nan))
    >>> interval = ratio_interval(2.0, 0.04)
    >>> round(interval.low, 3), round(interval.high, 3)
    (1.644, 2.433)
    """
    if not 0 < variance < value**2:
        return Interval(value)
    factor = float(np.exp(ndtri(HIGH / 100) * np.sqrt(variance) / value))
    return Interval(value, value / factor, value * factor)


def resampled_counts(n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[IntArray]:
    """How often each of n clips is drawn, in draws of n clips with replacement: ``resamples`` arrays (n,) that sum to n."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(n, size=n), minlength=n).astype(np.int64)


def derangement(n: int, *, seed: int) -> IntArray:
    """A random permutation (n,) that leaves nothing in its place: pairs that are all wrong.

    Every derangement is equally likely: permutations are drawn until one moves everything, which takes e = 2.7 draws on
    average.

    Raises
    ------
    ValueError
        There are fewer than two.

    Examples
    --------
    >>> derangement(2, seed=0).tolist()
    [1, 0]
    """
    if n < 2:
        raise ValueError(f"expected at least 2 pairs to shuffle, got {n}; a single clip can only have its own")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order.astype(np.int64)


def unlike_partners(values: Sequence[object], *, seed: int) -> IntArray | None:
    """A random order (n,) in which each place gets an unequal value: wrong pairs even where captions occur several times.

    None where more than half of the values are equal, so that there is no such order.

    Examples
    --------
    >>> values = ["rain", "dog", "rain", "bell"]
    >>> order = unlike_partners(values, seed=0)
    >>> any(values[place] == values[partner] for place, partner in enumerate(order))
    False
    >>> unlike_partners(["rain", "rain", "dog"], seed=0) is None
    True
    """
    number = np.unique([str(value) for value in values], return_inverse=True)[1]
    most = int(np.bincount(number).max(initial=0))
    if len(number) < 2 or 2 * most > len(number):
        return None
    rng = np.random.default_rng(seed)
    number = rng.permutation(len(number))[number]  # else the partner of a caption is its neighbor in the alphabet, and like it
    shuffled = rng.permutation(len(number))
    grouped = shuffled[np.argsort(number[shuffled], kind="stable")]
    order = np.empty(len(number), np.int64)
    order[grouped] = np.roll(grouped, most)  # equal values stand together, in runs of at most so many
    return order
