"""What an approximate search misses, measured in the run that uses it: planted copies, and a sample of true queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import HERE, Engine
from ..folders import Progress, no_progress
from .approximate import Hnsw, Ivf, prepare_approximate
from .backends import Prepare
from .blocks import Matrix, as_blocks, total_rows
from .exact import FloatArray, IntArray, unit_rows
from .nearest import Exclusion, TopK, top_k

PLANTED_EACH = 50  # copies of each strength: with all found, the interval of 300 begins at 0.988
SAMPLE = 128  # true queries that are searched exactly too
CONFIDENCE = 0.95
SPREAD_ROWS = 1024

# What is done to a reference before it is asked for. "mix": the share of another reference in it, as vectors of unit length.
# "noise": Gaussian, of the references' own spread in each dimension, by this factor.
STRENGTHS = (("mix", 0.1), ("mix", 0.25), ("mix", 0.4), ("noise", 0.25), ("noise", 0.5), ("noise", 1.0))


@dataclass(frozen=True)
class Share:
    """``found`` of ``asked``, and the interval of the share by Clopper and Pearson (exact for binomial counts)."""

    found: int
    asked: int
    share: float | None
    low: float
    high: float

    @classmethod
    def of(cls, found: int, asked: int, confidence: float = CONFIDENCE) -> Share:
        """
        Examples
        --------
        >>> Share.of(300, 300)
        Share(found=300, asked=300, share=1.0, low=0.9877, high=1.0)
        """
        from scipy.special import betaincinv

        if asked == 0:
            return cls(0, 0, None, 0.0, 1.0)
        tail = (1 - confidence) / 2
        low = 0.0 if found == 0 else betaincinv(found, asked - found + 1, tail)
        high = 1.0 if found == asked else betaincinv(found + 1, asked - found, 1 - tail)
        # four digits, outwards, so that what is printed still covers
        return cls(found, asked, round(found / asked, 4), float(np.floor(low * 1e4) / 1e4), float(np.ceil(high * 1e4) / 1e4))

    def __str__(self) -> str:
        if self.share is None:
            return "none asked"
        return f"{self.share:.1%}, 95 % interval {self.low:.1%} to {self.high:.1%}"


@dataclass(frozen=True)
class PlantedRecall:
    """Copies of one strength: how many the approximate search found, how many the exact one, and how alike they are.

    Attributes
    ----------
    similarity
        Mean cosine of the copies with their sources.
    approximate, exact
        Share of copies whose source is among the k nearest. What exact search does not find either, since the copy is closer to
        others, is not the approximation's fault.
    """

    kind: str
    strength: float
    similarity: float
    approximate: Share
    exact: Share


@dataclass(frozen=True)
class Recall:
    """What an approximate search finds, measured.

    Attributes
    ----------
    k
        How many nearest were asked for.
    planted
        By kind and strength.
    overall
        Share of all planted copies whose source the approximate search lists.
    overall_exact
        The same of exact search.
    first, listed
        Of a sample of true queries: the share whose nearest is the one that exact search finds (or is exactly as close),
        and the share of exact search's k nearest that are listed (or equalled). The neighbours of one query are not
        independent, so the interval of ``listed`` is that of as many independent ones, too narrow if misses come together.
    """

    k: int
    planted: tuple[PlantedRecall, ...]
    overall: Share
    overall_exact: Share
    first: Share
    listed: Share

    def to_json(self) -> dict[str, Any]:
        """For a card: numbers, text, lists and dictionaries."""
        return asdict(self)

    def sentence(self, where: str = "") -> str:
        """What a report says beside everything that the approximate search did not list; ``where`` names what was searched."""
        return (
            f"The search was approximate and its lists may be incomplete{where}. "
            f"Of {self.overall.asked} planted copies it found {self.overall.found} among the {self.k} nearest "
            f"({self.overall}), exact search {self.overall_exact.found}. "
            f"Of {self.first.asked} true queries {self.first.found} got the nearest that exact search finds ({self.first}). "
            "What it misses lowers scores, also those of null and training clips: p-values may then be too small."
        )


@dataclass(frozen=True)
class Planted:
    """Copies to ask for.

    Attributes
    ----------
    queries
        (p, d) float32.
    source
        (p,) rows of the references that they are copies of.
    similarity
        (p,) cosines with them.
    strength
        (p,) which of ``strengths`` each has.
    """

    queries: FloatArray
    source: IntArray
    similarity: FloatArray
    strength: IntArray
    strengths: tuple[tuple[str, float], ...]


def plant(
    references: Matrix,
    *,
    each: int = PLANTED_EACH,
    strengths: Sequence[tuple[str, float]] = STRENGTHS,
    seed: int = 0,
) -> Planted:
    """Copies of random references at known strengths; reads every block that holds a source once.

    Parameters
    ----------
    references
        (m, d), or blocks of them; none of them zero.
    each
        Copies of each strength.
    strengths
        ``("mix", share of another reference, below 0.5)`` or ``("noise", factor on the references' spread)``.

    Raises
    ------
    ValueError
        No references, ``each`` below 1, or a strength that is none.
    """
    for kind, value in strengths:
        if kind not in {"mix", "noise"} or not 0 < value < (0.5 if kind == "mix" else np.inf):
            raise ValueError(f"a strength should be ('mix', between 0 and 0.5) or ('noise', above 0), got {(kind, value)}")
    n = total_rows(references)
    if n == 0 or each < 1:
        raise ValueError(f"expected references and at least one copy of each strength, got {n} references, each={each}")
    rng = np.random.default_rng(seed)
    strength = np.repeat(np.arange(len(strengths)), each)
    source, other = rng.integers(0, n, len(strength)), rng.integers(0, n, len(strength))
    spread_rows = rng.choice(n, min(n, SPREAD_ROWS), replace=False)
    rows = np.unique(np.concatenate([source, other, spread_rows]))
    units = _units_of(references, rows)
    sources, others = units[np.searchsorted(rows, source)], units[np.searchsorted(rows, other)]
    spread = units[np.searchsorted(rows, spread_rows)].std(axis=0)
    amount = np.array([value for _, value in strengths], np.float32)[strength][:, None]
    mixed = np.array([kind == "mix" for kind, _ in strengths])[strength][:, None]
    noise = rng.standard_normal(sources.shape, dtype=np.float32) * spread
    queries = np.where(mixed, (1 - amount) * sources + amount * others, sources + amount * noise)
    similarity = np.einsum("ij,ij->i", sources, unit_rows(queries)[0])
    return Planted(queries.astype(np.float32), source, similarity, strength, tuple(strengths))


def _units_of(references: Matrix, rows: IntArray) -> FloatArray:
    """Some rows (sorted) of a matrix, as unit rows."""
    parts = []
    for block in as_blocks(references):
        here = rows[(rows >= block.start) & (rows < block.stop)]
        if len(here):
            parts.append(unit_rows(block.load()[here - block.start])[0])
    return np.concatenate(parts)


def approximate_top_k(
    queries: FloatArray,
    references: Matrix,
    *,
    k: int,
    prepare: Prepare,
    exclude: Exclusion | None = None,
    distinct: IntArray | None = None,
    rank: IntArray | None = None,
    each: int = PLANTED_EACH,
    sample: int = SAMPLE,
    seed: int = 0,
    engine: Engine = HERE,
    name: str | None = None,
    progress: Progress = no_progress,
) -> tuple[TopK, Recall]:
    """:func:`~auscult.search.top_k` by an approximate search, and what it finds of what it should.

    Planted copies (:func:`plant`) are searched in the same pass as the queries, so every block is indexed once; they and
    ``sample`` of the queries are then searched exactly. Other arguments as of ``top_k`` and ``plant``.

    With ``distinct``, a copy counts as found if the clip of its source is listed.
    """
    planted = plant(references, each=each, seed=seed)
    if queries.ndim != 2 or queries.shape[1] != planted.queries.shape[1]:
        raise ValueError(f"expected queries (n, {planted.queries.shape[1]}) as the references, got {queries.shape}")
    n = len(queries)
    picked = _sample(n, sample, seed)
    asked = np.concatenate([queries, planted.queries])
    excluded = _none_for_planted(exclude, len(planted.queries))
    options: dict[str, Any] = {"k": k, "distinct": distinct, "rank": rank, "engine": engine}
    found = top_k(asked, references, exclude=excluded, prepare=prepare, name=name, progress=progress, **options)

    compared = np.concatenate([picked, np.arange(n, len(asked))])
    if excluded is not None:
        excluded = excluded[0][compared], excluded[1]
    exact = top_k(asked[compared], references, exclude=excluded, **options)
    groups = np.arange(total_rows(references)) if distinct is None else distinct
    recall = _compared(_rows(found, compared), exact, planted, len(picked), groups)
    return _rows(found, slice(0, n)), recall


def searched(
    method: str, queries: FloatArray, references: Matrix, *, measure: bool, **options: Any
) -> tuple[TopK, Recall | None]:
    """:func:`~auscult.search.top_k` by the ``method`` of a configuration, and, if it is approximate and to be measured, what it
    finds; ``options`` are those of ``top_k``.

    Where every block is too small for an index the search is exact, whatever the method, and there is nothing to measure.
    """
    prepare = prepare_approximate(method)
    indexed = isinstance(prepare, Ivf | Hnsw) and any(prepare.indexes(len(block)) for block in as_blocks(references))
    if len(queries) == 0 or not indexed:
        return top_k(queries, references, **options), None
    if not measure:
        return top_k(queries, references, prepare=prepare, **options), None
    return approximate_top_k(queries, references, prepare=prepare, **options)


def _sample(n: int, size: int, seed: int) -> IntArray:
    return np.sort(np.random.default_rng((seed, 1)).choice(n, min(n, size), replace=False))


def _none_for_planted(exclude: Exclusion | None, planted: int) -> Exclusion | None:
    """Exclusions of the queries and, after them, of planted copies, which have none."""
    if exclude is None:
        return None
    mine = exclude[0].reshape(len(exclude[0]), -1)
    return np.concatenate([mine, np.full((planted, mine.shape[1]), -1, mine.dtype)]), exclude[1]


def _rows(found: TopK, rows: IntArray | slice) -> TopK:
    return TopK(found.index[rows], found.similarity[rows])


def _compared(approximate: TopK, exact: TopK, planted: Planted, true: int, groups: IntArray) -> Recall:
    """From both searches' lists of ``true`` queries, then of planted copies."""
    hits = [_has_source(found.index[true:], groups, planted.source) for found in (approximate, exact)]
    parts = []
    for number, (kind, value) in enumerate(planted.strengths):
        mine = planted.strength == number
        shares = [Share.of(int(hit[mine].sum()), int(mine.sum())) for hit in hits]
        parts.append(PlantedRecall(kind, value, round(float(planted.similarity[mine].mean()), 4), *shares))
    overall = [Share.of(int(hit.sum()), len(hit)) for hit in hits]

    theirs, mine_listed = exact.index[:true], approximate.index[:true]
    wanted = theirs >= 0
    listed = (theirs[:, :, None] == mine_listed[:, None, :]).any(axis=2)
    # a full list of rows no farther than one that is missing is as good: equally close rows stand for each other
    listed |= exact.similarity[:true] <= approximate.similarity[:true, -1:]
    listed &= wanted
    first = approximate.similarity[:true, 0] >= exact.similarity[:true, 0]
    return Recall(
        k=exact.index.shape[1],
        planted=tuple(parts),
        overall=overall[0],
        overall_exact=overall[1],
        first=Share.of(int(first.sum()), int(wanted[:, 0].sum())),
        listed=Share.of(int(listed.sum()), int(wanted.sum())),
    )


def _has_source(index: IntArray, groups: IntArray, source: IntArray) -> npt.NDArray[np.bool_]:
    hit: npt.NDArray[np.bool_] = ((groups[index] == groups[source][:, None]) & (index >= 0)).any(axis=1)
    return hit
