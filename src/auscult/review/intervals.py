"""Exact intervals for counts: Clopper-Pearson, its form for finite populations, and its sum over strata.

All bounds come from test inversion: a count is inside the interval unless an outcome at least as extreme as the observed
one would have had a probability of at most half of ``1 - level``. So each covers the truth at least as often as it says,
for small samples and rare events too, where normal approximations fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import bdtr, bdtrc, betaincinv, gammaln, rel_entr

Method = Literal["exact", "bonferroni", "pooled", "weighted"]
Sampled = tuple[int, int, int]  # size, verified, successes of a stratum


@dataclass(frozen=True)
class Share:
    """A share of verified items: ``value``, interval ``low`` to ``high`` at ``level``, and the counts; all shares 0 to 1."""

    value: float
    low: float
    high: float
    successes: int
    trials: int
    unsure: int = 0
    level: float = 0.95

    @property
    def text(self) -> str:
        """As a report quotes it."""
        return (
            f"{100 * self.value:.1f} % ({100 * self.level:g} % interval {100 * self.low:.1f} % to {100 * self.high:.1f} %; "
            f"{self.successes:,} of {self.trials:,})"
        )


def share(successes: int, trials: int, *, unsure: int = 0, level: float = 0.95) -> Share:
    """Share with its Clopper-Pearson interval; unsure items count as failures, and as successes in the upper bound."""
    if trials < 1 or not 0 <= unsure <= trials - successes:
        raise ValueError(f"expected at least one trial and successes + unsure <= trials, got {successes}, {unsure}, {trials}")
    low, _ = clopper_pearson(successes, trials, level=level)
    _, high = clopper_pearson(successes + unsure, trials, level=level)
    return Share(successes / trials, low, high, successes, trials, unsure, level)


def clopper_pearson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share, from independent trials.

    Parameters
    ----------
    successes, trials
        ``0 <= successes <= trials``; without a trial the interval is 0 to 1.
    level
        Coverage, between 0 and 1.

    Returns
    -------
    tuple of float
        Lower and upper bound, 0 to 1.

    Examples
    --------
    >>> [round(bound, 4) for bound in clopper_pearson(0, 10)]
    [0.0, 0.3085]

    References
    ----------
    Clopper & Pearson, Biometrika 1934, with the quantiles of the beta distribution.
    """
    check_level(level)
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    tail = (1 - level) / 2
    low = float(betaincinv(successes, trials - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, trials - successes, 1 - tail)) if successes < trials else 1.0
    return low, high


def hypergeometric_bounds(size: int, verified: int, successes: int, *, level: float = 0.95) -> tuple[int, int]:
    """Exact interval of how many of ``size`` items have a property that ``successes`` of ``verified`` random ones have.

    Sampling is without replacement, so the interval closes as the sample grows: a census (``verified == size``) leaves no
    doubt, and the bounds equal the count.

    Parameters
    ----------
    size, verified, successes
        ``0 <= successes <= verified <= size``.
    level
        Coverage, between 0 and 1.

    Returns
    -------
    tuple of int
        Smallest and largest count that the outcome does not speak against.

    Examples
    --------
    >>> hypergeometric_bounds(100, 20, 0)
    (0, 15)
    >>> hypergeometric_bounds(100, 100, 3)
    (3, 3)
    """
    check_level(level)
    if not 0 <= successes <= verified <= size:
        raise ValueError(f"expected 0 <= successes <= verified <= size, got {successes}, {verified} and {size}")
    return _hypergeometric_bounds(size, verified, successes, (1 - level) / 2)


@lru_cache(maxsize=65536)
def _hypergeometric_bounds(size: int, verified: int, successes: int, tail: float) -> tuple[int, int]:
    least, most = successes, size - verified + successes  # what is known for certain
    failures = verified - successes
    low = _first(lambda count: hypergeometric_cdf(size, size - count, verified, failures) > tail, least, most)
    # the largest that is not excluded: one before the first that is
    high = _first(lambda count: hypergeometric_cdf(size, count, verified, successes) <= tail, least, most + 1) - 1
    return low, max(high, low)


