"""From verdicts to rates: how many of the generated clips replicate a training clip, as far as people have looked.

Flagged clips are few and are usually all verified. Of the others a random sample is verified, stratum by stratum of score.
Together they estimate the rate among all generated clips; without the sample the flagged ones give a lower bound only.

The rate is that of the audited clips, a finite population: once all are verified, no doubt is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .intervals import check_level, hypergeometric_bounds, stratified_bounds

Interval = Literal["exact", "bonferroni", "pooled", "weighted", "bootstrap"]
PER = 10_000


@dataclass(frozen=True)
class Tally:
    """A stratum of generated clips, and what verifying some of them gave.

    Attributes
    ----------
    name
        For the explanation.
    size
        Clips in the stratum.
    verified
        Of these, clips with a verdict that counts here, ``unsure`` among them.
    replications, unsure
        Of the verified.
    random
        Whether the verified clips are a random sample of the stratum. Clips verified from the highest score down are not.
    """

    name: str
    size: int
    verified: int = 0
    replications: int = 0
    unsure: int = 0
    random: bool = True

    def __post_init__(self) -> None:
        if min(self.replications, self.unsure) < 0 or not self.replications + self.unsure <= self.verified <= self.size:
            raise ValueError(
                f"{self.name}: expected replications + unsure <= verified <= size, got {self.replications} + {self.unsure}, "
                f"{self.verified} and {self.size}"
            )

    @property
    def census(self) -> bool:
        """All are verified."""
        return self.verified == self.size

    @property
    def sampled(self) -> bool:
        """What is verified tells of the rest."""
        return self.random and 0 < self.verified < self.size


@dataclass(frozen=True)
class Rate:
    """The verified replication rate of a set of generated clips.

    Attributes
    ----------
    per_10_000
        Replications per 10,000 clips: the estimate, or, with ``at_least``, what is certain plus what samples tell.
    low, high
        Interval, per 10,000.
    level
        Its coverage.
    interval
        How it was made: ``bonferroni``, ``pooled``, ``weighted``, ``bootstrap``, or ``census`` where nothing was inferred.
    clips, verified, replications, unsure
        Counts over all strata.
    at_least
        True if part of the clips was neither verified nor sampled: the rate is a lower bound.
    tallies
        The strata.
    explanation
        How it was computed, and what to know about it, for a report.
    sentence
        The result in one sentence.
    """

    per_10_000: float
    low: float
    high: float
    level: float
    interval: str
    clips: int
    verified: int
    replications: int
    unsure: int
    at_least: bool
    tallies: tuple[Tally, ...]
    explanation: str
    sentence: str


def stratified_rate(
    tallies: Sequence[Tally],
    *,
    extra: int = 0,
    level: float = 0.95,
    interval: Interval = "exact",
    resamples: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Rate:
    """Estimate the replication rate from verified strata.

    For strata of ``N_h`` clips, of which ``n_h`` random ones are verified and ``x_h`` replicate, the estimate is
    ``10,000 * sum(N_h x_h / n_h) / sum(N_h)``. Unsure verdicts stay in ``n_h`` and out of ``x_h``; the lower bound counts
    them as no, the upper as yes. A stratum that is wholly verified has no sampling error. One of which no random part is
    verified adds what is known of it to the estimate and to the lower bound, and everything not refuted to the upper.

    Parameters
    ----------
    tallies
        Strata; together all the clips that the rate is about.
    extra
        Replications found in sampled strata by looking beyond the sample: facts that the bounds take in.
    level
        Coverage of the interval, between 0 and 1.
    interval
        ``exact``, ``bonferroni``, ``pooled`` or ``weighted``: :func:`~auscult.review.intervals.stratified_bounds`, which
        cover with at least ``level`` whatever the truth. ``bootstrap``: percentiles over samples drawn again from a population
        in which each stratum's sample is repeated ``N_h / n_h`` times. It is narrower where replications are frequent, and
        **wrong where they are rare: a sample without replications gives an interval of width 0**, whatever its size.
    resamples, seed
        Of the bootstrap.
    notes
        Sentences to put at the end of the explanation.

    Raises
    ------
    ValueError
        No clips, or an argument out of range.

    Examples
    --------
    >>> rate = stratified_rate([Tally("flagged", 178, 178, 31), Tally("others", 9822, 400, 1)])
    >>> round(rate.per_10_000, 1), round(rate.low, 1), round(rate.high, 1)
    (55.6, 32.0, 164.0)
    >>> stratified_rate([Tally("flagged", 178, 178, 31), Tally("others", 9822)]).sentence
    'At least 31 per 10,000 generated clips replicate a training clip: 31 replications among the 178 verified of 10,000 clips.'

    References
    ----------
    Cochran, Sampling Techniques, 1977, chapter 5; Gross, "Median estimation in sample surveys", 1980, for the bootstrap.
    """
    check_level(level)
    if interval not in {"exact", "bonferroni", "pooled", "weighted", "bootstrap"}:
        raise ValueError(f"interval should be exact, bonferroni, pooled, weighted or bootstrap, got {interval!r}")
    clips = sum(tally.size for tally in tallies)
    if not clips:
        raise ValueError("expected at least one generated clip to take a rate of, got none")
    sampled = [tally for tally in tallies if tally.sampled]
    if not 0 <= extra <= sum(tally.size - tally.verified for tally in sampled):
        raise ValueError(f"extra should count replications in sampled strata beyond their samples, got {extra}")
    others = [tally for tally in tallies if not tally.sampled]
    if interval == "bootstrap" and sampled:
        low, high, method = *_bootstrap(sampled, level, resamples, seed), "bootstrap"
    else:
        rows = [(t.size, t.verified, t.replications, t.replications + t.unsure) for t in sampled]
        low, high, method = stratified_bounds(rows, level=level, method="exact" if interval == "bootstrap" else interval)
    seen = sum(tally.replications for tally in sampled) + extra
    point = max(sum(tally.size * tally.replications / tally.verified for tally in sampled), seen)
    certain = sum(tally.replications for tally in others)
    refuted = sum(tally.verified - tally.replications - tally.unsure for tally in others)
    low, high = max(low, seen) + certain, max(high, point) + sum(tally.size for tally in others) - refuted
    counts = {name: sum(getattr(tally, name) for tally in tallies) for name in ("verified", "replications", "unsure")}
    counts["replications"] += extra
    counts["verified"] += extra
    at_least = any(not tally.census for tally in others)
    scale = PER / clips
    return Rate(
        per_10_000=(point + certain) * scale,
        low=low * scale,
        high=min(high, clips) * scale,
        level=level,
        interval=method,
        clips=clips,
        **counts,
        at_least=at_least,
        tallies=tuple(tallies),
        explanation=" ".join([*_explain(tallies, method, level), *notes]),
        sentence=_sentence(clips, counts, (point + certain) * scale, low * scale, high * scale, at_least, bool(sampled), level),
    )


def _bootstrap(sampled: Sequence[Tally], level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentiles of the estimated count; unsure verdicts as no for the lower, as yes for the upper."""
    rng = np.random.default_rng(seed)
    ends = []
    for unsure_counts, quantile in ((0, (1 - level) / 2), (1, (1 + level) / 2)):
        total = np.zeros(resamples)
        for tally in sampled:
            found = tally.replications + unsure_counts * tally.unsure
            # the pseudo-population: the sample repeated; a fraction of a repetition is rounded at random
            marked = np.floor(tally.size * found / tally.verified + rng.random(resamples)).astype(np.int64)
            marked = np.minimum(marked, tally.size)
            total += rng.hypergeometric(marked, tally.size - marked, tally.verified) * tally.size / tally.verified
        ends.append(float(np.quantile(total, quantile)))
    return ends[0], ends[1]


