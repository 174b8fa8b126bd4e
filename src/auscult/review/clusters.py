"""The clusters of a deduplication as a gallery: who is in each, how similar to the kept one, and a name for each clip."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..duplicates import CLUSTERS
from ..duplicates import KIND as DEDUP_KIND
from .verdicts import cluster_key


@dataclass(frozen=True)
class ClusterMember:
    """A clip of a cluster; ``similarity`` is to the kept clip (None for that clip itself)."""

    clip_id: str
    clip_key: str
    path: str
    start_s: float
    duration_s: float | None
    caption: str | None
    keep: bool
    reason: str
    similarity: float | None


class ReviewClusters:
    """Clusters by key; ``keys`` has the least similar first, since these need a look most."""

    def __init__(self, clusters: Sequence[Sequence[ClusterMember]]) -> None:
        self._clusters = {
            cluster_key([member.clip_id for member in members]): sorted(members, key=_kept_then_closest) for members in clusters
        }
        self._clips = {member.clip_key: member for members in self._clusters.values() for member in members}
        self.keys = sorted(self._clusters, key=lambda key: (self.lowest_similarity(key), key))

    @classmethod
    def load(cls, folder: Path, kind: str) -> ReviewClusters:
        """The clusters of a folder of this kind; an audit has none."""
        if kind != DEDUP_KIND:
            return cls([])
        clusters: dict[int, list[ClusterMember]] = {}
        for row in pq.read_table(folder / CLUSTERS).to_pylist():
            clusters.setdefault(row["cluster_id"], []).append(_member(row))
        return cls(list(clusters.values()))

    def __len__(self) -> int:
        return len(self._clusters)

    def __contains__(self, key: object) -> bool:
        return key in self._clusters

    def members(self, key: str) -> list[ClusterMember]:
        """Clips of a cluster, the kept one first, then the most similar to it."""
        return self._clusters[key]

    def clip(self, clip_key: str) -> ClusterMember:
        """The clip of that name; a ``KeyError`` if no cluster holds it."""
        return self._clips[clip_key]

    def lowest_similarity(self, key: str) -> float:
        """Of the members to the kept one; identical files, which have none, count as 1."""
        return min((member.similarity for member in self._clusters[key] if member.similarity is not None), default=1.0)


def _member(row: dict[str, Any]) -> ClusterMember:
    similarity = row["similarity_to_kept"]
    return ClusterMember(
        clip_id=row["clip_id"],
        clip_key=hashlib.sha256(f"{row['set']}\0{row['clip_id']}".encode()).hexdigest()[:16],
        path=row["path"],
        start_s=float(row["start_s"] or 0.0),
        duration_s=row["duration_s"],
        caption=row["caption"],
        keep=bool(row["keep"]),
        reason=row["reason"],
        similarity=None if similarity is None or not math.isfinite(similarity) else float(similarity),
    )


def _kept_then_closest(member: ClusterMember) -> tuple[bool, float, str]:
    return not member.keep, -1.0 if member.similarity is None else -member.similarity, member.clip_key
