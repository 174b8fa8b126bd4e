"""Thresholds of similarity, measured on the references: what is as similar as they are to each other is no copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..calibration import null_from_training
from .index import ReferenceIndex

QUANTILE = 0.99  # of the references' similarities to their nearest others
LOW = 0.9  # of the high threshold
IDENTICAL = 1 - 1e-5  # copies of a reference say nothing of sounds that are none
FEWEST = 10
SAMPLE = 5000  # references that are compared with all
_COSINES = 2**25  # at once: 128 MB


@dataclass(frozen=True)
class Thresholds:
    """What was measured.

    Attributes
    ----------
    low, high
        For :class:`~auscult.guidance.amg.AmgConfig`.
    references
        How many were compared with all others.
    copies
        How many of them were left out, since they have copies among the others.
    """

    low: float
    high: float
    references: int
    copies: int

    def beside(self, low: float | None, high: float | None) -> tuple[float, float]:
        """Low and high: what is given (not None) stays as it is, and what was measured gives way so that low <= high.

        Examples
        --------
        >>> found = Thresholds(0.45, 0.5, 20, 0)
        >>> found.beside(None, 0.4), found.beside(0.6, None)
        ((0.4, 0.4), (0.6, 0.6))
        """
        upper = high if high is not None else self.high if low is None else max(self.high, low)
        return min(self.low, upper) if low is None else low, upper


def measured_thresholds(
    index: ReferenceIndex, *, others: ReferenceIndex | None = None, quantile: float = QUANTILE, seed: int = 0
) -> Thresholds:
    """The similarity that a reference seldom has to its nearest other reference.

    ``high`` is the 99 % quantile, over references, of the largest similarity between a window of one and a window of any other
    (identical vectors aside); ``low`` is 0.9 of it. What copies among the references show is how similar copies are, so those
    above a gap in these similarities are left out, and ``high`` is at most what an exponential tail would have there that
    begins as the body of the similarities ends: ``tanh(z50 + (z75 - z50) log2(0.5 / 0.01))`` with quantiles of
    ``z = artanh(s)``, the scale on which cosines spread evenly. Copies of less than a quarter of the references hardly touch
    it.

    Parameters
    ----------
    index
        Of the references.
    others
        What samplers are compared with, of the same references: such as these at every shift. By default the index.
    quantile
        Of their similarities, 0.75 to 1.
    seed
        Of the sample of 5,000 references that is compared with all.

    Raises
    ------
    ValueError
        Fewer than 10 references without copies.

    Examples
    --------
    >>> angles = torch.linspace(0.0, 2.0, 20)
    >>> vectors = torch.stack([angles.cos(), angles.sin()], 1)  # each 6 degrees from the next
    >>> index = ReferenceIndex("toy", tuple(map(str, range(20))), (None,) * 20, (0.0,) * 20, vectors)
    >>> round(measured_thresholds(index).high, 4), round(float(np.cos(2 / 19)), 4)
    (0.9945, 0.9945)
    """
    nearest = _nearest_others(index, others or index, seed)
    heard = nearest[np.isfinite(nearest)]
    alone = null_from_training(heard)
    if len(alone) < FEWEST:
        raise ValueError(
            f"thresholds are measured on references that are no copies of each other, at least {FEWEST}, and of "
            f"{len(set(index.ids)):,} references {len(alone):,} are; give more, or both thresholds "
            "(threshold_low and threshold_high; --amg.threshold-low and --amg.threshold-high)"
        )
    middle, upper = np.quantile(np.arctanh(alone), [0.5, 0.75])
    tail = np.tanh(middle + (upper - middle) * np.log2(0.5 / (1 - quantile)))
    high = float(min(np.quantile(alone, quantile), tail))
    return Thresholds(min(high, LOW * high), high, len(nearest), len(nearest) - len(alone))


def _nearest_others(index: ReferenceIndex, others: ReferenceIndex, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(n,) the largest similarity of each sampled reference to another; NaN where only copies of it are there."""
    names, clip = np.unique(np.array(index.ids, object).astype(str), return_inverse=True)
    sample = np.sort(np.random.default_rng(seed).permutation(len(names))[:SAMPLE])
    rows = np.flatnonzero(np.isin(clip, sample))
    best = np.full(len(names), -np.inf)
    owners = torch.from_numpy(clip).to(index.vectors.device)
    theirs = torch.from_numpy(np.searchsorted(names, np.array(others.ids, object).astype(str))).to(owners.device)
    at_once = max(1, _COSINES // max(1, len(others)))
    for first in range(0, len(rows), at_once):
        some = torch.from_numpy(rows[first : first + at_once]).to(owners.device)
        cosines = index.vectors[some] @ others.vectors.T
        cosines[(owners[some, None] == theirs[None]) | (cosines >= IDENTICAL)] = -torch.inf
        np.maximum.at(best, clip[rows[first : first + at_once]], cosines.amax(1).double().cpu().numpy())
    found = best[sample]
    return np.where(np.isfinite(found), found, np.nan)
