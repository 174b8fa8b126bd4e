"""Rates of several models, with intervals that know that clips of one model resemble each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from ..metrics.intervals import share_interval

INTERVAL = (
    "Intervals are of 95 %: Clopper and Pearson's, for as many independent clips as the rates of the seeds vary like (Korn and "
    "Graubard, with Student's t for few seeds). Where all seeds agree on 0 or 100 %, and with one seed, every clip counts as "
    "independent, which they are not quite: clips of one model share its weights. Where null clips are too few to tell "
    "a few copies, the upper ends include as many as could not be told."
)


@dataclass(frozen=True)
class Flags:
    """How many of how many clips are flagged, with the rate's interval; None: of no clip.

    Attributes
    ----------
    flagged, clips
        Over all models.
    rate, low, high
        The mean over the models, 0 to 1, and its interval.
    models
        How many.
    """

    flagged: int
    clips: int
    rate: float | None
    low: float | None
    high: float | None
    models: int


def pooled(counts: Sequence[tuple[int, int]], unseen: Sequence[int] = ()) -> Flags:
    """The mean rate of several models, each of ``(flagged, clips)``, with its interval (see ``INTERVAL``).

    ``unseen`` are as many clips of each model as could be copies without being flagged, for want of null clips: the upper end
    is that with these flagged; where they are all clips, there is no rate.

    The variance of the mean of k rates is their sample variance over k, times ``(t / 1.96)^2`` with the 97.5 % quantile t of
    Student's distribution of k - 1 degrees of freedom.

    Examples
    --------
    >>> one, three = pooled([(36, 40)]), pooled([(40, 40), (36, 40), (32, 40)])
    >>> round(one.low, 2), round(one.high, 2), round(three.low, 2), round(three.high, 2)
    (0.76, 0.97, 0.4, 1.0)
    >>> round(pooled([(0, 40)]).high, 2), round(pooled([(0, 40)], unseen=[3]).high, 2), pooled([(0, 4)], unseen=[4]).rate
    (0.09, 0.2, None)

    References
    ----------
    Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from survey
    data", Survey Methodology 24 (1998).
    """
    if any(unseen):
        least, most = pooled(counts), pooled([(one + more, of) for (one, of), more in zip(counts, unseen, strict=True)])
        nothing = most.flagged == most.clips and not least.flagged
        return replace(least, rate=None, low=None, high=None) if nothing else replace(least, high=most.high)
    counts = [(flagged, clips) for flagged, clips in counts if clips]
    flagged, clips = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if not clips:
        return Flags(0, 0, None, None, None, 0)
    rates = np.array([one / of for one, of in counts])
    variance = 0.0
    if len(rates) > 1:
        variance = float(rates.var(ddof=1)) / len(rates) * float(student.ppf(0.975, len(rates) - 1) / 1.96) ** 2
    found = share_interval(float(rates.mean()), variance, clips=clips, items=clips)
    return Flags(flagged, clips, found.value, found.low, found.high, len(rates))
