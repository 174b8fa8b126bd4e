"""From scores to decisions: p-values and false-discovery control, and the thresholds of the audit paper.

``fdr``: the largest list whose expected share of false alarms is bounded. ``fixed``: a number. ``matched``: as many as
another descriptor retrieved. ``gap``: where the scores of copies part from the scores of merely similar clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .search import DoubleArray

GAP_LEVEL = 0.01  # chance that spacings of a tail without copies show a gap
FALLBACK_QUANTILE = 0.99
MIN_SCORES = 20
MIN_SCALE = 2e-4  # scores of a real set spread by ten times this; ties must not turn a hair into a gap


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it comes from.

    Attributes
    ----------
    tau
        Scores at or above it are flagged.
    rule
        ``fdr``, ``fixed``, ``matched`` or ``gap``.
    separated
        False if the scores show no gap; tau is then a fallback, and what it flags is a list to look at, not a finding.
    explanation
        One sentence for the report.
    """

    tau: float
    rule: str
    separated: bool
    explanation: str


def fixed_threshold(tau: float) -> Threshold:
    """A threshold given by the user."""
    if not np.isfinite(tau):
        raise ValueError(f"tau should be a finite number, got {tau!r}")
    return Threshold(float(tau), "fixed", True, f"tau = {tau:g} was given.")


def matched_threshold(scores: DoubleArray, count: int) -> Threshold:
    """The threshold that flags ``count`` of the scores, as the paper matches its CLAP threshold to its mel threshold.

    It lies midway between the last score in and the first one out; where those are equal, fewer are flagged.

    Examples
    --------
    >>> matched_threshold(np.array([0.9, 0.5, 0.3]), 1).tau
    0.7
    """
    if not 0 <= count <= len(scores):
        raise ValueError(f"expected a count from 0 to {len(scores)}, got {count}")
    ordered = np.sort(scores)[::-1]
    if count == 0:
        tau = np.nextafter(ordered[0], np.inf) if len(ordered) else 0.0
    elif count == len(ordered):
        tau = ordered[-1]
    else:
        tau = (ordered[count - 1] + ordered[count]) / 2
        if ordered[count - 1] == ordered[count]:
            tau = np.nextafter(tau, np.inf)
    return Threshold(float(tau), "matched", True, f"tau retrieves as many as the other descriptor did ({count}).")


def gap_threshold(generated: DoubleArray, training: DoubleArray) -> Threshold:
    """The threshold in the gap between two histograms of top-1 scores, generated-to-training and training-to-training.

    Rule. Where nothing is copied, the upper tail of top-1 scores falls off about exponentially, and for sorted scores
    ``x_1 >= x_2 >= ...`` of an exponential tail of scale theta the weighted spacings ``i (x_i - x_{i+1})`` are
    independent and exponential with scale theta (Renyi's representation). theta is estimated from the body of the
    training scores, ``(q75 - q50) / ln 2``, which copies of less than a quarter of the clips do not touch. The gap is the
    largest weighted spacing of the pooled scores above the training median; it counts as a separation if
    m spacings of such a tail would show one as large with probability at most 1 %, and if it is at least half theta wide. tau
    is its middle.

    Without a separation tau falls back to the 99 % quantile of the training scores.

    Parameters
    ----------
    generated
        (n,) top-1 scores of the generated clips against the training clips; may be empty (deduplication).
    training
        (m,) top-1 scores of the training clips against each other, self excluded.

    Raises
    ------
    ValueError
        Fewer than 20 training scores.

    Examples
    --------
    >>> training = 0.45 + 0.01 * np.log(np.arange(1, 101))
    >>> rule = gap_threshold(np.array([0.46, 0.70]), training)
    >>> rule.separated, round(rule.tau, 2)
    (True, 0.6)

    References
    ----------
    Bralios et al., ICASSP 2024, section 4 (tau read off the two histograms); Renyi 1953 for the spacings.
    """
    if len(training) < MIN_SCORES:
        raise ValueError(
            f"the gap rule needs at least {MIN_SCORES} training clips, got {len(training)}; give --tau a number instead"
        )
    median, upper = np.quantile(training, [0.5, 0.75])
    scale = max(float(upper - median) / np.log(2), MIN_SCALE)
    tail = np.sort(np.concatenate([generated, training]))[::-1]
    tail = tail[tail >= median]
    weighted = np.arange(1, len(tail)) * -np.diff(tail)
    needed = scale * np.log(max(len(weighted), 1) / GAP_LEVEL)
    # a narrow step deep in the body weighs much and separates nothing
    weighted = np.where(-np.diff(tail) >= scale / 2, weighted, 0.0)
    if len(weighted) and weighted.max() > needed:
        place = int(weighted.argmax())
        low, high = float(tail[place + 1]), float(tail[place])
        return Threshold(
            (low + high) / 2,
            "gap",
            True,
            f"tau = {(low + high) / 2:.4f} is the middle of the gap from {low:.4f} to {high:.4f} between the top-1 scores.",
        )
    tau = float(np.quantile(training, FALLBACK_QUANTILE))
    return Threshold(
        tau,
        "gap",
        False,
        f"The histograms do not separate; tau = {tau:.4f} is the {FALLBACK_QUANTILE:.0%} quantile of the clips' own "
        "scores, so what it flags is a list to look at, not a finding.",
    )


