"""From scores to decisions: the thresholds of the audit paper.

``fixed``: a number. ``matched``: as many as another descriptor retrieved. ``gap``: where the scores of copies part from
the scores of merely similar clips, judged by the spacing of the sorted scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
        ``fixed``, ``matched`` or ``gap``.
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
    m spacings of such a tail would show one as large with probability at most 1 %. tau is its middle.

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
        f"The histograms do not separate; tau = {tau:.4f} is the {FALLBACK_QUANTILE:.0%} quantile of the training clips' own "
        "scores, so what it flags is a list to look at, not a finding.",
    )
