"""How good a datastore's neighbors are: what must never be among them, hubs, classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from ...search.exact import IntArray
from ..gates import GateResult

HUB_K = 10  # neighbors of each target that hubs are counted in; Re-AudioLDM studies up to 10
PRECISION_AT = (1, 3, 5, 10)
CHANCE_TARGETS = 1000  # evenly spread over the pairs; all where there are no more


@dataclass(frozen=True)
class RetrievalReport:
    """Properties of the neighbors that a datastore keeps for its own pairs.

    Attributes
    ----------
    self_hits, duplicate_hits, caption_hits
        Neighbors that are the target itself, of its cluster, or of its caption. The first two are 0; the third too, unless
        equal captions were let in.
    k
        How many neighbors of each target the hub numbers count.
    never_retrieved
        Share of pairs that are nobody's neighbor among the first k.
    max_in_degree
        Of how many targets the most retrieved pair is a neighbor; the mean is k.
    margin
        Median over targets of the first neighbor's similarity less the k-th's; None where no target has k.
    class_precision
        Share of the first 1, 3, 5, 10 neighbors that share a label with their target, over targets with labels; None without
        labels.
    class_chance
        The same of a pair drawn at random.
    short
        Targets with fewer neighbors than are kept, since too much was excluded for them.
    """

    self_hits: int
    duplicate_hits: int
    caption_hits: int
    k: int
    never_retrieved: float
    max_in_degree: int
    margin: float | None
    class_precision: dict[str, float] | None
    class_chance: float | None
    short: int


def retrieval_report(
    rows: npt.NDArray[np.integer],
    similarity: npt.NDArray[np.floating],
    *,
    clusters: IntArray,
    captions: IntArray,
    labels: list[list[str]],
) -> RetrievalReport:
    """Measure neighbors.

    Parameters
    ----------
    rows, similarity
        (n, m) neighbors of each of n pairs, best first; -1 and NaN where there are fewer.
    clusters, captions
        (n,) groups of duplicates and of equal captions; below 0: in none.
    labels
        Of each pair.

    Examples
    --------
    >>> none = np.full(3, -1)
    >>> found = retrieval_report(np.array([[1], [0], [1]]), np.ones((3, 1)), clusters=none, captions=none, labels=[[]] * 3)
    >>> found.self_hits, found.max_in_degree, round(found.never_retrieved, 3)
    (0, 2, 0.333)
    """
    n, kept = rows.shape
    there = rows >= 0
    target = np.broadcast_to(np.arange(n)[:, None], rows.shape)

    def hits(groups: IntArray) -> int:
        return int((there & (groups[rows] == groups[target]) & (groups[target] >= 0)).sum())

    k = min(HUB_K, kept)
    in_degree = np.bincount(rows[:, :k][there[:, :k]], minlength=n)
    full = there[:, k - 1]
    shares = shared_labels(rows, labels)
    return RetrievalReport(
        self_hits=int((rows == target).sum()),
        duplicate_hits=hits(clusters),
        caption_hits=hits(captions),
        k=k,
        never_retrieved=float((in_degree == 0).mean()),
        max_in_degree=int(in_degree.max()),
        margin=float(np.median(similarity[full, 0] - similarity[full, k - 1])) if full.any() else None,
        class_precision=None if shares is None else _precision(shares),
        class_chance=None if shares is None else class_chance(labels),
        short=int((~there).any(axis=1).sum()),
    )


def retrieval_gate(report: RetrievalReport, *, equal_captions: bool = False) -> GateResult:
    """Whether neighbors are free of what must never be among them.

    Parameters
    ----------
    report
        Of a datastore.
    equal_captions
        Whether pairs with a target's caption were let in.

    Examples
    --------
    >>> clean = RetrievalReport(0, 0, 3, 10, 0.1, 40, None, None, None, 0)
    >>> retrieval_gate(clean).passed, retrieval_gate(clean, equal_captions=True).passed
    (False, True)
    """
    hits = report.self_hits + report.duplicate_hits + (0 if equal_captions else report.caption_hits)
    what = f"{report.self_hits} targets, {report.duplicate_hits} of their duplicates, {report.caption_hits} of their captions"
    then = "" if hits == 0 else ", and a model that is shown these learns to copy them; build the datastore again"
    return GateResult("retrieval", hits == 0, float(hits), 0.0, f"among the neighbors of the targets are {what}{then}")


def shared_labels(rows: npt.NDArray[np.integer], labels: list[list[str]]) -> npt.NDArray[np.float64] | None:
    """(n, m) 1 where a neighbor shares a label with its target, 0 where not, NaN where the target has none or the neighbor is
    missing; None if there are no labels at all."""
    sets = [frozenset(each) for each in labels]
    if not any(sets):
        return None
    shares = np.full(rows.shape, np.nan)
    for row, (mine, neighbors) in enumerate(zip(sets, rows.tolist(), strict=True)):
        if mine:
            shares[row] = [np.nan if one < 0 else not mine.isdisjoint(sets[one]) for one in neighbors]
    return shares


def _precision(shares: npt.NDArray[np.float64]) -> dict[str, float] | None:
    found = {}
    for k in PRECISION_AT:
        first = shares[:, :k]
        if k <= shares.shape[1] and not np.isnan(first).all():
            found[str(k)] = float(np.nanmean(first))
    return found or None


def class_chance(labels: list[list[str]]) -> float | None:
    """The probability that a pair shares a label with another one drawn at random, over targets with labels.

    Examples
    --------
    >>> round(class_chance([["dog"], ["dog"], ["rain"]]), 3)
    0.333
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(name for each in labels for name in each))}
    cells = sorted({(row, names[name]) for row, each in enumerate(labels) for name in each})
    labeled = sorted({row for row, _ in cells})
    if len(labels) < 2 or not labeled:
        return None
    has = csr_matrix((np.ones(len(cells)), tuple(zip(*cells, strict=True))), shape=(len(labels), len(names)))
    places = np.unique(np.linspace(0, len(labeled) - 1, min(len(labeled), CHANCE_TARGETS)).round().astype(int))
    targets = np.array(labeled)[places]
    sharing = sum((has[part] @ has.T).nnz for part in np.array_split(targets, len(targets) // 100 + 1))
    return float((sharing / len(targets) - 1) / (len(labels) - 1))  # itself does not count
