"""How far reviewers agree with each other (Cohen's kappa), and with pairs whose truth is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import ndtri

from .intervals import Share, check_level, share

DoubleArray = npt.NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Kappa:
    """Agreement of two reviewers beyond chance.

    Attributes
    ----------
    kappa
        1: they always agree; 0: as often as chance would; below: less often.
    low, high
        Interval at ``level``, made by ``interval``.
    standard_error
        Asymptotic.
    observed, expected
        Shares of pairs on which they agree, and on which they would if they decided independently, each as often for each
        verdict as they did.
    pairs
        Pairs that both decided.
    """

    kappa: float
    low: float
    high: float
    standard_error: float
    observed: float
    expected: float
    pairs: int
    level: float
    interval: str


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    level: float = 0.95,
    interval: Literal["bootstrap", "asymptotic"] = "bootstrap",
    seed: int = 0,
) -> Kappa:
    """Cohen's kappa of two reviewers' verdicts on the same pairs: ``(observed - expected) / (1 - expected)``.

    Parameters
    ----------
    first, second
        (n,) labels of the two reviewers, in the same order of pairs. Each label is a category by itself.
    level
        Coverage of the interval, between 0 and 1.
    interval
        ``bootstrap``: percentiles over samples of n pairs drawn again with replacement. The default, because replications are
        rare among what is reviewed, kappa is then skewed, and this interval stays within -1 and 1. ``asymptotic``: kappa plus
        and minus a normal quantile of its standard error; good from about a hundred pairs with frequent categories.
        **Both have width 0 if the reviewers never disagree**, however few pairs that were; quote ``pairs`` with them.
    seed
        Of the bootstrap.

    Raises
    ------
    ValueError
        No pairs, unequal lengths, or kappa is undefined because both gave one and the same verdict to all pairs.

    Examples
    --------
    >>> result = cohen_kappa(["a"] * 25 + ["b"] * 25, ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15)
    >>> round(result.kappa, 3), result.observed, result.expected
    (0.4, 0.7, 0.5)

    References
    ----------
    Cohen, Educational and Psychological Measurement 1960; Fleiss, Cohen & Everitt, Psychological Bulletin 1969, for the
    standard error when kappa is not 0.
    """
    check_level(level)
    if interval not in {"bootstrap", "asymptotic"}:
        raise ValueError(f"interval should be bootstrap or asymptotic, got {interval!r}")
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected two equally long, not empty lists of verdicts, got {len(first)} and {len(second)}")
    codes = {label: code for code, label in enumerate(dict.fromkeys([*first, *second]))}
    if len(codes) == 1:
        raise ValueError(
            f"kappa is undefined: both gave the verdict {next(iter(codes))!r} to all {len(first)} pairs, so chance would "
            "agree, too; quote the number of pairs, or review some of another kind"
        )
    counts = np.zeros((len(codes), len(codes)))
    np.add.at(counts, ([codes[label] for label in first], [codes[label] for label in second]), 1)
    table = counts / counts.sum()
    observed, expected = (float(value) for value in _shares(table))
    kappa = (observed - expected) / (1 - expected)
    error = _standard_error(table, kappa, expected, len(first))
    if interval == "asymptotic":
        reach = float(ndtri((1 + level) / 2)) * error
        low, high = kappa - reach, kappa + reach
    else:
        low, high = _bootstrap(table, len(first), level, seed)
    return Kappa(kappa, low, high, error, observed, expected, len(first), level, interval)


def _shares(table: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Observed and expected agreement of contingency tables (..., k, k) that sum to 1."""
    observed = np.trace(table, axis1=-2, axis2=-1)
    return observed, (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1)


def _standard_error(table: DoubleArray, kappa: float, expected: float, n: int) -> float:
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    agreeing = (np.diag(table) * (1 - (rows + columns) * (1 - kappa)) ** 2).sum()
    apart = table * (columns[:, None] + rows[None, :]) ** 2
    disagreeing = (1 - kappa) ** 2 * (apart.sum() - np.trace(apart))
    variance = (agreeing + disagreeing - (kappa - expected * (1 - kappa)) ** 2) / (n * (1 - expected) ** 2)
    return float(np.sqrt(max(variance, 0.0)))  # rounding can leave a hair below 0 where they always agree