_METHODS = {
    "census": "Every count is of clips that were verified; nothing was inferred from a sample.",
    "bonferroni": "The {level:.0%} interval adds up exact hypergeometric bounds of the strata, their errors split evenly "
    "(Bonferroni).",
    "pooled": "The {level:.0%} interval bounds the sum of the replications found in all strata by binomial distributions; it "
    "covers whatever the strata hold.",
    "weighted": "The {level:.0%} interval bounds the estimate itself (Hoeffding); it covers whatever the strata hold.",
    "bootstrap": "The {level:.0%} interval is a bootstrap, which is too narrow where replications are rare, and has no "
    "width where none was found.",
}


def _explain(tallies: Sequence[Tally], method: str, level: float) -> list[str]:
    lines = [_METHODS[method].format(level=level)]
    for tally in tallies:
        rest = tally.size - tally.verified
        if tally.census or tally.sampled:
            continue
        if not tally.verified:
            lines.append(f"{tally.name}: none of the {tally.size:,} clips was verified; they add 0 to {rest:,} to the bounds.")
        else:
            lines.append(
                f"{tally.name}: {tally.verified:,} of {tally.size:,} clips were verified, not at random, so they say nothing "
                f"of the other {rest:,}, which add 0 to {rest:,} to the bounds."
            )
    if unsure := sum(tally.unsure for tally in tallies):
        lines.append(f"{unsure:,} unsure {_verdicts(unsure)} no in the estimate and the lower bound, as yes in the upper.")
    return lines


