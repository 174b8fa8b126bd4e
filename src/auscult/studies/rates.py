"""Rates of several models, with intervals that know that clips of one model resemble each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu
from scipy.stats import t as student

from ..metrics.intervals import share_interval

INTERVAL = (
    "Intervals are of 95 %: Clopper and Pearson's, for that number of independent prompts whose rate would vary as much as the "
    "rates of the models do (Korn and Graubard, with Student's t for few models), and never for more than there are: clips of "
    "one prompt stand or fall together. Where all models agree on 0 or 100 %, there is no variation between them to see, and "
    "every prompt counts as independent. Prompts of one model are not: they share its weights. Of models that copy either "
    "everything or nothing, three may well agree by chance, and the interval then misses the true rate: in up to half of all "
    "studies."
)


@dataclass(frozen=True)
class Rate:
    """A share over several models, with its interval; None: of no clip.

    Attributes
    ----------
    flagged, clips, prompts
        Over all models.
    rate, low, high
        The mean over the models, 0 to 1, and its interval.
    models
        How many.
    """

    flagged: int
    clips: int
    prompts: int
    rate: float | None
    low: float | None
    high: float | None
    models: int


def pooled(counts: Sequence[tuple[int, int, int]]) -> Rate:
    """The mean rate of several models, each of ``(flagged, clips, prompts)``, with its interval (see ``INTERVAL``).

    The variance of the mean of k rates is their sample variance over k, times ``(t / 1.96)^2`` with the 97.5 % quantile t of
    Student's distribution of k - 1 degrees of freedom.

    Examples
    --------
    >>> one, three = pooled([(36, 40, 40)]), pooled([(40, 40, 8), (36, 40, 8), (32, 40, 8)])
    >>> round(one.low, 2), round(one.high, 2), round(three.low, 2), round(three.high, 2)
    (0.76, 0.97, 0.4, 1.0)
    >>> round(pooled([(40, 40, 40)] * 3).low, 2), round(pooled([(40, 40, 8)] * 3).low, 2)
    (0.97, 0.86)

    References
    ----------
    Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from survey
    data", Survey Methodology 24 (1998).
    """
    counts = [one for one in counts if one[1]]
    flagged, clips, prompts = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    if not clips:
        return Rate(0, 0, 0, None, None, None, 0)
    rates = np.array([one / of for one, of, _ in counts])
    variance = 0.0
    if len(rates) > 1:
        variance = float(rates.var(ddof=1)) / len(rates) * float(student.ppf(0.975, len(rates) - 1) / 1.96) ** 2
    found = share_interval(float(rates.mean()), variance, clips=prompts, items=prompts)
    return Rate(flagged, clips, prompts, found.value, found.low, found.high, len(rates))


def percent(share: float | None, none: str = "-") -> str:
    """A share as people say it: small ones are never 0 %. ``none`` is what no share is called.

    Examples
    --------
    >>> percent(0.95), percent(0.005), percent(0.0), percent(None)
    ('95 %', '0.5 %', '0 %', '-')
    """
    if share is None:
        return none
    return f"{100 * share:.2g} %" if 0 < share < 0.095 else f"{100 * share:.0f} %"


def with_interval(rate: Mapping[str, Any]) -> str:
    """A rate as a card holds it, with its interval.

    Examples
    --------
    >>> with_interval({"rate": 0.005, "low": 0.0, "high": 0.03}), with_interval({"rate": None})
    ('0.5 % (0 to 3)', 'not decided')
    """
    if rate["rate"] is None:
        return "not decided"
    return f"{percent(rate['rate'])} ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"


def decimals(values: Iterable[float], digits: int = 3) -> int:
    """With how many decimals the largest of these numbers has so many digits, so that a column can be printed alike.

    Examples
    --------
    >>> decimals([149.2, 8.48]), decimals([0.012, -0.5]), decimals([])
    (0, 3, 2)
    """
    largest = max((abs(value) for value in values), default=0.0)
    return max(0, digits - 1 - (math.floor(math.log10(largest)) if largest else 0))


def sign_flip(changes: Sequence[int]) -> float:
    """Two-sided p-value of the sum of changes, where each could as well have gone the other way.

    All changes of sign are counted, one change after the other: the p-value is exact.

    Examples
    --------
    >>> sign_flip([-5, -5, -5, -5, -5, 0]), sign_flip([2, -2]), sign_flip([])
    (0.0625, 1.0, 1.0)
    """
    sums = np.ones(1)  # the probability of each sum, from the lowest, in steps of 1
    for change in np.abs(np.asarray(changes, np.int64)):
        more = np.zeros(len(sums) + 2 * int(change))
        more[: len(sums)] += sums / 2
        more[2 * int(change) :] += sums / 2
        sums = more
    middle = len(sums) // 2
    return float(sums[np.abs(np.arange(len(sums)) - middle) >= abs(sum(changes))].sum())


def paired_change(models: Sequence[Sequence[tuple[str, bool, bool]] | None]) -> dict[str, Any] | None:
    """What a change of one thing does to the flags of the same clips, with the exact test of :func:`sign_flip`.

    A net change is that of the clips of one prompt of one model, which stand or fall together.

    Parameters
    ----------
    models
        Of each model: prompt of each clip, whether it is flagged before, and whether after; None: that cannot be decided.

    Returns
    -------
    dict
        ``no_longer`` and ``only_now``: clips flagged before alone, and after alone; ``p_value``; ``by_seed``: the net change of
        each model's rate, -1 to 1, None where it has no clip or is undecided. None where all are.

    Examples
    --------
    >>> found = paired_change([[("a", True, False), ("a", True, True), ("b", True, False)], None])
    >>> found["no_longer"], found["only_now"], found["p_value"], [net and round(net, 2) for net in found["by_seed"]]
    (2, 0, 0.5, [-0.67, None])
    """
    changes: list[int] = []
    nets: list[float | None] = []
    for clips in models:
        of_prompts: Counter[str] = Counter()
        for prompt, before, after in clips or ():
            of_prompts[prompt] += after - before
        changes += of_prompts.values()
        nets.append(sum(of_prompts.values()) / len(clips) if clips else None)
    if not changes:
        return None
    flags = [(before, after) for clips in models for _, before, after in clips or ()]
    return {
        "no_longer": flags.count((True, False)),
        "only_now": flags.count((False, True)),
        "p_value": sign_flip(changes),
        "by_seed": nets,
    }


def separation(high: npt.NDArray[np.float64], low: npt.NDArray[np.float64]) -> float | None:
    """Probability that a score of the first set is above one of the second (area under the ROC curve; equal ones count half).

    Examples
    --------
    >>> separation(np.array([3.0, 4.0]), np.array([1.0, 2.0])), separation(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    (1.0, 0.5)
    """
    if not len(high) or not len(low):
        return None
    return float(mannwhitneyu(high, low).statistic / (len(high) * len(low)))
