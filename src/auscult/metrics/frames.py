"""Rows of features and the clip each belongs to: what the metrics take, checked once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

GENERATED, REFERENCE = "generated", "reference"
KAD_INSTEAD = "take kad, the kernel distance, which works with few clips"


def checked_features(features: npt.ArrayLike, name: str, *, first_row: int = 0) -> Features:
    """The rows as they are, after a look at their shape and at whether all of them are numbers.

    Parameters
    ----------
    features
        (n, d) floating; whole numbers become float64.
    name
        What the message calls the set.
    first_row
        Row of the whole set that is row 0 here.

    Raises
    ------
    ValueError
        Not two-dimensional, no dimension at all, or a value that is NaN or infinite: the message names the row.

    Examples
    --------
    >>> checked_features([[1.0, 2.0]], "generated").shape
    (1, 2)
    """
    rows = np.asarray(features)
    if not np.issubdtype(rows.dtype, np.floating):
        rows = rows.astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        hint = "; one value per row is features[:, None]" if rows.ndim == 1 else ""
        raise ValueError(f"expected {name} features of shape (rows, dimension), got {rows.shape}{hint}")
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.vdot(rows, rows)):  # one product tells almost always that there is nothing to look for
            return rows
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(rows)} rows of {name} features are not finite, the first of them row "
            f"{first_row + int(wrong[0])}: leave out its clip, or repair "
            "what computed it (one NaN makes every score NaN)"
        )
    return rows


def checked_clips(clips: npt.ArrayLike | None, n: int, name: str) -> IntArray:
    """(n,) which clip each row belongs to, counted from 0 in the order of the given numbers; None: each row is a clip.

    Examples
    --------
    >>> checked_clips([7, 7, 3], 3, "generated")
    array([1, 1, 0])
    """
    if clips is None:
        return np.arange(n, dtype=np.int64)
    given = np.asarray(clips)
    if given.shape != (n,):
        raise ValueError(f"expected one clip number for each of the {n} rows of {name} features, got shape {given.shape}")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


def check_same_dimension(generated: Features, reference: Features) -> None:
    """Refuse sets whose rows cannot be compared."""
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(different_dimensions(generated.shape[1], reference.shape[1]))


def different_dimensions(generated: int, reference: int) -> str:
    """The message for sets whose rows cannot be compared."""
    return (
        f"generated features have {generated} dimensions, the reference {reference}: "
        "describe both sets with the same backend and settings"
    )


def check_two_clips(clip: IntArray, name: str, needed_for: str) -> None:
    """Refuse a set of one clip: nothing can be said of how clips differ."""
    n = int(clip.max()) + 1 if len(clip) else 0
    if n < 2:
        frames = f" (with {len(clip)} rows)" if len(clip) > n else ""
        raise ValueError(
            f"{needed_for} needs at least 2 {name} clips, got {n}{frames}: add clips, nothing can be said of how a "
            "single one varies"
        )


def check_covariance(frames: float, dimension: int, name: str) -> None:
    """Refuse a set of no more frames than dimensions: its covariance is singular, and a distance says how few they are."""
    if frames <= dimension:
        raise ValueError(
            f"the covariance of {dimension} dimensions needs at least {dimension + 1} {name} frames, got {frames:,.0f}: "
            f"add clips, take a backend of fewer dimensions, or {KAD_INSTEAD}"
        )


def some_clips(clip: IntArray, most: int, *, seed: int) -> IntArray:
    """Rows of whole clips drawn at random until one more would exceed ``most`` rows, in order; all rows where they fit.

    Examples
    --------
    >>> some_clips(np.array([0, 0, 1, 2, 2]), 5, seed=0)
    array([0, 1, 2, 3, 4])
    >>> len(some_clips(np.arange(1000), 10, seed=0))
    10
    """
    if len(clip) <= most:
        return np.arange(len(clip), dtype=np.int64)
    sizes = np.bincount(clip)
    order = np.random.default_rng(seed).permutation(len(sizes))
    kept = np.zeros(len(sizes), np.bool_)
    kept[order[: max(2, int(np.searchsorted(np.cumsum(sizes[order]), most, side="right")))]] = True
    return np.flatnonzero(kept[clip]).astype(np.int64)
