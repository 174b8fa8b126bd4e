"""Frechet distance between two sets of features: FAD and FD, extrapolated to infinitely many clips, and clip by clip.

Only means and covariances are compared. For the distance of two sets each is read once, in blocks, and needs no room however
many frames it holds; the extrapolation and the distances of clips take the generated frames as one array.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .frames import (
    GENERATED,
    REFERENCE,
    Features,
    IntArray,
    check_covariance,
    check_same_dimension,
    check_two_clips,
    checked_clips,
    checked_features,
    different_dimensions,
)
from .frechet_clips import frechet_per_clip, shrinkage_coefficient
from .frechet_variants import Extrapolation, extrapolated, few_threads, frechet_infinity, rows_by_clip
from .gaussians import Moments, Sums, distance_to, frechet_distance, merged, moments, panels
from .intervals import FEWEST, RESAMPLES, Interval, resampled_counts, spread_interval

__all__ = [
    "Extrapolation",
    "FrechetInterval",
    "Moments",
    "affordable_resamples",
    "check_counts",
    "evaluate",
    "evaluate_infinity",
    "frechet_distance",
    "frechet_infinity",
    "frechet_per_clip",
    "moments",
    "shrinkage_coefficient",
    "validate",
]

Source = Features | Callable[[], Iterable[Features]]  # rows in memory, or a function that reads them block by block

GROUPS = 100  # of clips, resampled as one: more would make the interval's ends hardly surer
GROUP_BYTES = 2**30  # that the sums of all groups of both sets may take
FULL_DIMENSION = 384  # up to which every resample asked for is drawn
LEAST_RESAMPLES = 40  # drawn of any dimension; the 2.5th percentile of fewer is the luck of one draw
DRAW_SHUFFLES = 2  # of the clips in a draw of an extrapolation's interval


def validate(
    generated: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
) -> None:
    """Refuse sets whose Frechet distance would be no number, or a number about nothing.

    Raises
    ------
    ValueError
        Values that are not finite, sets of different dimensions, fewer than two clips, or no more frames than dimensions (the
        covariance is then singular, and the distance measures how few frames there are).

    Examples
    --------
    >>> validate(np.zeros((3, 8)), np.zeros((20, 8)))
    Traceback (most recent call last):
    ValueError: the covariance of 8 dimensions needs at least 9 generated frames, got 3: add clips, take a backend of fewer
    dimensions, or take kad, the kernel distance, which works with few clips
    """
    first, second = checked_features(generated, GENERATED), checked_features(reference, REFERENCE)
    check_same_dimension(first, second)
    for rows, clips, name in ((first, generated_clips, GENERATED), (second, reference_clips, REFERENCE)):
        check_counts(checked_clips(clips, len(rows), name), rows.shape[1], name)


def check_counts(clip: IntArray, dimension: int, name: str) -> None:
    """Refuse a set, given the clip of each frame, of a single clip or of no more frames than dimensions."""
    check_two_clips(clip, name, "the Frechet distance")
    check_covariance(len(clip), dimension, name)


@dataclass(frozen=True)
class FrechetInterval(Interval):
    """A Frechet distance with its interval, and what the interval was drawn from.

    Attributes
    ----------
    resamples
        Draws of the bootstrap.
    generated_groups, reference_groups
        Groups of clips that were drawn from: the clips themselves where there are few.
    """

    resamples: int = 0
    generated_groups: int = 0
    reference_groups: int = 0


def affordable_resamples(resamples: int, dimension: int) -> int:
    """How many resamples are drawn of those asked for: all up to 384 dimensions, then fewer by their cube, 40 at least.

    A draw costs the cube of the dimension. The rule does not look at the clock, so that every machine draws the same.

    Examples
    --------
    >>> [affordable_resamples(200, d) for d in (128, 512, 768, 2048)]
    [200, 84, 40, 40]
    """
    return min(resamples, max(LEAST_RESAMPLES, int(resamples * (FULL_DIMENSION / dimension) ** 3)))


def evaluate(
    generated: Source,
    reference: Source,
    *,
    generated_clips: npt.ArrayLike | None = None,
    reference_clips: npt.ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> FrechetInterval:
    """Frechet distance with the interval that resampling the clips of both sets gives.

    Clips are dealt at random into at most 100 groups a set (fewer where the sums of all groups would exceed 1 GB: 16 of 2,048
    dimensions); the groups are resampled with replacement, which spreads as resampling the clips does, and each set is read
    once. The spread is laid around the value (:func:`auscult.metrics.intervals.spread_interval`): the upward bias of a small
    sample is in the value and not in the interval. :func:`frechet_infinity` takes out the generated set's part of it; the
    reference's part nothing takes out but a larger reference.

    Parameters
    ----------
    generated, reference
        (n, d) frames; or a function without arguments that returns an iterable of such blocks, each row's clip then given
        below.
    generated_clips, reference_clips
        (n,) which clip each frame belongs to; None: each frame is a clip of its own.
    resamples
        At most so many draws, see :func:`affordable_resamples`; 0: no interval. Neither is there one where a set has fewer
        than six clips, which vary by much more than their draws do.
    seed
        Of the groups and the draws.

    Raises
    ------
    ValueError
        See :func:`validate`; blocks without clips, or whose rows are not as many as the clips say.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> result = evaluate(rng.normal(1, 1, (400, 2)), rng.normal(0, 1, (400, 2)), seed=1)
    >>> result.low < 2 < result.high, result.resamples, result.generated_groups
    (True, 200, 100)
    """
    first, second = (
        _grouped(generated, generated_clips, GENERATED, resamples, seed),
        _grouped(reference, reference_clips, REFERENCE, resamples, seed + 1),
    )
    if len(first[0].mean) != len(second[0].mean):
        raise ValueError(different_dimensions(len(first[0].mean), len(second[0].mean)))
    value = frechet_distance(merged(first), merged(second))
    drawn = affordable_resamples(resamples, len(first[0].mean)) if min(len(first), len(second)) >= FEWEST else 0
    times_first = resampled_counts(len(first), resamples=drawn, seed=seed)
    times_second = resampled_counts(len(second), resamples=drawn, seed=seed + 1)
    draws = [frechet_distance(merged(first, a), merged(second, b)) for a, b in zip(times_first, times_second, strict=True)]
    interval = spread_interval(value, draws, least=0.0)
    return FrechetInterval(interval.value, interval.low, interval.high, drawn, len(first), len(second))


def evaluate_infinity(
    generated: Features,
    reference: Moments,
    *,
    clips: npt.ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> FrechetInterval:
    """:func:`frechet_infinity` with the spread that resampling the generated clips gives, laid around the value.

    A draw costs many distances, so a quarter of the resamples of :func:`affordable_resamples` is drawn, 40 at least: of fewer,
    because fewer were asked for or clips are too unequal, there is no interval. The reference is not resampled, and what its
    size adds to the value is corrected in neither value nor interval.

    Raises
    ------
    ValueError
        See :func:`frechet_infinity`.
    """
    value = frechet_infinity(generated, reference, clips=clips, seed=seed).value
    rows_of = rows_by_clip(generated, checked_clips(clips, len(generated), GENERATED))
    asked = min(resamples, max(LEAST_RESAMPLES, affordable_resamples(resamples, generated.shape[1]) // 4))
    drawn = asked if asked >= LEAST_RESAMPLES else 0
    distance, draws = distance_to(reference), []
    with few_threads(generated.shape[1]):
        for draw, counts in enumerate(resampled_counts(len(rows_of), resamples=drawn, seed=seed)):
            clips_drawn = [rows_of[clip] for clip in np.repeat(np.arange(len(rows_of)), counts)]
            with suppress(ValueError):  # a draw may hold a long clip so often that there are no quarters
                draws.append(extrapolated(generated, clips_drawn, distance, shuffles=DRAW_SHUFFLES, seed=seed + draw).value)
    interval = spread_interval(value, draws if len(draws) >= LEAST_RESAMPLES else [])
    return FrechetInterval(interval.value, interval.low, interval.high, len(draws), len(rows_of), 1)


def _grouped(source: Source, clips: npt.ArrayLike | None, name: str, resamples: int, seed: int) -> list[Sums]:
    """The sums of groups of clips; of one group where nothing will be resampled."""
    blocks: Iterable[Features]
    if callable(source):
        if clips is None:
            raise ValueError(f"{name} features that come in blocks need {name}_clips, the clip of each row")
        n, blocks = len(np.asarray(clips)), source()
    else:
        rows_given = np.asarray(source)
        n, blocks = len(rows_given), [rows_given]
    clip = checked_clips(clips, n, name)
    incoming = panels(blocks, name)
    head = next(incoming, None)
    if head is None:
        raise ValueError(f"there are no {name} features")
    check_counts(clip, head.shape[1], name)
    n_clips, limit = int(clip.max()) + 1, max(2, GROUP_BYTES // 2 // (8 * head.shape[1] ** 2))
    n_groups = min(n_clips, GROUPS, limit) if resamples else 1
    group = (np.random.default_rng(seed).permutation(n_clips) % n_groups)[clip]
    sums, rows = [Sums() for _ in range(n_groups)], 0
    for panel in itertools.chain([head], incoming):
        here = group[rows : rows + len(panel)]
        rows += len(panel)
        if len(here) == len(panel):
            for number in np.unique(here):
                sums[number].add(panel if n_groups == 1 else panel[here == number])
    if rows != n:
        raise ValueError(f"{n} {name} rows were named by {name}_clips, {rows} came")
    return sums
