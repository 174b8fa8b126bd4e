"""FAD without the bias of few clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from .frames import (
    GENERATED,
    KAD_INSTEAD,
    REFERENCE,
    Features,
    IntArray,
    check_covariance,
    check_two_clips,
    checked_clips,
    checked_features,
)
from .gaussians import Moments, Sums, distance_to, merged, moments, panels

PARTS = (1, 2, 4)  # into which the set is cut: sizes evenly laid in a line over 1 / n, with a lever of 4
LEAST_FRAMES = 128  # of a quarter
LEAST_CLIPS = 8  # of a quarter: frames of one clip resemble each other, and few clips make a covariance of few directions
SHUFFLES = 64  # of the clips, over which the scores of the parts are averaged
SHUFFLED_DIMENSION = 256  # up to which all of them are made
LEAST_SHUFFLES = 4
ONE_THREAD_DIMENSION = 1024  # up to which products are so small that threads, where others work too, wait for each other
BENT = 0.05  # of the whole's score, by which the line of quarters and halves may miss it: the value is then 8 % of it off
BENT_NEAR_0 = 0.03  # of how far quarters lie above the whole: what chance bends where the score itself is next to nothing


@dataclass(frozen=True)
class Extrapolation:
    """A score extrapolated to infinitely many clips.

    Attributes
    ----------
    value
        The line's intercept; slightly negative where the sets can hardly be told apart, and left so.
    slope
        Of the score over ``1 / n``: what a score of n frames is too high by is about ``slope / n``.
    sizes, scores
        Frames of a quarter, a half and the whole of the set (harmonic mean), and the mean score of such parts.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def foretold(self) -> float:
        """The whole's score by the line through quarters and halves alone."""
        quarter, half, _ = self.scores
        return half - (quarter - half) / 2