def hypergeometric_cdf(size: int, marked: int, drawn: int, at_most: int) -> float:
    """Probability that of ``drawn`` random items at most ``at_most`` are among the ``marked`` of all ``size``."""
    first, last = max(0, drawn + marked - size), min(at_most, drawn, marked)
    if last < first:
        return 0.0
    if last == min(drawn, marked):
        return 1.0
    count = np.arange(first, last + 1)
    logs = _log_choose(marked, count) + _log_choose(size - marked, drawn - count) - _log_choose(size, np.array([drawn]))
    return min(float(np.exp(logs).sum()), 1.0)


def stratified_bounds(
    strata: Sequence[tuple[int, int, int, int]], *, level: float = 0.95, method: Method = "exact"
) -> tuple[int, int, str]:
    """Exact interval of a count over several strata, each sampled at random by itself.

    Three ways, each of which covers with at least ``level`` whatever the strata hold. K is the count in question, f_h the
    share ``verified / size`` of a stratum that is no census.

    - ``bonferroni``: the hypergeometric bounds of each stratum at level ``1 - (1 - level) / H``, summed over the H strata.
      Tight for one; for several it supposes bad luck in all of them at once.
    - ``pooled``: from the sum S of successes. A hypergeometric count is a sum of independent Bernoulli variables, as many as
      are drawn, or (exchanging marked and drawn) as are marked. So S is one of n or of K such, with mean from ``f_min K`` to
      ``f_max K``, and by Hoeffding's theorem 4 its tail from 1 beyond the mean is at most that of Binomial(n, f K / n) and of
      Binomial(K, f); ``f_min`` for the upper and ``f_max`` for the lower bound. Tight where the shares are nearly equal.
    - ``weighted``: the upper bound from the estimate itself, ``T = sum x_h / f_h``. With the same Bernoulli variables
      ``E exp(-t f_min T) <= prod_h (1 - f_h (1 - exp(-t f_min / f_h)))^K_h``, which is largest if all K lie in the
      stratum of the smallest share; Markov's inequality at the best t gives
      ``P(T <= T_observed) <= exp(-K kl(f_min T / K, f_min))``, kl the relative entropy of two Bernoulli variables. A
      success in a densely sampled stratum weighs ``f_min / f_h`` of one. The lower bound is that of ``pooled``.
    - ``exact``: of these the one whose upper bound is smallest for one success in each stratum. That choice looks at the design
      only, not at what was found, so it costs no coverage.

    Parameters
    ----------
    strata
        ``(size, verified, certain, possible)`` of each: ``certain`` successes for the lower bound, and ``possible`` ones
        (with those that are unsure) for the upper. A census has ``verified == size``; a stratum without a verified item
        contributes 0 to ``size``.
    level
        Coverage, between 0 and 1.
    method
        As above.

    Returns
    -------
    tuple
        Smallest count, largest count, and the method used.

    Examples
    --------
    >>> stratified_bounds([(2500, 50, 0, 0)] * 4, method="bonferroni")
    (0, 952, 'bonferroni')
    >>> stratified_bounds([(2500, 50, 0, 0)] * 4)
    (0, 182, 'pooled')

    References
    ----------
    Hoeffding, "On the distribution of the number of successes in independent trials", Annals of Mathematical Statistics
    1956, theorem 4; Hoeffding, JASA 1963, theorem 1, for the bound by the relative entropy; Vatutin & Mikhailov, Theory of
    Probability and its Applications 1982, for the hypergeometric distribution as that of a sum of independent indicators.
    """
    check_level(level)
    if method != "exact" and method not in _BOUNDS:
        raise ValueError(f"method should be exact, {', '.join(_BOUNDS)}, got {method!r}")
    for size, verified, certain, possible in strata:
        if not 0 <= certain <= possible <= verified <= size:
            raise ValueError(
                f"expected 0 <= certain <= possible <= verified <= size, got {certain}, {possible}, {verified} and {size}"
            )
    sure = [row for row in strata if row[1] in (0, row[0])]  # nothing to infer: known to the last item, or not at all
    sampled = [row for row in strata if row not in sure]
    low = sum(certain for _, _, certain, _ in sure)
    high = sum(possible if verified else size for size, verified, _, possible in sure)
    if not sampled:
        return low, high, "census"
    lows = [(size, verified, certain) for size, verified, certain, _ in sampled]
    highs = [(size, verified, possible) for size, verified, _, possible in sampled]
    if method == "exact":
        one_each = [(size, verified, 1) for size, verified, _ in lows]
        method = min(_BOUNDS, key=lambda name: _BOUNDS[name](one_each, level)[1])
    bounds = _BOUNDS[method]
    return low + bounds(lows, level)[0], high + bounds(highs, level)[1], method


