"""Draws of clips: intervals from resampled ones, and pairs that are all wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

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
