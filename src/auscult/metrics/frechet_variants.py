"""FAD without the bias of few frames, and FAD clip by clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
from .gaussians import Moments, frechet_distance, moments

LEAST_FRAMES = 128  # of the smallest subset of an extrapolation
ROOM = 1.5  # times the smallest subset: the least that can be extrapolated from
POINTS = 15  # subsets of an extrapolation
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
        Frames of each subset, and its score.
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
    points: int = POINTS,
    seed: int = 0,
) -> Extrapolation:
    """FAD-infinity: the Frechet distance that infinitely many generated frames would have.

    The distance of n frames exceeds that of the distribution by about ``slope / n``. Scores of subsets of n frames, drawn
    without replacement, n evenly spaced in ``1 / n`` from ``max(2 d, 128)`` to all N, are laid on a line over ``1 / n`` by
    least squares; the value is where the line meets 0. Only the generated set is extrapolated: the reference is one and the
    same.

    Parameters
    ----------
    generated
        (N, d) frames.
    reference
        (m, d) frames or their moments.
    clips
        (N,) which clip each frame belongs to: whole clips are drawn, until there are at least n frames. None: each a clip.
    points
        Number of subsets; the last one is the whole set.
    seed
        Of the subsets. Drawn anew for each size, in the order of the clips' numbers.

    Raises
    ------
    ValueError
        See :func:`validate`; fewer than ``1.5 max(2 d, 128)`` frames, which leaves no room for a line.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> result = frechet_infinity(rng.normal(0, 1, (2000, 16)), rng.normal(0, 1, (20000, 16)))
    >>> result.sizes[0], result.sizes[-1], abs(result.value) < result.scores[-1]
    (128, 2000, True)

    References
    ----------
    Gui et al., "Adapting Frechet Audio Distance for Generative Music Evaluation", arXiv 2311.01616, whose code (fadtk) draws
    with replacement: a frame drawn twice makes a covariance poorer than its n says. After Chong and Forsyth, arXiv 1911.07023.
    """
    rows = checked_features(generated, GENERATED)
    clip = checked_clips(clips, len(rows), GENERATED)
    check_two_clips(clip, GENERATED, "an extrapolation")
    least = max(2 * rows.shape[1], LEAST_FRAMES)
    if len(rows) < ROOM * least:
        raise ValueError(
            f"an extrapolation from subsets of at least {least} frames (twice the dimension, {LEAST_FRAMES} at least) needs "
            f"{int(np.ceil(ROOM * least))} generated frames, got {len(rows)}: add clips, or {ADVICE}"
        )
    if points < 2:
        raise ValueError(f"a line needs at least 2 points, got {points}")
    target = reference if isinstance(reference, Moments) else moments([checked_features(reference, REFERENCE)])
    rng, sizes, scores = np.random.default_rng(seed), [], []
    for inverse in np.linspace(1 / least, 1 / len(rows), points):
        subset = _drawn(clip, min(len(rows), round(1 / inverse)), rng)
        sizes.append(len(subset))
        scores.append(frechet_distance(moments([rows[subset]]), target))
    slope, value = np.polyfit(1 / np.array(sizes), scores, 1)
    return Extrapolation(float(value), float(slope), tuple(sizes), tuple(scores))


def _drawn(clip: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """Rows of clips drawn without replacement until there are at least n."""
    counts = np.bincount(clip)
    order = rng.permutation(len(counts))
    taken = order[: int(np.searchsorted(np.cumsum(counts[order]), n)) + 1]
    kept = np.zeros(len(counts), np.bool_)
    kept[taken] = True
    return np.flatnonzero(kept[clip]).astype(np.int64)


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
