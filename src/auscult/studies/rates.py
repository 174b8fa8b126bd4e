"""Rates of several models, with intervals that know that clips of one model resemble each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu
from scipy.stats import t as student

from ..metrics.intervals import share_interval

INTERVAL = (
    "Intervals are of 95 %: Clopper and Pearson's, for that number of independent prompts whose rate would vary as much as the "
    "rates of the models do (Korn and Graubard, with Student's t for few models), and never for more than there are: clips of "
    "one prompt stand or fall together. Where all clips agree, there is no variation to see, and every prompt of every model "
    "counts as independent, which they are not quite: they share a model's weights."
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
