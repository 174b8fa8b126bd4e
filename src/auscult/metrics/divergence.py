"""What a classifier hears: divergence between paired clips (KL, both published directions) and inception score (IS).

Rows are clips in one canonical order: the same row of both sets is a pair, and the seeded splits of the inception score follow
the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .frames import GENERATED, REFERENCE, FloatArray, checked_features
from .intervals import FEWEST, RESAMPLES, Interval, mean_interval, resampled_counts, spread_interval

__all__ = ["Inception", "evaluate", "inception_score", "kl_per_pair", "sigmoid", "softmax", "validate"]

Direction = Literal["reference_to_generated", "generated_to_reference"]
Link = Literal["softmax", "sigmoid"]

EPSILON = 1e-6  # as published, added to probabilities
SPLITS = 10
BLOCK_CLIPS = 4096  # at once: 35 MB of 527 classes, in float64 and for yes and no


def softmax(logits: npt.ArrayLike) -> FloatArray:
    """Probabilities of classes that exclude each other: (n, classes), each row summing to 1.

    Examples
    --------
    >>> softmax([[0.0, np.log(3.0)]]).round(6).tolist()
    [[0.25, 0.75]]
    """
    return np.exp(_log_softmax(np.asarray(logits, np.float64)))


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def sigmoid(logits: npt.ArrayLike) -> FloatArray:
    """Probability of each class on its own: (n, classes) in [0, 1].

    Examples
    --------
    >>> sigmoid([[0.0, np.log(3.0), -1000.0]]).round(6).tolist()
    [[0.5, 0.75, 0.0]]
    """
    values = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(values))  # never overflows
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def validate(reference_logits: npt.ArrayLike, generated_logits: npt.ArrayLike) -> None:
    """Refuse logits that are no pairs.

    Raises
    ------
    ValueError
        Values that are not finite, different numbers of clips or of classes, a single class, no clip.

    Examples
    --------
    >>> validate(np.zeros((3, 527)), np.zeros((2, 527)))
    Traceback (most recent call last):
    ValueError: KL compares pairs: expected as many reference as generated clips, got 3 and 2; pair them by a manifest, and
    leave out what has no partner
    """
    reference, generated = (checked_features(x, y) for x, y in ((reference_logits, REFERENCE), (generated_logits, GENERATED)))
    if reference.shape[1] != generated.shape[1]:
        raise ValueError(
            f"generated logits have {generated.shape[1]} classes, the reference {reference.shape[1]}: "
            "take logits of the same classifier"
        )
    if len(reference) != len(generated):
        raise ValueError(
            f"KL compares pairs: expected as many reference as generated clips, got {len(reference)} and {len(generated)}; "
            "pair them by a manifest, and leave out what has no partner"
        )
    _check_classes(generated)


def _check_classes(logits: npt.NDArray[np.floating]) -> None:
    if len(logits) == 0 or logits.shape[1] < 2:
        raise ValueError(f"expected logits of at least 1 clip and 2 classes, got shape {logits.shape}")


def kl_per_pair(
    reference_logits: npt.ArrayLike,
    generated_logits: npt.ArrayLike,
    *,
    direction: Direction = "reference_to_generated",
    link: Link = "softmax",
    epsilon: float = EPSILON,
) -> FloatArray:
    """Kullback-Leibler divergence of each pair's class probabilities, in nats.

    ``KL(p || q) = sum_c p_c log(p_c / q_c)``, p of the reference and q of the generated clip for ``reference_to_generated``
    (AudioLDM's evaluation), the other way round for ``generated_to_reference`` (Stable Audio's). The two differ, and by far:
    numbers of different directions or classifiers do not compare.

    The published codes add 1e-6 to q alone, so that identical clips score ``-1e-6`` times the number of classes. Here both are
    smoothed, ``(p + e) / (1 + e classes)``: identical clips score exactly 0, others at least 0. Of 527 classes
    the published values differ a little. ``epsilon=0`` smooths nothing.

    Parameters
    ----------
    reference_logits, generated_logits
        (n, classes) before softmax or sigmoid, row i of both the same prompt.
    direction
        Which distribution weighs the logarithms.
    link
        "softmax" is the usual score. "sigmoid" takes each class for a question of its own, as AudioSet's labels are, and sums
        over the classes ``p log(p / q) + (1 - p) log((1 - p) / (1 - q))``. The published sigmoid variant leaves out the second
        term: that is no divergence, may be negative, and is not computed here.
    epsilon
        At least 0.

    Returns
    -------
    array
        (n,) at least 0.

    Raises
    ------
    ValueError
        See :func:`validate`; a direction or link of another name, a negative epsilon.

    Examples
    --------
    >>> even, odd = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> kl_per_pair(even, odd, epsilon=0).round(6).tolist()  # (log 2 + log 2/3) / 2
    [0.143841]
    >>> kl_per_pair(even, odd, direction="generated_to_reference", epsilon=0).round(6).tolist()
    [0.130812]
    """
    validate(reference_logits, generated_logits)
    if epsilon < 0:
        raise ValueError(f"epsilon should be at least 0, got {epsilon}")
    if direction not in ("reference_to_generated", "generated_to_reference"):
        raise ValueError(f"direction should be 'reference_to_generated' or 'generated_to_reference', got {direction!r}")
    if link not in ("softmax", "sigmoid"):
        raise ValueError(f"link should be 'softmax' or 'sigmoid', got {link!r}")
    reference, generated = np.asarray(reference_logits), np.asarray(generated_logits)
    p, q = (reference, generated) if direction == "reference_to_generated" else (generated, reference)
    result = np.empty(len(p))
    for start in range(0, len(p), BLOCK_CLIPS):
        here = slice(start, start + BLOCK_CLIPS)
        log_p, log_q = (_log_probabilities(logits[here].astype(np.float64), link, epsilon) for logits in (p, q))
        result[here] = np.sum(np.exp(log_p) * (log_p - log_q), axis=(1, 2))
    return np.maximum(result, 0)


def _log_probabilities(logits: FloatArray, link: Link, epsilon: float) -> FloatArray:
    """(n, questions, answers): one question of many answers for softmax, many of yes and no for sigmoid."""
    asked = logits[:, None, :] if link == "softmax" else np.stack([logits, np.zeros_like(logits)], axis=2)
    logs = _log_softmax(asked)
    if epsilon == 0:
        return logs  # exact even where a probability itself would be 0
    return np.log((np.exp(logs) + epsilon) / (1 + epsilon * logs.shape[2]))


@dataclass(frozen=True)
class Inception:
    """Mean and standard deviation (divided by ``splits``) over the splits, and how many there were."""

    mean: float
    std: float
    splits: int


def inception_score(logits: npt.ArrayLike, *, splits: int = SPLITS, seed: int = 0) -> Inception:
    """How sure the classifier is of each clip, and how evenly the clips spread over the classes.

    ``IS = exp(mean_x KL(p(y | x) || p(y)))``, p(y) the mean over the clips of a split, averaged over shuffled splits.

    Parameters
    ----------
    logits
        (n, classes) before softmax.
    splits
        Parts of as equal size as can be. More and smaller ones give lower scores: a score compares only with the same
        number of clips and of splits.
    seed
        Of the shuffle. What it deals are rows: pass clips in a canonical order, and the order of files changes nothing.

    Returns
    -------
    Inception
        In [1, classes].

    Raises
    ------
    ValueError
        Fewer than two clips a split; values that are not finite; a single class.

    Examples
    --------
    Three clips of three classes, each recognized beyond doubt.

    >>> round(inception_score(100 * np.eye(3), splits=1).mean, 6)
    3.0
    >>> inception_score(np.zeros((40, 5))).mean
    1.0

    References
    ----------
    Salimans et al., "Improved Techniques for Training GANs", arXiv 1606.03498.
    """
    rows = checked_features(logits, GENERATED)
    _check_classes(rows)
    _check_splits(len(rows), splits)
    scores = _split_scores(_log_softmax(rows.astype(np.float64)), _dealt(len(rows), splits, seed))
    return Inception(float(scores.mean()), float(scores.std()), splits)


def _check_splits(n: int, splits: int) -> None:
    if splits < 1:
        raise ValueError(f"splits should be at least 1, got {splits}")
    if n < 2 * splits:
        most = n // 2
        hint = f"take splits={most} or fewer" if most else "a single clip has no inception score"
        raise ValueError(
            f"{splits} splits need at least {2 * splits} clips, got {n}: {hint}, the same for all systems compared"
        )


def _dealt(n: int, splits: int, seed: int) -> FloatArray:
    """(splits, n) 1 where a clip belongs to a split."""
    edges = np.arange(splits + 1) * n // splits
    member = np.zeros((splits, n))
    member[np.repeat(np.arange(splits), np.diff(edges)), np.random.default_rng(seed).permutation(n)] = 1
    return member


def _split_scores(logs: FloatArray, member: FloatArray) -> FloatArray:
    """(splits,) inception score of each split, in which clips count as often as ``member`` (splits, n) says.

    ``mean_x KL(p(y | x) || p(y))`` is the entropy of the mean less the mean of the entropies.
    """
    probabilities = np.exp(logs)
    share = member / member.sum(axis=1, keepdims=True)
    mean = share @ probabilities
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.sum(np.where(mean > 0, mean * np.log(mean), 0), axis=1)
    return np.exp(np.maximum(entropy + share @ np.sum(probabilities * logs, axis=1), 0))


def evaluate(
    generated_logits: npt.ArrayLike,
    reference_logits: npt.ArrayLike | None = None,
    *,
    splits: int | None = SPLITS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Divergences of the pairs and the inception score of the generated clips, with bootstrap intervals by pair and by clip.

    Parameters
    ----------
    generated_logits, reference_logits
        (n, classes), in one canonical order, rows paired. Without a reference there is only the inception score.
    splits
        Of the inception score; None: without it, as where there are fewer than 20 clips.
    resamples
        Draws; 0: no intervals. Neither are there any of fewer than six clips, whose draws would tell too little.
    seed
        Of the splits and the draws.

    Returns
    -------
    dict
        ``kl`` (softmax, reference to generated), ``kl_reversed`` (generated to reference), ``kl_sigmoid`` (reference to
        generated): means over the pairs; ``is``. An inception score falls with the number of distinct clips, of which a draw
        has two thirds: its interval is the spread of the draws, laid around the value.

    Raises
    ------
    ValueError
        See :func:`validate` and :func:`inception_score`.

    Examples
    --------
    >>> logits = 5 * np.eye(4)[np.arange(40) % 4]
    >>> scores = evaluate(logits, logits)
    >>> sorted(scores), scores["kl"].value, scores["kl"].high
    (['is', 'kl', 'kl_reversed', 'kl_sigmoid'], 0.0, 0.0)
    """
    generated = checked_features(generated_logits, GENERATED)
    result = {}
    if reference_logits is not None:
        for name, direction, link in PAIRED:
            pairs = kl_per_pair(reference_logits, generated, direction=direction, link=link)
            result[name] = mean_interval(pairs, resamples=resamples, seed=seed)
    if splits is None:
        return result
    score = inception_score(generated, splits=splits, seed=seed).mean
    logs, member = _log_softmax(generated.astype(np.float64)), _dealt(len(generated), splits, seed)
    times = resampled_counts(len(generated), resamples=resamples if len(generated) >= FEWEST else 0, seed=seed)
    draws = [float(_split_scores(logs, _filled(member * counts, member)).mean()) for counts in times]
    return {**result, "is": spread_interval(score, draws, least=1.0)}


PAIRED: tuple[tuple[str, Direction, Link], ...] = (
    ("kl", "reference_to_generated", "softmax"),
    ("kl_reversed", "generated_to_reference", "softmax"),
    ("kl_sigmoid", "reference_to_generated", "sigmoid"),
)


def _filled(drawn: FloatArray, member: FloatArray) -> FloatArray:
    """The draw, with a split of which no clip was drawn as it is."""
    return np.where(drawn.sum(axis=1, keepdims=True) > 0, drawn, member)
