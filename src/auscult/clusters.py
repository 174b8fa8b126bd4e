"""From pairs to decisions: the clusters of duplicates, and in each what to keep and what to drop for it."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .pairs import ClipPair, DedupConfig, KeepPolicy, identity

CLUSTER_SCHEMA = pa.schema(
    [
        ("cluster_id", pa.int64()),
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("similarity_to_kept", pa.float64()),
        ("kept_clip_id", pa.string()),
        ("chained", pa.bool_()),
        ("captions_differ", pa.bool_()),
        ("caption", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("sample_rate_hz", pa.int32()),
        ("set", pa.string()),
    ]
)


def cluster_rows(clips: pa.Table, pairs: Iterable[ClipPair], n_corpus: int, config: DedupConfig) -> list[dict[str, Any]]:
    """Connected components of the duplicate pairs, and what to keep of each.

    In a component the best clip by the policy is kept, and every clip that is itself a copy of it (and covered by it) is
    dropped. What remains, linked to it only through others, is not thrown away: the best of it is kept in turn, and the
    component is marked as chained. Across two sets, the other set's clips are kept and the corpus's are dropped.
    """
    n = clips.num_rows
    duplicates = [pair for pair in pairs if pair.duplicate]
    if not duplicates:
        return []
    first, second = [pair.first for pair in duplicates], [pair.second for pair in duplicates]
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    for row in sorted({*first, *second}):
        members[int(label[row])].append(row)
    relation = _Relation(clips, duplicates)
    facts = clips.to_pylist()
    rows = []
    for cluster_id, component in enumerate(members.values()):
        order = sorted(component, key=lambda row: (row < n_corpus < n, *_preference(facts[row], config.keep), row))
        rows += _component_rows(cluster_id, order, relation, facts, n_corpus, config)
    return rows


class _Relation:
    """Looks up how two clips are related, identical clips sharing the pairs of the one that spoke for them."""

    def __init__(self, clips: pa.Table, duplicates: list[ClipPair]) -> None:
        self.clips = clips
        self.pairs = {(pair.first, pair.second): pair for pair in duplicates}
        self.spokesman = {pair.second: pair.first for pair in duplicates if pair.kind != "similar"}

    def __call__(self, one: int, other: int) -> ClipPair | None:
        """The pair with ``one`` as its first, or None."""
        speakers = [self.spokesman.get(row, row) for row in (one, other)]
        if (one, other) in self.pairs or (other, one) in self.pairs:
            speakers = [one, other]
        elif speakers[0] == speakers[1]:
            return identity(self.clips, one, other)
        pair = self.pairs.get((speakers[0], speakers[1]))
        if pair is not None:
            return dataclasses.replace(pair, first=one, second=other)
        pair = self.pairs.get((speakers[1], speakers[0]))
        return None if pair is None else dataclasses.replace(pair, first=one, second=other, coverage=pair.coverage[::-1])


def _preference(clip: dict[str, Any], policy: KeepPolicy) -> tuple[float, ...]:
    """Sorts the clip to keep first."""
    words = len(set((clip["caption"] or "").lower().split()))
    longest, rate = -round(clip["duration_s"], 3), -clip["sample_rate_hz"]
    link = float(os.path.islink(clip["path"]))  # a link is kept last: without the file that it leads to it is nothing
    return link, *{
        "longest": (longest, rate, -words),
        "highest_rate": (rate, longest, -words),
        "best_captioned": (-words, longest, rate),
        "first": (),
    }[policy]


def _component_rows(
    cluster_id: int, order: list[int], relation: _Relation, facts: list[dict[str, Any]], n_corpus: int, config: DedupConfig
) -> list[dict[str, Any]]:
    crossing = n_corpus < len(facts)
    decisions: list[tuple[int, ClipPair | None]] = []  # (row, its relation to the clip it is dropped for)
    remaining = list(order)
    while remaining:
        keeper = remaining.pop(0)
        decisions.append((keeper, None))
        pairs = {row: relation(keeper, row) for row in remaining}
        dropped = {
            row: pair
            for row, pair in pairs.items()
            if pair is not None and pair.coverage[1] >= config.coverage and not (crossing and row >= n_corpus)
        }
        decisions += dropped.items()
        remaining = [row for row in remaining if row not in dropped]
    kept = [row for row, pair in decisions if pair is None]
    chained = len(kept) > 1 and not crossing
    captions = {(facts[row]["caption"] or "").strip().lower() for row in order}
    rows = []
    for row, pair in decisions:
        clip = facts[row]
        keeper_id = None if pair is None else facts[pair.first]["clip_id"]
        if pair is not None:
            reason = f"{pair.kind.replace('_', '-')} to {keeper_id}"
        elif row >= n_corpus:
            reason = "the other set's"
        elif row == kept[0]:
            reason = f"kept: {config.keep.replace('_', ' ')}"
        elif relation(kept[0], row) is not None:
            reason = f"kept: {facts[kept[0]]['clip_id']} covers only part of it"
        else:
            reason = f"kept: in the cluster through others, not itself a copy of {facts[kept[0]]['clip_id']}"
        rows.append(
            {
                "cluster_id": cluster_id,
                "keep": pair is None,
                "reason": reason,
                "similarity_to_kept": None if pair is None else pair.similarity,
                "kept_clip_id": keeper_id,
                "chained": chained,
                "captions_differ": len(captions) > 1,
                "set": "against" if row >= n_corpus else "corpus",
                **{name: clip[name] for name in ("clip_id", "path", "caption", "start_s", "duration_s", "sample_rate_hz")},
            }
        )
    return rows