def null_from_training(scores: DoubleArray) -> DoubleArray:
    """Null scores from the training set itself: what lies above a gap are its duplicates, not chance.

    Weaker than scores of clips that are known not to be in the training set: generated sound may differ from it in kind.
    """
    heard = scores[np.isfinite(scores)]
    if len(heard) < MIN_SCORES:
        return heard
    gap = gap_threshold(np.zeros(0), heard)
    return heard[heard < gap.tau] if gap.separated else heard


def conformal_p_values(scores: DoubleArray, null: DoubleArray) -> DoubleArray:
    """P-values of scores against the scores of clips that are known to be no copies.

    ``p = (1 + number of null scores >= score) / (1 + n)``: valid without any assumption on the distribution, as long as
    a clip that copies nothing and the null clips are exchangeable.

    Parameters
    ----------
    scores
        (m,) larger is more suspect; NaN (silent clips) gets a p-value of 1.
    null
        (n,) scores of null clips.

    Examples
    --------
    >>> conformal_p_values(np.array([5.0, 1.5]), np.array([1.0, 2.0, 3.0]))
    array([0.25, 0.75])

    References
    ----------
    Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 2023, eq. 2.
    """
    ordered = np.sort(null[np.isfinite(null)])
    at_least = len(ordered) - np.searchsorted(ordered, np.nan_to_num(scores, nan=-np.inf), side="left")
    return np.asarray((1.0 + at_least) / (1.0 + len(ordered)), np.float64)


def benjamini_hochberg(p: DoubleArray, fdr: float) -> npt.NDArray[np.bool_]:
    """Which hypotheses to reject so that the expected share of false ones among them is at most ``fdr``.

    With sorted p-values, all up to the largest k with ``p_k <= fdr k / m``. Holds for independent p-values and for
    conformal ones that share a null set.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.5]), 0.1)
    array([ True,  True, False])

    References
    ----------
    Benjamini and Hochberg 1995; Bates et al. 2023, theorem 2, for conformal p-values.
    """
    if not 0 < fdr < 1:
        raise ValueError(f"fdr should be between 0 and 1, got {fdr}")
    m = len(p)
    order = np.argsort(p, kind="stable")
    passing = np.flatnonzero(p[order] <= fdr * np.arange(1, m + 1) / max(m, 1))
    rejected = np.zeros(m, np.bool_)
    if len(passing):
        rejected[p <= p[order[passing[-1]]]] = True
    return rejected


def fdr_threshold(scores: DoubleArray, null: DoubleArray, fdr: float) -> Threshold:
    """The threshold that flags what :func:`benjamini_hochberg` rejects on conformal p-values.

    Says so where there are too few null clips: the smallest p-value is ``1 / (n + 1)``, so to flag a single one of m
    clips takes ``n >= m / fdr - 1``, and fewer suffice only if several clips are copies.
    """
    scores, null = scores[np.isfinite(scores)], null[np.isfinite(null)]  # a silent clip is no hypothesis
    p = conformal_p_values(scores, null)
    flagged = benjamini_hochberg(p, fdr)
    n, m = len(null), len(scores)
    needed = int(np.ceil(m / fdr)) - 1
    enough = ""
    if n < needed:
        least = int(np.ceil(m / (fdr * (n + 1))))
        few = f"cannot tell fewer than {least:,} copies among {m:,} clips" if least <= m else "are too few to flag anything"
        enough = f" {n:,} null scores {few} at this level; {needed:,} could tell a single one."
    if flagged.any():
        allowed = round(p[flagged].max() * (n + 1)) - 1  # null scores at or above tau: equal p-values are flagged alike
        tau = float(np.nextafter(np.sort(null)[::-1][allowed], np.inf))
        what = f"Of what is flagged, at most {fdr:.0%} are expected to be false alarms: scores from {tau:.2f} on."
    else:
        top = float(np.concatenate([scores, null, [0.0]]).max())
        tau = float(np.nextafter(top, np.inf))
        what = f"By their scores, no clips can be flagged with at most {fdr:.0%} false alarms expected."
    return Threshold(tau, "fdr", bool(flagged.any()) or n >= needed, what + enough)
