"""FAD clip by clip."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .frames import GENERATED, Features, FloatArray, checked_clips, checked_features, different_dimensions
from .gaussians import Moments


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
