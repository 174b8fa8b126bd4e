"""Similarity made comparable between queries: the audit paper's background normalization.

A query of plain noise is somewhat similar to everything; what counts is how much closer it is to one reference than to
unrelated sound. ``s_hat(q, r) = s(q, r) - beta * mean of s(q, b) over the K nearest b of a background set``, s the cosine.
"""

from __future__ import annotations

import numpy as np

from .engine import HERE, Engine
from .folders import Progress, no_progress
from .search import DoubleArray, FloatArray, IntArray, top_k
from .search.blocks import Matrix, total_rows

BETA = 0.5
BACKGROUND_K = 5


CLOSE_K = 64  # neighbours looked at for copies
CLOSE_JUMP = 4.0  # factor by which the distance grows where copies end


def close_group(similarity: DoubleArray) -> IntArray:
    """How many of a vector's nearest neighbours are copies rather than merely similar; at least 1.

    Used where the background is drawn from the set itself: a clip with many copies would find them as its background and
    look ordinary. With distances ``d_j = 1 - s_j`` of the sorted neighbours, the copies end at the last j with
    ``d_(j+1) >= 4 d_j``: copies lie closer to each other by a factor, while unrelated neighbours follow each other closely.

    Parameters
    ----------
    similarity
        (n, k) cosines, best first, NaN after the last.

    Examples
    --------
    >>> close_group(np.array([[0.999, 0.998, 0.95, 0.94], [0.96, 0.95, 0.94, 0.93]]))
    array([2, 1])
    """
    distance = np.maximum(1.0 - similarity, 1e-6)  # the rounding of a float32 vector's cosine
    jump = np.zeros(similarity.shape, np.bool_)
    with np.errstate(invalid="ignore"):
        jump[:, :-1] = distance[:, 1:] >= CLOSE_JUMP * distance[:, :-1]
    last = similarity.shape[1] - np.argmax(jump[:, ::-1], axis=1)
    return np.where(jump.any(axis=1), last, 1).astype(np.int64)


def background_bias(
    queries: FloatArray,
    background: Matrix,
    *,
    k: int = BACKGROUND_K,
    beta: float = BETA,
    exclude: tuple[IntArray, IntArray] | None = None,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> DoubleArray:
    """``beta`` times the mean cosine of each query with its K nearest background vectors.

    Parameters
    ----------
    queries, background
        (n, d) and (m, d) float32, the background perhaps in blocks.
    k
        How many background neighbours (the paper: 5).
    beta
        Weight (the paper: 0.5).
    exclude
        Groups of background vectors that do not count for a query, as in ``search.top_k``: the query itself, and what it
        is suspected to copy.

    Returns
    -------
    ndarray (n,) float64

    Raises
    ------
    ValueError
        Fewer than k background vectors are left for a query.

    Examples
    --------
    >>> background_bias(np.array([[1, 0]], np.float32), np.array([[1, 0], [0, 1]], np.float32), k=2)
    array([0.25])

    References
    ----------
    Bralios et al., ICASSP 2024, section 3: beta = 0.5, K = 5, 1,000 background clips.
    """
    if len(queries) == 0:
        return np.zeros(0)
    nearest = top_k(queries, background, k=k, exclude=exclude, engine=engine, progress=progress)
    short = np.count_nonzero((nearest.index < 0).any(axis=1))
    if short:
        raise ValueError(
            f"the background has {total_rows(background)} vectors, which leaves {short} queries fewer than {k}; "
            f"give a background of at least {k + 2} unrelated clips"
        )
    bias: DoubleArray = beta * nearest.similarity.mean(axis=1)
    return bias
