"""What to keep and drop of a deduplication, after people have looked at its clusters.

The lists that the machine wrote stay as they are; beside them come ``keep.reviewed.txt`` and ``drop.reviewed.txt``. A clip is
dropped only if most of those who decided on its cluster say the same; what they disagree on is kept, and a cluster that
nobody decided on stays as the machine has it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..duplicates import DROP, KEEP, Duplicates
from ..folders import write_text
from .fields import cluster_key, pair_id
from .verdicts import VerdictStore

KEEP_REVIEWED, DROP_REVIEWED = "keep.reviewed.txt", "drop.reviewed.txt"


@dataclass(frozen=True)
class ReviewedLists:
    """What people made of a deduplication.

    Attributes
    ----------
    dropped
        Ids of the clips to drop.
    decisions
        By cluster id: ``all_one``, ``split``, ``not_duplicates``, or ``disputed`` where reviewers disagree; clusters without a
        decision are not in it.
    joined
        Pairs that the machine did not count and that people call replications; the second of each is dropped.
    """

    dropped: frozenset[str]
    decisions: dict[int, str]
    joined: tuple[tuple[str, str], ...]


def reviewed_lists(dedup: Duplicates, store: VerdictStore) -> ReviewedLists:
    """The clips to drop, by the decisions of most of the reviewers.

    Across two sets only clips of the corpus are ever dropped, and only those in a group with a clip of the other set.
    """
    clusters: dict[int, list[dict[str, object]]] = defaultdict(list)
    for row in dedup.clusters().to_pylist():
        clusters[row["cluster_id"]].append(row)
    votes = _votes(store.latest_clusters())
    leakage = dedup.card["mode"] == "leakage"
    dropped: set[str] = set()
    decisions = {}
    for cluster_id, rows in clusters.items():
        ids = [str(row["clip_id"]) for row in rows]
        cast = votes.get(cluster_key(ids))
        if cast is None:
            dropped |= {str(row["clip_id"]) for row in rows if not row["keep"]}
            continue
        (decision, groups, kept), count = cast.most_common(1)[0]
        if 2 * count <= cast.total():
            decisions[cluster_id] = "disputed"
            continue
        decisions[cluster_id] = decision
        theirs = {str(row["clip_id"]) for row in rows if row["set"] == "against"}
        dropped |= _losers(groups, kept, theirs) if leakage else {clip for group in groups for clip in group} - set(kept)
    joined = _joined(dedup, store.consensus(), dropped, leakage)
    return ReviewedLists(frozenset(dropped | {second for _, second in joined}), decisions, joined)


def write_reviewed_lists(dedup: Duplicates, reviewed: ReviewedLists) -> tuple[Path, Path]:
    """Write ``keep.reviewed.txt`` and ``drop.reviewed.txt`` beside the machine's lists, in the same terms."""
    kept, dropped = ((dedup.path / name).read_text("utf-8").splitlines() for name in (KEEP, DROP))
    rows = dedup.clusters().to_pylist()
    pairs = dedup.pairs()
    by_path = dedup.card["lists_hold"] == "path"
    names = {row["clip_id"]: row["path"] if by_path else row["clip_id"] for row in rows}
    for side in ("first", "second"):
        ids, paths = pairs[f"{side}_id"].to_pylist(), pairs[f"{side}_path"].to_pylist()
        names |= dict(zip(ids, paths if by_path else ids, strict=True))
    out = {names[clip].replace("\n", "\\n") for clip in reviewed.dropped}
    everything = [*kept, *dropped]
    for file, chosen in (
        (KEEP_REVIEWED, [name for name in everything if name not in out]),
        (DROP_REVIEWED, [name for name in everything if name in out]),
    ):
        write_text(dedup.path / file, "".join(f"{name}\n" for name in chosen))
    return dedup.path / KEEP_REVIEWED, dedup.path / DROP_REVIEWED


Decision = tuple[str, tuple[tuple[str, ...], ...], tuple[str, ...]]


def _votes(latest: pa.Table) -> dict[str, Counter[Decision]]:
    """Each cluster's decisions with how many reviewers made them; the order of groups and clips says nothing."""
    votes: dict[str, Counter[Decision]] = defaultdict(Counter)
    for row in latest.to_pylist():
        groups = tuple(sorted(tuple(sorted(group)) for group in row["groups"]))
        votes[row["cluster_key"]][row["decision"], groups, tuple(sorted(row["kept"]))] += 1
    return votes


def _losers(groups: Iterable[Sequence[str]], kept: Iterable[str], theirs: set[str]) -> set[str]:
    """Clips of the corpus in a group with a clip of the other set, those left out that the reviewer keeps."""
    return {clip for group in groups if theirs & set(group) for clip in group} - theirs - set(kept)


def _joined(dedup: Duplicates, verdicts: dict[str, str], dropped: set[str], leakage: bool) -> tuple[tuple[str, str], ...]:
    """Open pairs that are replications, as (kept, dropped); of two sets the corpus's clip is the one to drop."""
    representative: dict[str, str] = {}  # of each clip that is in a verified pair

    def top(clip: str) -> str:
        while (other := representative.setdefault(clip, clip)) != clip:
            clip = other
        return clip

    for row in dedup.pairs().to_pylist():
        ends = (row["first_id"], row["second_id"])
        if row["duplicate"] or verdicts.get(pair_id(*ends)) != "replication" or dropped & set(ends):
            continue  # what is dropped already needs no second reason, and stands for nothing
        keep, drop = ends[::-1] if leakage else ends
        representative[top(drop)] = top(keep)
    return tuple((top(clip), clip) for clip in representative if top(clip) != clip)