def frechet_infinity(
    generated: Features,
    reference: Features | Moments,
    *,
    clips: npt.ArrayLike | None = None,
    shuffles: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """FAD-infinity: the Frechet distance that infinitely many generated clips would have.

    The distance of n frames exceeds that of the distribution by about ``slope / n``, once n is large. The clips are shuffled
    and dealt into four quarters of equally many frames, two of which are a half; the mean scores of the quarters, of the
    halves and of the whole lie on a line over ``1 / n`` by least squares, and the value is where it meets 0. Since every clip
    is in one quarter and in one half, what is peculiar to single clips cancels; the rest is averaged over several shuffles, so
    that the value hardly depends on them.

    Frames of one clip resemble each other, so that it takes many clips, not frames, until the points lie on a line: with 9
    alike frames a clip in 64 dimensions about 200. Before, the line ends too high, the more so the fewer clips there are.
    Whether they do is seen from quarters and halves: their line has to foretell the score of the whole within 5 %, or, where
    that is next to nothing, within 3 % of what quarters lie above it. The value misses by 5/3 of what the line does.

    Only the generated set is extrapolated. What the distance is too high by because the *reference* is small stays in the
    value, and values of different references cannot be compared.

    Parameters
    ----------
    generated
        (N, d) frames.
    reference
        (m, d) frames or their moments.
    clips
        (N,) which clip each frame belongs to: whole clips are dealt. None: each a clip.
    shuffles
        How many are averaged; None: 64, fewer beyond 256 dimensions by their cube (a score costs it), 4 at least.
    seed
        Of the shuffles, which deal the clips in the order of their numbers.

    Raises
    ------
    ValueError
        See :func:`validate`; fewer than ``4 max(2 d, 128)`` frames or 32 clips, which leave no room for a line; points that
        do not lie on one; clips of such unequal lengths that quarters cannot be alike; a reference of no more frames than
        dimensions.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> result = frechet_infinity(rng.normal(0, 1, (2000, 16)), rng.normal(0, 1, (20000, 16)))
    >>> result.sizes, abs(result.value) < result.scores[-1] / 5
    ((500, 1000, 2000), True)

    References
    ----------
    Gui et al., "Adapting Frechet Audio Distance for Generative Music Evaluation", arXiv 2311.01616, whose code (fadtk) draws
    one subset of each of many sizes, with replacement: its line then follows the luck of the draws, and a frame drawn twice
    makes a covariance poorer than its n says. After Chong and Forsyth, arXiv 1911.07023.
    """
    rows = checked_features(generated, GENERATED)
    rows_of = rows_by_clip(rows, checked_clips(clips, len(rows), GENERATED))
    if shuffles is None:
        shuffles = affordable_shuffles(rows.shape[1])
    if shuffles < 1:
        raise ValueError(f"shuffles should be at least 1, got {shuffles}")
    target = reference if isinstance(reference, Moments) else moments([checked_features(reference, REFERENCE)])
    check_covariance(target.count, rows.shape[1], REFERENCE)
    with few_threads(rows.shape[1]):
        found = extrapolated(rows, rows_of, distance_to(target), shuffles=shuffles, seed=seed)
    _check_straight(found, len(rows_of))
    return found


def _check_straight(found: Extrapolation, n_clips: int) -> None:
    quarter, half, whole = found.scores
    if abs(found.foretold - whole) > max(BENT * whole, BENT_NEAR_0 * abs(quarter - whole)):
        raise ValueError(
            f"the scores of quarters, halves and the whole ({quarter:.3g}, {half:.3g}, {whole:.3g}) lie on no line over 1 / n: "
            f"the first two would have {found.foretold:.3g} for the whole, more than {BENT:.0%} off; {n_clips:,} clips are too "
            "few (frames of one clip resemble each other, and more of them do not help): give several times as many, or "
            f"{KAD_INSTEAD}"
        )


def few_threads(dimension: int) -> threadpool_limits:
    """Within it, products have one thread where they are so small and many that a second one costs more than it does."""
    return threadpool_limits(1 if dimension <= ONE_THREAD_DIMENSION else None)


def affordable_shuffles(dimension: int) -> int:
    """64 up to 256 dimensions, then fewer by their cube, 4 at least.

    Examples
    --------
    >>> [affordable_shuffles(d) for d in (128, 512, 768, 2048)]
    [64, 8, 4, 4]
    """
    return max(LEAST_SHUFFLES, min(SHUFFLES, int(SHUFFLES * (SHUFFLED_DIMENSION / dimension) ** 3)))


def rows_by_clip(rows: Features, clip: IntArray) -> list[IntArray]:
    """The rows of each clip, of a set that can be extrapolated.

    Raises
    ------
    ValueError
        Too few frames or clips; says how many it takes.
    """
    check_two_clips(clip, GENERATED, "an extrapolation")
    frames, n_clips = PARTS[-1] * max(2 * rows.shape[1], LEAST_FRAMES), PARTS[-1] * LEAST_CLIPS
    counts = np.bincount(clip)
    if len(rows) < frames or len(counts) < n_clips:
        needed = max(n_clips, int(np.ceil(frames * len(counts) / len(rows))))
        raise ValueError(
            f"an extrapolation in {rows.shape[1]} dimensions needs {frames:,} generated frames (four quarters of "
            f"{frames // PARTS[-1]:,}) and {n_clips} clips, got {len(rows):,} frames of {len(counts):,} clips: give about "
            f"{needed:,} clips like these, or {KAD_INSTEAD}"
        )
    return np.split(np.argsort(clip, kind="stable"), np.cumsum(counts)[:-1])


def extrapolated(
    rows: Features, rows_of: list[IntArray], distance: Callable[[Moments], float], *, shuffles: int, seed: int
) -> Extrapolation:
    """The line through the mean scores of quarters, halves and whole of the clips that ``rows_of`` has, each with its rows.

    A clip may be in the list several times.
    """
    inverses: dict[int, list[float]] = {parts: [] for parts in PARTS}
    scores: dict[int, list[float]] = {parts: [] for parts in PARTS}
    rng = np.random.default_rng(seed)
    for shuffle in range(shuffles):
        quarters = [_sums(rows, rows_of, clips) for clips in _quarters(rows_of, rng)]
        _check_alike(quarters, rows_of, rows.shape[1])
        whole = [quarters] if shuffle == 0 else []  # it is the same in all
        for parts, cut in ((1, whole), (2, [quarters[:2], quarters[2:]]), (4, [[quarter] for quarter in quarters])):
            found = [merged(part) for part in cut]
            inverses[parts] += [1 / part.count for part in found]
            scores[parts] += [distance(part) for part in found]
    over, means = ([float(np.mean(found[parts])) for parts in PARTS] for found in (inverses, scores))
    slope, value = np.polyfit(over, means, 1)
    return Extrapolation(float(value), float(slope), tuple(round(1 / x) for x in over[::-1]), tuple(means[::-1]))


def _check_alike(quarters: list[Sums], rows_of: list[IntArray], dimension: int) -> None:
    if min(quarter.count for quarter in quarters) <= dimension:
        raise ValueError(
            "clips of such unequal lengths cannot be dealt into quarters of equally many frames: the longest holds "
            f"{max(map(len, rows_of)):,} of {sum(map(len, rows_of)):,}; cut long clips, or {KAD_INSTEAD}"
        )


def _quarters(rows_of: list[IntArray], rng: np.random.Generator) -> list[IntArray]:
    """Clips in a random order, cut where a quarter of their frames is reached."""
    order = rng.permutation(len(rows_of))
    sizes = np.array([len(rows_of[clip]) for clip in order])
    middle = np.cumsum(sizes) - sizes / 2
    return [order[4 * middle // sizes.sum() == quarter] for quarter in range(4)]


def _sums(rows: Features, rows_of: list[IntArray], clips: IntArray) -> Sums:
    sums = Sums()
    if len(clips):
        for panel in panels([rows[np.concatenate([rows_of[clip] for clip in clips])]], GENERATED):
            sums.add(panel)
    return sums
