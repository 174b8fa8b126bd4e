"""An upper bound on cosines from few numbers a row, so that pairs that cannot reach a threshold are left out, exactly.

Let ``V`` (d, r) have orthonormal columns. A unit row x has coordinates ``a = V^T x`` and a rest ``x - V a`` of length
``rho = sqrt(1 - |a|^2)``, orthogonal to V. So, by Cauchy and Schwarz in the complement,

    x . x' = a . a' + (x - V a) . (x' - V a') <= a . a' + rho rho' = s(x) . s(x'),    s(x) = (a, rho),

and one product of r + 1 columns bounds all cosines of two sets of rows. It holds for every V; a V that holds most of the
rows' energy makes it tight: with ``rho = rho'`` it is ``1 - |a - a'|^2 / 2``, so that distance in r dimensions excludes a pair.

**Rounding.** What is compared is ``fl(s(x) . s(x')) + slack``, and it holds for what is computed, not only in exact numbers.
Let x be the exact unit row of the stored values v, and u = 2^-53.

1. V is stored in float64 and only nearly orthonormal. Let ``delta = |V^T V - I|_F``, as measured, plus d r u for the rounding
   of that. Singular values of V are within delta of 1, so its orthonormal polar factor Q, for which the bound above holds
   exactly, has ``|V - Q|_2 <= delta``. In float64 each value of ``a = V^T v / |v|`` is off by 2 (d + 4) u at most, whatever
   the order of summation (d u for the product, half of that for the norm). So ``|a - Q^T x| <= eta`` with
   ``eta = 2 (d + 4) u sqrt(r + 1) + delta``.
2. The rest is stored as ``rho = sqrt(max(0, 1 - |a|^2) + 4 eta)``. ``|a|^2`` is off from ``|Q^T x|^2`` by ``2 eta + eta^2`` at
   most and summed with an error below eta / 2, so the stored rho is never too small, and
   ``x . x' <= s(x) . s(x') + 2 eta + eta^2`` in exact arithmetic on the stored float64 values.
3. These are rounded to float32 and multiplied in float32, in any order of summation, with or without fused operations:
   ``|fl(s . s') - s . s'| <= gamma |s| |s'|``, ``gamma = (r + 3) 2^-24 / (1 - (r + 3) 2^-24)`` (Higham, Accuracy and Stability
   of Numerical Algorithms, section 3.1, with two more roundings for those to float32), and ``|s|^2 <= 1 + 16 eta``.
4. The cosine that decides is a float64 one, off by 2 (d + 4) u < eta at most, and rounded to 12 decimals: 5e-13. The level that
   the product is compared with is rounded to float32, by 2^-23 at most, as it lies within [-2, 2].

``slack = 1.01 gamma + 2^-22 + 16 eta + 1e-12`` covers the sum. It is 5e-6 for 63 directions of 1712 dimensions. An eta
above 1e-6 is refused: directions that are not orthonormal prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .exact import DoubleArray, FloatArray, unit_rows

SPARE = 16  # directions beyond those asked for, which make the iteration converge
CHUNK = 2048  # rows in float64 at once
SIZES = (15, 31, 63, 127, 255)  # directions that are tried; with the rest a whole number of vector registers
FIT_ROWS, TRIAL_ROWS = 2048, 1024  # rows that directions are fitted to, and others on which the pruned share is measured
SCAN = 48  # what writing a similarity and comparing it takes, in multiplications and additions of a matrix product
FETCH = 128  # what computing one pair by itself takes, in pairs of a matrix product
GAIN = 0.8  # of the cost of brute force: above, it is not worth it


@dataclass(frozen=True)
class Sketch:
    """Rows ``(a, rho)`` (n, r + 1) float32 and the rows' ``norms`` (n,) float64."""

    columns: FloatArray
    norms: DoubleArray


