"""Random samples of the clips that an audit did not flag: what was missed is estimated from them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence

import numpy as np

from ..audit import KIND as AUDIT_KIND
from .queue import ReviewSet
from .verdicts import Sample, Stratum

STRATUM_RATIO = 3  # each stratum holds so many times the clips of the one above it


def draw_sample(review_set: ReviewSet, n: int, *, strata: int = 4, seed: int = 0) -> Sample:
    """Draw a stratified random sample of the unflagged clips' best pairs, to estimate how many replicas were missed.

    The population is the generated clips that are not flagged and have a match. Clips without one (silent ones, or no
    reference to compare with) are not in it: nothing can be said of them by looking at pairs.

    Strata are ranges of score. From the top down each is three times as large as the one above it: with 4 strata the highest
    2.5, 7.5, 22.5 and 67.5 % of the clips. What was missed lies mostly just below the threshold, and quantiles of equal size
    would swamp these few clips in a quarter of all. Draws go to the strata in proportion to the square root of their sizes
    (Bankier 1988, power allocation): Neyman's optimum where the share of replicas falls as the strata grow. In each stratum the
    draw is a simple random sample without replacement: its first places are one, too, so an estimator can use any reviewed
    prefix with the stratum's size.

    Parameters
    ----------
    n
        Pairs to draw; all, if there are fewer.
    strata
        Number of ranges.
    seed
        The same seed gives the same sample, and a larger ``n`` continues the smaller one's; ``VerdictStore.add_sample`` then
        extends what is stored.

    Raises
    ------
    ValueError
        ``n`` or ``strata`` is below 1, the folder is no audit, or every clip is flagged.
    """
    if n < 1 or strata < 1:
        raise ValueError(f"n and strata should be at least 1, got {n} and {strata}")
    if review_set.kind != AUDIT_KIND:
        raise ValueError(f"a sample is drawn of an audit's clips, this is a {review_set.kind}; its open pairs are all listed")
    rows = np.flatnonzero(~review_set.flagged & np.isfinite(review_set.scores))
    if not len(rows):
        raise ValueError("every clip with a match is flagged, so there is nothing to sample; review the listed pairs")
    ids = np.asarray(review_set.pair_ids, dtype=np.str_)[rows]
    order = np.lexsort((ids, -review_set.scores[rows]))
    ids, scores = ids[order].tolist(), review_set.scores[rows][order]
    edges = _edges(len(rows), strata)
    described, shuffled = [], []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        described.append(Stratum(float(scores[stop - 1]), float(scores[start]), stop - start))
        members = sorted(ids[start:stop])
        shuffled.append([members[at] for at in np.random.default_rng([seed, number]).permutation(len(members)).tolist()])
    name = hashlib.sha256(json.dumps([seed, shuffled]).encode()).hexdigest()[:16]
    sequence = _allocated([stratum.size for stratum in described], n)
    drawn = tuple((number, place, shuffled[number][place]) for number, place in sequence)
    return Sample(name, seed, tuple(described), drawn)


def _edges(n: int, strata: int) -> list[int]:
    """Borders of the strata in ``n`` clips, best first; each stratum holds at least one clip.

    >>> _edges(1000, 4)
    [0, 25, 100, 325, 1000]
    """
    strata = min(strata, n)
    shares = np.cumsum(float(STRATUM_RATIO) ** np.arange(strata))
    edges = [0, *np.round(n * shares / shares[-1]).astype(int).tolist()]
    for number in range(1, strata + 1):
        edges[number] = min(max(edges[number], edges[number - 1] + 1), n - (strata - number))
    return edges


def _allocated(sizes: Sequence[int], n: int) -> list[tuple[int, int]]:
    """(stratum, place) of the first ``n`` draws, by Sainte-Lague's divisors: each draw more only adds to those before it."""
    drawn, sequence = [0] * len(sizes), []
    for _ in range(min(n, sum(sizes))):
        open_strata = [number for number, size in enumerate(sizes) if drawn[number] < size]
        best = max(open_strata, key=lambda number: (sizes[number] ** 0.5 / (2 * drawn[number] + 1), -number))
        sequence.append((best, drawn[best]))
        drawn[best] += 1
    return sequence
