"""FAD without the bias of few frames, and FAD clip by clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from .frames import (
    GENERATED,
    REFERENCE,
    Features,
    FloatArray,
    IntArray,
    check_two_clips,
    checked_clips,
    checked_features,
    different_dimensions,
)
from .gaussians import Moments, Sums, distance_to, merged, moments, panels

PARTS = (1, 2, 4)  # into which the set is cut: sizes evenly laid in a line over 1 / n, with a lever of 4
LEAST_FRAMES = 128  # of a quarter
LEAST_CLIPS = 8  # of a quarter: frames of one clip resemble each other, and few clips make a covariance of few directions
SHUFFLES = 64  # of the clips, over which the scores of the parts are averaged
SHUFFLED_DIMENSION = 256  # up to which all of them are made
LEAST_SHUFFLES = 4
ONE_THREAD_DIMENSION = 1024  # up to which products are so small that threads, where others work too, wait for each other
ADVICE = "take kad, the kernel distance, which works with few clips"


@dataclass(frozen=True)
class Extrapolation:
    """A score extrapolated to infinitely many frames.

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


def frechet_infinity(
    generated: Features,
    reference: Features | Moments,
    *,
    clips: npt.ArrayLike | None = None,
    shuffles: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """FAD-infinity: the Frechet distance that infinitely many generated frames would have.

    The distance of n frames exceeds that of the distribution by about ``slope / n``. The clips are shuffled and dealt into
    four quarters of equally many frames, two of which are a half; the mean scores of the quarters, of the halves and of the
    whole lie on a line over ``1 / n`` by least squares, and the value is where it meets 0. Since every clip is in one quarter
    and in one half, what is peculiar to single clips cancels; the rest is averaged over several shuffles, so that the value
    hardly depends on them.

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
        See :func:`validate`; fewer than ``4 max(2 d, 128)`` frames or 32 clips, which leave no room for a line; clips of such
        unequal lengths that quarters cannot be alike.

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
    with few_threads(rows.shape[1]):
        return extrapolated(rows, rows_of, distance_to(target), shuffles=shuffles, seed=seed)


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
            f"{needed:,} clips like these, or {ADVICE}"
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
            f"{max(map(len, rows_of)):,} of {sum(map(len, rows_of)):,}; cut long clips, or {ADVICE}"
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


def frechet_per_clip(
    features: Features, clips: npt.ArrayLike, reference: Moments, *, shrinkage: float | None = None
) -> FloatArray:
    """The Frechet distance of each clip's frames to the reference: which clips are far from it.

    A clip has fewer frames than dimensions. Its covariance S is shrunk to ``(1 - w) S + w (tr S / d) I``, with the weight w
    that :func:`shrinkage_coefficient` finds for it. Distances order the clips of one set; they are much larger than a
    distance of sets, since no single clip varies as much as a corpus, and they compare only among clips of about as many
    frames.

    Parameters
    ----------
    features
        (n, d) frames.
    clips
        (n,) which clip each frame belongs to.
    reference
        Moments of the reference set.
    shrinkage
        The weight w in [0, 1] for all clips; None: each clip's own.

    Returns
    -------
    array
        (number of clips,) in the order of the clips' numbers.

    Raises
    ------
    ValueError
        A clip of one frame: one frame does not vary. Other dimensions than the reference's.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> frames = np.concatenate([rng.normal(0, 1, (20, 4)), rng.normal(5, 1, (20, 4))])
    >>> near, far = frechet_per_clip(frames, np.repeat([0, 1], 20), Moments(1000, np.zeros(4), np.eye(4)))
    >>> bool(near < 5 < 90 < far)
    True

    References
    ----------
    Gui et al., arXiv 2311.01616, whose code does not shrink the covariance.
    """
    rows = checked_features(features, GENERATED)
    if rows.shape[1] != len(reference.mean):
        raise ValueError(different_dimensions(rows.shape[1], len(reference.mean)))
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage should lie in [0, 1], got {shrinkage}")
    clip = checked_clips(clips, len(rows), GENERATED)
    counts = np.bincount(clip)
    if short := np.flatnonzero(counts < 2).tolist():
        raise ValueError(
            f"{len(short)} of {len(counts)} clips have a single frame (the first is clip {np.unique(clips)[short[0]]}), and "
            "one frame does not vary: take a backend with several frames per clip, or leave out clips shorter than two windows"
        )
    values, vectors = np.linalg.eigh(reference.covariance)
    root = np.sqrt(np.clip(values, 0, None))  # in the basis of its eigenvectors the reference's covariance is diagonal
    order = np.argsort(clip, kind="stable")
    parts = np.split(order, np.cumsum(counts)[:-1])
    return np.array([_of_clip(rows[part].astype(np.float64), reference, root, vectors, shrinkage) for part in parts])


def _of_clip(rows: FloatArray, reference: Moments, root: FloatArray, vectors: FloatArray, shrinkage: float | None) -> float:
    mean = rows.mean(axis=0)
    centered = rows - mean
    weight = shrinkage_coefficient(centered) if shrinkage is None else shrinkage
    trace = float(np.sum(centered**2)) / (len(rows) - 1)
    turned = (centered @ vectors) * root * np.sqrt((1 - weight) / (len(rows) - 1))
    # R^(1/2) S R^(1/2), all of it in the reference's basis
    product = np.diag(weight * trace / rows.shape[1] * root**2) + turned.T @ turned
    eigenvalues = np.clip(np.linalg.eigvalsh(product), 0, None)
    step = mean - reference.mean
    return max(0.0, float(step @ step + trace + np.sum(root**2) - 2 * np.sum(np.sqrt(eigenvalues))))


def shrinkage_coefficient(centered: FloatArray) -> float:
    """Ledoit and Wolf's weight of the identity: in [0, 1], large where few rows meet many dimensions.

    Parameters
    ----------
    centered
        (n, d) rows less their mean.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> few, many = rng.normal(size=(5, 20)) * np.arange(20), rng.normal(size=(5000, 20)) * np.arange(20)
    >>> [round(shrinkage_coefficient(x - x.mean(axis=0)), 2) for x in (few, many)]
    [0.43, 0.01]

    References
    ----------
    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """
    n, d = centered.shape
    gram = centered @ centered.T
    squared = float(np.sum(gram**2)) / n**2  # |S|^2, S = centered' centered / n
    spread = squared / d - (float(np.trace(gram)) / n / d) ** 2  # |S - (tr S / d) I|^2 / d
    error = (float(np.sum(np.diag(gram) ** 2)) / n - squared) / n / d  # of S about the true covariance
    return 0.0 if spread <= 0 else min(max(error, 0.0), spread) / spread