@dataclass(frozen=True)
class Basis:
    """Orthonormal ``directions`` (d, r) float64 and what they are worth.

    Attributes
    ----------
    slack
        ``s(x) . s(x')`` in float32 plus this is never below the cosine.

    Raises
    ------
    ValueError
        The directions are not orthonormal.

    Examples
    --------
    >>> basis = Basis(np.eye(4)[:, :2])
    >>> sketch = basis.sketch(np.array([[3, 0, 4, 0], [0, 0, 0, 2]], np.float32)).columns
    >>> sketch.round(3)
    array([[0.6, 0. , 0.8],
           [0. , 0. , 1. ]], dtype=float32)
    >>> bool(sketch[0] @ sketch[1] + basis.slack >= 0.0)  # their cosine
    True
    """

    directions: DoubleArray

    def __post_init__(self) -> None:
        if not self._eta <= 1e-6:
            raise ValueError(f"directions should be orthonormal columns, and are off by {self._eta:.1e}")

    @cached_property
    def _eta(self) -> float:
        d, r = self.directions.shape
        u = 2.0**-53
        off = np.linalg.norm(self.directions.T @ self.directions - np.eye(r)) + d * r * u
        return float(2 * (d + 4) * u * np.sqrt(r + 1) + off)

    @property
    def slack(self) -> float:
        """See the module."""
        steps = (self.directions.shape[1] + 3) * 2.0**-24
        return 1.01 * steps / (1 - steps) + 2.0**-22 + 16 * self._eta + 1e-12

    def sketch(self, rows: npt.NDArray[np.floating]) -> Sketch:
        """Sketch of rows (n, d) of any norm but zero; see :func:`exact.unit_rows` for the errors."""
        n, r = len(rows), self.directions.shape[1]
        result = Sketch(np.empty((n, r + 1), np.float32), np.empty(n))
        for start in range(0, n, CHUNK):
            part = slice(start, start + CHUNK)
            wide = rows[part].astype(np.float64)
            norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
            if not (np.isfinite(norms) & (norms > 0)).all():
                unit_rows(rows)  # says which
            along = (wide @ self.directions) / norms[:, None]
            rest = np.maximum(1.0 - np.einsum("ij,ij->i", along, along), 0.0)
            result.columns[part, :r] = along
            result.columns[part, r] = np.sqrt(rest + 4 * self._eta)
            result.norms[part] = norms
        return result


def row_norms(rows: npt.NDArray[np.floating]) -> DoubleArray:
    """Norms (n,) as :meth:`Basis.sketch` has them, to the last bit: what decides must not depend on how it was reached."""
    norms = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        wide = rows[start : start + CHUNK].astype(np.float64)
        norms[start : start + CHUNK] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return norms


def principal_directions(units: FloatArray, count: int) -> DoubleArray:
    """About the ``count`` directions that hold most of the energy of rows, largest first: (d, count or rank) orthonormal.

    Subspace iteration from a random start: the bound needs them orthonormal, not exact.
    """
    rng = np.random.default_rng(0)
    guess = rng.standard_normal((units.shape[1], min(count + SPARE, *units.shape)), dtype=np.float32)
    for _ in range(2):
        guess = _orthonormal(units.T @ (units @ guess)).astype(np.float32)
    along = (units @ guess).astype(np.float64)
    order = np.linalg.eigh(along.T @ along)[1][:, ::-1]
    return _orthonormal(guess.astype(np.float64) @ order[:, :count], ordered=True)


def _orthonormal(columns: npt.NDArray[np.floating], ordered: bool = False) -> DoubleArray:
    """Orthonormal columns that span the same; if these nearly are (``ordered``), each close to what it was.

    By the Gram matrix, which a processor multiplies several times faster than it makes Householder reflections; the second
    pass takes away what the first leaves.
    """
    columns = columns.astype(np.float64)
    for _ in range(2):
        energy, turn = np.linalg.eigh(columns.T @ columns)
        kept = energy > 1e-10 * energy[-1]  # less is rounding, where the rows have fewer directions than were asked for
        root = turn[:, kept] / np.sqrt(energy[kept])
        columns = columns @ (root @ turn[:, kept].T if ordered and kept.all() else root)
    return np.asarray(columns, np.float64)


def choose_basis(sample: npt.NDArray[np.floating], level: DoubleArray, partners: float) -> Basis | None:
    """The basis with which a self-join is cheapest, judged on a sample, or None where brute force is.

    Costs are counted (multiplications and additions a pair), not timed, so that the choice does not depend on the moment.

    Parameters
    ----------
    sample
        (m, d) rows drawn at random; directions are fitted to the first two thirds, the share of pairs that they leave is
        counted on the others.
    level
        (m,) similarity that a pair of the row must exceed.
    partners
        How many others a row is compared with, on average: nearly all rows in a join of one set.
    """
    split = len(sample) * FIT_ROWS // (FIT_ROWS + TRIAL_ROWS)
    d = sample.shape[1]
    sizes = [size for size in SIZES if size <= min(d // 4, split // 4)]
    if not sizes:
        return None
    directions = principal_directions(unit_rows(sample[:split])[0], sizes[-1])
    trial, highest = sample[split:], np.maximum(level[split:, None], level[split:])
    upper = np.triu_indices(len(trial), 1)
    best, cheapest = None, GAIN * (2 * d + SCAN)
    for size in sizes:
        # a product for the bound, to compare it, and a product in float64 for each row and as much again to convert it
        cost = 2 * (size + 1) + SCAN + 8 * d * (size + 1) / partners
        if cost >= cheapest or size > directions.shape[1]:
            break
        basis = Basis(directions[:, :size])
        columns = basis.sketch(trial).columns
        share = float(np.mean((columns @ columns.T + basis.slack > highest)[upper]))
        cost += min(FETCH * share, 1) * 2 * d
        if cost < cheapest:
            best, cheapest = basis, cost
    return best