def _verdicts(count: int) -> str:
    return "verdict counts as" if count == 1 else "verdicts count as"


def _sentence(
    clips: int, counts: Mapping[str, int], point: float, low: float, high: float, at_least: bool, inferred: bool, level: float
) -> str:
    if not counts["verified"]:
        return f"None of the {clips:,} generated clips is verified yet, so the replication rate is unknown."
    what = "per 10,000 generated clips replicate a training clip"
    found = counts["replications"]
    basis = f"{found:,} replication{'s' * (found != 1)} among the {counts['verified']:,} verified of {clips:,} clips"
    if at_least and not low:
        return (
            f"No replication was found among the {counts['verified']:,} verified of {clips:,} generated clips; part of the "
            "others was not sampled, so their rate is unknown."
        )
    if at_least:
        return f"At least {_number(low)} {what}{f' ({level:.0%} confidence)' * inferred}: {basis}."
    if counts["verified"] == clips and not counts["unsure"]:
        return f"{_number(point)} {what}: {basis}."
    return f"An estimated {_number(point)} {what} ({level:.0%} interval {_number(low)} to {_number(high)}): {basis}."


def _number(value: float) -> str:
    """Three digits are more than the data bear."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def needed(half_width: float, expected: float, population: int, *, level: float = 0.95) -> int:
    """How many random clips to verify so that the exact interval of the rate is as narrow as wanted.

    Parameters
    ----------
    half_width
        Half the width of the interval, in replications per 10,000 clips.
    expected
        Rate that is expected, per 10,000.
    population
        Clips to draw from: those that are not flagged, say. The sample is a simple random one; of a stratified one the
        smallest share ``verified / size`` of a stratum counts, so where nothing is found it has to be that much larger.
    level
        Coverage.

    Returns
    -------
    int
        Number of clips, at most ``population``; with it, and the expected number of replications rounded up among them,
        the interval is at most twice ``half_width`` wide. It may exceed the smallest such number by what
        one replication more or less makes.

    Examples
    --------
    >>> needed(50, 10, 10_000)
    532

    Raises
    ------
    ValueError
        An argument out of range.
    """
    if not half_width > 0 or not 0 <= expected <= PER or population < 1:
        raise ValueError(
            f"expected half_width > 0, 0 <= expected <= {PER:,} and population >= 1, got {half_width}, {expected}, {population}"
        )
    low, high = 0, population  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        found = min(int(np.ceil(middle * expected / PER - 1e-9)), middle)
        least, most = hypergeometric_bounds(population, middle, found, level=level)
        if (most - least) * PER / population <= 2 * half_width:
            high = middle
        else:
            low = middle
    return high
