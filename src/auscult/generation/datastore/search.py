"""The nearest keys of a query, but for those that it must not see."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...folders import Progress, no_progress
from ...search.exact import DoubleArray, FloatArray, IntArray, cosines, rounding_bound, unit_rows
from ...search.nearest import TopK

SCORE_BYTES = 64 << 20  # scores of a block of queries with all keys

_WORD = re.compile(r"\w+")


def normalized_caption(text: str) -> str:
    """What of a caption counts when two are compared: its words, without case and punctuation.

    A caption without words stays as it is, or all of those would be one caption.

    Examples
    --------
    >>> normalized_caption("  A dog barks; then, silence. ")
    'a dog barks then silence'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(text)) or text.strip()


def caption_numbers(captions: Iterable[str]) -> dict[str, int]:
    """A number for each caption, equal ones having one: keys are normalized.

    Examples
    --------
    >>> caption_numbers(["Rain.", "A dog", "rain"])
    {'rain': 0, 'a dog': 1}
    """
    return {text: number for number, text in enumerate(dict.fromkeys(map(normalized_caption, captions)))}


@dataclass(frozen=True)
class Exclusion:
    """What a query must not retrieve.

    Attributes
    ----------
    clip_ids
        The targets: clips that the query stands for (one in training, two where sounds are mixed, none for a free prompt). They
        have to be in the datastore.
    texts
        Further captions that count as the target's own. The query itself is one if it is a text.
    clusters
        Also pass over the duplicates of the targets.
    captions
        Also pass over all pairs whose caption is equal, as :func:`normalized_caption` sees it, to a target's or to one of
        ``texts``.
    """

    clip_ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    clusters: bool = True
    captions: bool = True


@dataclass(frozen=True)
class Groups:
    """Which rows belong together.

    Attributes
    ----------
    of
        (n,) group of each row; below 0: in none.
    """

    of: IntArray
    _order: IntArray
    _sorted: IntArray

    @classmethod
    def make(cls, of: npt.ArrayLike) -> Groups:
        """Groups of a label per row.

        Examples
        --------
        >>> Groups.make([7, -1, 7, 3]).members(7)
        array([0, 2])
        """
        labels = np.asarray(of, np.int64)
        order = np.argsort(labels, kind="stable")
        return cls(labels, order, labels[order])

    @classmethod
    def of_captions(cls, captions: Sequence[str]) -> Groups:
        """Groups of equal captions, numbered as :func:`caption_numbers` does."""
        numbers = caption_numbers(captions)
        return cls.make([numbers[normalized_caption(caption)] for caption in captions])

    def members(self, group: int) -> IntArray:
        """Rows of a group, in order; none of a group below 0."""
        if group < 0:
            return np.zeros(0, np.int64)
        first, end = np.searchsorted(self._sorted, [group, group + 1])
        return self._order[first:end]

    def like(self, rows: IntArray) -> IntArray:
        """The given rows and all that share a group with one of them."""
        return np.unique(np.concatenate([rows, *(self.members(int(group)) for group in np.unique(self.of[rows]))]))


def nearest(
    keys: FloatArray,
    queries: FloatArray,
    k: int,
    *,
    hidden: Callable[[int], IntArray],
    key_norms: DoubleArray | None = None,
    progress: Progress = no_progress,
) -> TopK:
    """The k keys of largest cosine for each query, exactly; equal ones in the order of their rows.

    All products are taken in float32. Those within twice their rounding error of the k-th, and all above, are taken again in
    float64. (:func:`auscult.search.top_k` gives one group to a reference; here a query passes over two kinds of groups, and
    pairs may share the one or the other.)

    Parameters
    ----------
    keys
        (n, d) float32 of unit length.
    queries
        (m, d) float32, any length but zero.
    k
        How many, at least 1.
    hidden
        Gives for the number of a query the rows of keys that it must not see.
    key_norms
        (n,) lengths of the keys in float64, which are 1 up to rounding; computed if not given.
    progress
        Called with queries searched, of all.

    Returns
    -------
    TopK
        (m, k) rows and cosines; -1 and NaN where fewer than k may be seen.

    Examples
    --------
    >>> x = np.eye(3, dtype=np.float32)
    >>> nearest(x, x[:1], 3, hidden=lambda query: np.array([1])).index
    array([[ 0,  2, -1]])
    """
    n, m = len(keys), len(queries)
    found = TopK(np.full((m, k), -1, np.int64), np.full((m, k), np.nan))
    units, norms = unit_rows(queries)
    key_norms = unit_rows(keys)[1] if key_norms is None else key_norms
    at_once = max(1, SCORE_BYTES // (4 * max(n, 1)))
    for start in range(0, m, at_once):
        block = slice(start, min(start + at_once, m))
        scores = units[block] @ keys.T
        for number, row in enumerate(scores, start):
            row[hidden(number)] = -np.inf
        _fill(found, block, scores, (queries[block], norms[block]), (keys, key_norms))
        progress(block.stop, m, "neighbors")
    return found


def _fill(
    found: TopK,
    block: slice,
    scores: FloatArray,
    queries: tuple[FloatArray, DoubleArray],
    keys: tuple[FloatArray, DoubleArray],
) -> None:
    """Write the best of a block of scores, which are -inf where a key must not be seen."""
    n, k = scores.shape[1], min(found.index.shape[1], scores.shape[1])
    kth = np.partition(scores, n - k, axis=1)[:, n - k]
    least = np.where(np.isneginf(kth), np.finfo(np.float32).min, kth - 2 * rounding_bound(keys[0].shape[1]))
    row, column = np.nonzero(scores >= least[:, None])
    exact = cosines(*queries, *keys, row, column)
    order = np.lexsort((column, -exact, row))
    row, column, exact = row[order], column[order], exact[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < k
    found.index[block.start + row[kept], rank[kept]] = column[kept]
    found.similarity[block.start + row[kept], rank[kept]] = exact[kept]