def _bonferroni(strata: Sequence[Sampled], level: float) -> tuple[int, int]:
    tail = (1 - level) / 2 / len(strata)
    bounds = [_hypergeometric_bounds(*row, tail) for row in strata]
    return sum(low for low, _ in bounds), sum(high for _, high in bounds)


def _pooled(strata: Sequence[Sampled], level: float) -> tuple[int, int]:
    tail = (1 - level) / 2
    shares = [verified / size for size, verified, _ in strata]
    f_min, f_max = min(shares), max(shares)
    size, drawn, found = (sum(column) for column in zip(*strata, strict=True))

    def at_most_found(count: int) -> float:
        """Bound on the probability of so few successes, were there ``count`` in all."""
        if f_min * count < found + 1:
            return 1.0
        return float(min(bdtr(found, count, f_min), bdtr(found, drawn, min(f_min * count / drawn, 1.0))))

    def at_least_found(count: int) -> float:
        if f_max * count > found - 1:
            return 1.0
        few = bdtrc(found - 1, count, f_max) if count >= found else 0.0
        return float(min(few, bdtrc(found - 1, drawn, f_max * count / drawn)))

    least, most = found, size - drawn + found
    low = _first(lambda count: at_least_found(count) > tail, least, most)
    high = _first(lambda count: at_most_found(count) <= tail, least, most + 1) - 1
    return low, max(high, low)


def _weighted(strata: Sequence[Sampled], level: float) -> tuple[int, int]:
    f_min = min(verified / size for size, verified, _ in strata)
    weight = sum(found * size * f_min / verified for size, verified, found in strata)
    size, drawn, found = (sum(column) for column in zip(*strata, strict=True))

    def excluded(count: int) -> bool:
        share = weight / count
        if share >= f_min:
            return False
        return float(count * (rel_entr(share, f_min) + rel_entr(1 - share, 1 - f_min))) >= -math.log((1 - level) / 2)

    most = size - drawn + found
    low, _ = _pooled(strata, level)
    return low, max(_first(excluded, max(found, 1), most + 1) - 1, low)


_BOUNDS: dict[Method, Callable[[Sequence[Sampled], float], tuple[int, int]]] = {
    "bonferroni": _bonferroni,
    "pooled": _pooled,
    "weighted": _weighted,
}


def _first(true_from: Callable[[int], bool], low: int, high: int) -> int:
    """Smallest integer from ``low`` for which the (from somewhere on true) condition holds; ``high`` if none before it."""
    while low < high:
        middle = (low + high) // 2
        if true_from(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _log_choose(n: int, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)


def check_level(level: float) -> None:
    """Refuse a level of confidence that is none."""
    if not 0 < level < 1:
        raise ValueError(f"level should be between 0 and 1, for example 0.95, got {level}")
