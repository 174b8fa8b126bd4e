"""Whether a set is of various sounds: one sound given again and again, or near silence, has a precision that says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .frames import some_clips

FloatArray = npt.NDArray[np.float64]

RADII = 500  # items of the reference whose neighbors are looked for to say what is near
NEARLY_EQUAL = 0.05  # of the distance to the k-th neighbor
QUIET = frozenset({"silent", "near_silent"})


def check_loud(generated: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], *, most_loud: int) -> None:
    """Refuse a set of near silence, unless that is what the reference is of.

    Noise of the last bit may be as various as sound to a backend that takes logarithms; one nearly silent clip of the
    reference, whose neighbors are far, has all of it in its reach.

    Parameters
    ----------
    generated, reference
        Flags of each clip.
    most_loud
        Up to so many louder clips do not make a set one of sounds.

    Raises
    ------
    ValueError
        Says how many clips of both are silent or nearly so.

    Examples
    --------
    >>> check_loud([["near_silent"]] * 9, [[]] * 9, most_loud=5)
    Traceback (most recent call last):
    ValueError: 9 of 9 generated clips are silent or nearly so (no sample above -60 dBFS), and 0 of 9 of the reference: within
    the reach of a single nearly silent real clip they would have a precision of 1
    """
    quiet = [sum(bool(QUIET & set(flags)) for flags in clips) for clips in (generated, reference)]
    if len(generated) - quiet[0] <= most_loud < len(generated) and 2 * quiet[1] < len(reference):
        raise ValueError(
            f"{quiet[0]:,} of {len(generated):,} generated clips are silent or nearly so (no sample above -60 dBFS), and "
            f"{quiet[1]:,} of {len(reference):,} of the reference: within the reach of a single nearly silent real clip they "
            "would have a precision of 1"
        )


def check_variety(generated: FloatArray, reference: FloatArray, k: int, backend: str, *, seed: int = 0) -> None:
    """Refuse a set of no more than k different sounds, be it generated or the reference.

    Raises
    ------
    ValueError
        Says how many there are to the backend of this name.

    Examples
    --------
    >>> check_variety(np.random.default_rng(0).normal(size=(12, 4)), np.zeros((12, 4)), 5, "logmel")
    Traceback (most recent call last):
    ValueError: to logmel the 12 clips of the reference are one and the same sound, which has no neighborhoods to lie in: give
    a reference of more than 5 different sounds
    """
    sounds = different_sounds(reference, reference, k, seed=seed)
    if sounds <= k < len(reference):
        raise ValueError(
            f"to {backend} the {len(reference):,} clips of the reference are {_counted(sounds)}, which has no neighborhoods to "
            f"lie in: give a reference of more than {k} different sounds"
        )
    sounds = different_sounds(generated, reference, k, seed=seed)
    if sounds <= k < len(generated):
        raise ValueError(
            f"to {backend} the {len(generated):,} generated clips are {_counted(sounds)}: one real sound given again and "
            "again, or silence where a real clip is nearly silent, would have a precision of 1"
        )


def _counted(sounds: int) -> str:
    return "one and the same sound" if sounds == 1 else f"only {sounds} different sounds"


def different_sounds(generated: FloatArray, reference: FloatArray, k: int, *, seed: int = 0) -> int:
    """Number of generated items that are not nearly equal to an earlier one, counted up to ``k + 1``.

    Nearly equal is what lies within a twentieth of the distance at which an item of the reference has its k-th neighbor (the
    median of 500): as dithered silence does, and no two recordings.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> real = rng.normal(size=(300, 4))
    >>> different_sounds(1 + 1e-3 * rng.normal(size=(40, 4)), real, 5), different_sounds(rng.normal(size=(40, 4)), real, 5)
    (1, 6)
    """
    center = reference.mean(axis=0)
    rows, real = generated - center, reference - center
    drawn = real[some_clips(np.arange(len(real)), RADII, seed=seed)]
    nth = min(k, len(real) - 1)
    radii = [np.partition(np.sum((real - one) ** 2, axis=1), nth)[nth] for one in drawn]
    # equal features may differ by the rounding of float32
    near = max(NEARLY_EQUAL**2 * float(np.median(radii)), 1e-12 * float(np.max(np.sum(rows**2, axis=1))))
    found = 0
    while len(rows) and found <= k:
        rows = rows[np.sum((rows - rows[0]) ** 2, axis=1) > near]
        found += 1
    return found