def _bootstrap(table: DoubleArray, n: int, level: float, seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).multinomial(n, table.ravel(), size=RESAMPLES).reshape(RESAMPLES, *table.shape) / n
    observed, expected = _shares(drawn)
    defined = expected < 1 - 1e-12  # a sample in which both give one verdict to all has no kappa
    kappa = (observed[defined] - expected[defined]) / (1 - expected[defined])
    low, high = np.quantile(kappa, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Agreement:
    """Two reviewers: ``pairs`` that both decided, ``agreed`` of them alike; ``kappa`` is None where it is undefined."""

    first: str
    second: str
    pairs: int
    agreed: int
    kappa: Kappa | None


def agreement(
    verdicts: pa.Table,
    *,
    exclude: Collection[str] = (),
    replication_only: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> list[Agreement]:
    """Agreement of every two reviewers on the pairs that both decided.

    Parameters
    ----------
    verdicts
        ``pair_id, reviewer, verdict``, one row for each reviewer's verdict on a pair (``VerdictStore.latest``).
    exclude
        Pair ids to leave out: controls, which are easier than what the audit lists.
    replication_only
        Compare ``replication`` against everything else, which is what a rate depends on; else all four verdicts.
    level, seed
        As in :func:`cohen_kappa`.

    Returns
    -------
    list of Agreement
        By the reviewers' names; two without a pair in common are not listed.

    Raises
    ------
    ValueError
        A reviewer has two verdicts on a pair.
    """
    decided: dict[str, dict[str, Hashable]] = defaultdict(dict)
    for pair, reviewer, verdict in zip(*(verdicts[c].to_pylist() for c in ("pair_id", "reviewer", "verdict")), strict=True):
        if pair in decided[reviewer]:
            raise ValueError(f"{reviewer} has two verdicts on pair {pair}; pass the latest only (VerdictStore.latest)")
        if pair not in exclude:
            decided[reviewer][pair] = verdict == "replication" if replication_only else verdict
    found = []
    for first, second in combinations(sorted(decided), 2):
        common = sorted(decided[first].keys() & decided[second].keys())
        mine, theirs = ([decided[reviewer][pair] for pair in common] for reviewer in (first, second))
        if common:
            agreed = sum(one == other for one, other in zip(mine, theirs, strict=True))
            kappa = cohen_kappa(mine, theirs, level=level, seed=seed) if len({*mine, *theirs}) > 1 else None
            found.append(Agreement(first, second, len(common), agreed, kappa))
    return found


@dataclass(frozen=True)
class ControlResult:
    """How a reviewer did on pairs whose truth is known.

    ``sensitivity``: share of known copies that were judged ``replication``; ``specificity``: share of known non-copies that
    were judged ``similar`` or ``different``. Unsure verdicts are failures of both, and successes in the upper bounds. None
    where no such control was decided. ``wrong`` names the control pairs judged falsely, unsure ones left out.
    """

    sensitivity: Share | None
    specificity: Share | None
    wrong: tuple[str, ...]


def against_controls(verdicts: Mapping[str, str], truth: Mapping[str, str], *, level: float = 0.95) -> ControlResult:
    """Compare one reviewer's verdicts with control pairs.

    Parameters
    ----------
    verdicts
        Verdict of each pair by its id; pairs that are no controls do not matter.
    truth
        ``replication`` or ``different`` of each control pair.
    level
        Of the Clopper-Pearson intervals.

    Examples
    --------
    >>> truth = {"a": "replication", "b": "replication", "c": "different"}
    >>> result = against_controls({"a": "replication", "b": "similar"}, truth)
    >>> result.sensitivity.value, result.specificity, result.wrong
    (0.5, None, ('b',))
    """
    if strange := set(truth.values()) - {"replication", "different"}:
        raise ValueError(f"the truth of a control is replication or different, got {sorted(strange)[0]!r}")
    right: dict[str, list[bool]] = {"replication": [], "different": []}
    unsure = dict.fromkeys(right, 0)
    wrong = []
    for pair in sorted(truth.keys() & verdicts.keys()):
        hit = (verdicts[pair] == "replication") == (truth[pair] == "replication") and verdicts[pair] != "unsure"
        right[truth[pair]].append(hit)
        unsure[truth[pair]] += verdicts[pair] == "unsure"
        if not hit and verdicts[pair] != "unsure":
            wrong.append(pair)
    sensitivity, specificity = (
        share(sum(hits), len(hits), unsure=unsure[name], level=level) if hits else None for name, hits in right.items()
    )
    return ControlResult(sensitivity, specificity, tuple(wrong))
