"""Cosines as they are reported: in float64, rounded; and how far a float32 product may be off."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RESCORE_ROWS = 256  # pairs computed again at once: both sides in float64 stay in the cache
UNIT_ROWS = 128  # scaled at once, for the same reason
DECIMALS = 12  # similarities are rounded here, which is finer than any score means and hides summation order


def unit_rows(vectors: npt.NDArray[np.floating]) -> tuple[FloatArray, DoubleArray]:
    """Rows scaled to norm 1 (float32), and their norms (float64).

    Raises
    ------
    ValueError
        A row is zero or not finite.
    """
    units, norms = np.empty(vectors.shape, np.float32), np.empty(len(vectors))
    for start in range(0, len(vectors), UNIT_ROWS):
        rows = slice(start, start + UNIT_ROWS)
        part = units[rows]
        part[:] = vectors[rows]
        norms[rows] = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            part /= norms[rows, None].astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise ValueError(f"{len(bad)} vectors are zero or not finite, the first at row {bad[0]}; silence has no direction")
    return units, norms


def cosines(
    left: npt.NDArray[np.floating],
    left_norms: DoubleArray,
    right: npt.NDArray[np.floating],
    right_norms: DoubleArray,
    row: IntArray,
    column: IntArray,
) -> DoubleArray:
    """Cosines of the pairs ``(left[row], right[column])`` in float64."""
    result = np.empty(len(row))
    for start in range(0, len(row), RESCORE_ROWS):
        part = slice(start, start + RESCORE_ROWS)
        result[part] = np.einsum("ij,ij->i", left[row[part]].astype(np.float64), right[column[part]].astype(np.float64)) / (
            left_norms[row[part]] * right_norms[column[part]]
        )
    return np.round(result, DECIMALS)


def rounding_bound(dimension: int) -> float:
    """How far a float32 cosine of unit vectors may be off: ``8 sqrt(d) 2^-24``, eight standard deviations of a random walk of
    d roundings of at most half a unit in the last place of 1."""
    return 8.0 * float(np.sqrt(dimension)) * 2.0**-24
