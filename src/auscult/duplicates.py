"""Corridor 2: which clips of a corpus are copies of each other, and which of them to keep.

Data flow: store -> identical files by digest -> self-join of the others under the audit paper's symmetric rule -> graph ->
connected components -> for each, one clip to keep and what to drop for it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .clusters import CLUSTER_SCHEMA, cluster_rows
from .comparison import EXACT_AFTER_ALL
from .engine import HERE, Engine
from .errors import DescriptorMismatchError
from .folders import Progress, building, file_digests, no_progress, read_card, write_card, write_table, write_text
from .inputs import (
    Source,
    choose_descriptor,
    describe_sources,
    input_facts,
    input_warnings,
    scratch,
    skipped_table,
    stored_descriptor,
    task_sources,
)
from .pairs import ClipPair, DedupConfig, find_pairs
from .search.recall import Recall
from .storage import local_path

__all__ = ["DedupConfig", "Duplicates", "deduplicate"]

KIND = "dedup"
DEFAULT_DESCRIPTOR = "mel"  # the symmetric rule is the audit paper's, for whole clips
KEEP, DROP = "keep.txt", "drop.txt"
CLUSTERS, PAIRS, TOP1, SKIPPED = "clusters.parquet", "pairs.parquet", "top1.parquet", "skipped.parquet"


@dataclass(frozen=True)
class Duplicates:
    """A finished deduplication on disk: ``path`` of its folder and its ``card``."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Duplicates:
        """Open a finished deduplication; a ``StoreError`` says if there is none."""
        return cls(Path(path), read_card(Path(path), KIND))

    def clusters(self) -> pa.Table:
        """One row for each clip that is in a cluster."""
        return pq.read_table(self.path / CLUSTERS)

    def pairs(self) -> pa.Table:
        """Pairs of similar clips; ``duplicate`` tells those that count."""
        return pq.read_table(self.path / PAIRS)

    def top1(self) -> pa.Table:
        """Each clip's score with the clip most similar to it (``clip_id, score``); of identical clips, one stands for all."""
        return pq.read_table(self.path / TOP1)


def deduplicate(
    corpus: Source,
    *,
    output: str | Path,
    against: Source | None = None,
    background: Source | None = None,
    config: DedupConfig | None = None,
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
    finish: Callable[[Path], object] | None = None,
) -> Duplicates:
    """Find the duplicates of a corpus, or the clips of a corpus that leak into another one.

    Parameters
    ----------
    corpus
        The clips to clean, as a corpus or a store.
    output
        Folder of the result. A run that was stopped is continued.
    against
        Another set (a test set, a benchmark). Then only pairs across the two count, and what is dropped are the clips of
        ``corpus``.
    background
        Unrelated clips for the score normalization; without it, a sample of the corpus.
    config, engine, overwrite, progress, finish
        As in ``audit``.

    Raises
    ------
    CorpusError, DescriptorMismatchError, OutputFolderError
        As in ``audit``.
    """
    config = config or DedupConfig()
    started = time.time()
    sources = {"corpus": corpus, "against": against, "background": background}
    present = {role: source for role, source in sources.items() if source is not None}
    name = config.descriptor or stored_descriptor(present) or DEFAULT_DESCRIPTOR
    descriptor = choose_descriptor(present, name, config.duration_s)
    if descriptor.dtype != "float32":
        raise DescriptorMismatchError(
            f"deduplication compares vectors, and {descriptor.spec} has none; give the corpus itself, or a store made with "
            f"`auscult index --descriptor {DEFAULT_DESCRIPTOR}`"
        )
    task = {"config": dataclasses.asdict(config), "spec": str(descriptor.spec), "sources": task_sources(present)}
    with building(local_path(output), KIND, task=task, overwrite=overwrite) as folder:
        stores = describe_sources(present, folder / "stores", descriptor, engine=engine, progress=progress)
        vectors = {role: store.load(engine) for role, store in stores.items()}
        joint, n_corpus = vectors["corpus"], vectors["corpus"].clips.num_rows
        if "against" in vectors:
            joint = joint.joined(vectors["against"])
        with scratch(engine, folder, stores) as with_scratch:
            found = find_pairs(
                joint, n_corpus, vectors.get("background"), config=config, engine=with_scratch, progress=progress
            )
        threshold, pairs = found.threshold, found.pairs
        rows = cluster_rows(joint.clips, pairs, n_corpus, config)
        dropped = {row["clip_id"] for row in rows if not row["keep"]}
        write_table(folder / PAIRS, _pairs_table(pairs, joint.clips))
        write_table(folder / TOP1, found.top1)
        write_table(folder / CLUSTERS, pa.Table.from_pylist(rows, CLUSTER_SCHEMA))
        write_table(folder / SKIPPED, skipped_table(stores))
        lists_hold = _write_lists(folder, vectors["corpus"].clips, dropped)
        warnings = input_warnings(stores)
        if found.recall:
            warnings.append(recall_warning(found.recall))
        elif config.search != "exact":
            warnings.append(EXACT_AFTER_ALL)
        if background is None:
            warnings.append(
                "No background set was given; clips of the corpus itself took its place. Clips with many copies then look "
                "more ordinary than they are: give --background with unrelated sound."
            )
        if not threshold.separated:
            warnings.append(
                f"{threshold.explanation} Only identical clips were counted as duplicates; look at the pairs, or give --tau."
            )
        write_card(
            folder,
            KIND,
            {
                "config": dataclasses.asdict(config),
                "mode": "leakage" if against is not None else "duplicates",
                "descriptor": str(descriptor.spec),
                "inputs": {role: input_facts(store) for role, store in stores.items()},
                "counts": {
                    "clips": n_corpus,
                    "clusters": len({row["cluster_id"] for row in rows}),
                    "in_clusters": len(rows),
                    "chained": len({row["cluster_id"] for row in rows if row["chained"]}),
                    "captions_differ": len({row["cluster_id"] for row in rows if row["captions_differ"]}),
                    "dropped": len(dropped),
                    "bit_identical_pairs": sum(pair.kind == "bit_identical" for pair in pairs),
                    "sample_identical_pairs": sum(pair.kind == "sample_identical" for pair in pairs),
                    "similar_pairs": sum(pair.kind == "similar" and pair.duplicate for pair in pairs),
                    "skipped": sum(store.card["counts"]["skipped"] for store in stores.values()),
                },
                "lists_hold": lists_hold,
                "recall": {called: recall.to_json() for called, recall in found.recall.items()} or None,
                "pruned_share": round(found.pruned, 6),
                "threshold": dataclasses.asdict(threshold),
                "files": file_digests(folder, (PAIRS, CLUSTERS, TOP1, SKIPPED, KEEP, DROP)),
                "warnings": warnings,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 1),
            },
        )
        if finish is not None:
            finish(folder)
    return Duplicates.open(output)


def recall_warning(recall: dict[str, Recall]) -> str:
    """The sentence of the set that the approximate search misses most of, and which set that is."""
    worst = min(recall, key=lambda called: recall[called].overall.low)
    others = f", the most incomplete of {len(recall)} approximate searches" if len(recall) > 1 else ""
    return recall[worst].sentence(where=f" (nearest clips in {worst}{others})")


# --- files ----------------------------------------------------------------------------------------------------------


def _pairs_table(pairs: list[ClipPair], clips: pa.Table) -> pa.Table:
    order = sorted(pairs, key=lambda pair: (-(pair.score if pair.score is not None else 2.0), pair.first, pair.second))
    ids, paths = clips["clip_id"].to_pylist(), clips["path"].to_pylist()
    return pa.table(
        {
            "first_id": pa.array([ids[pair.first] for pair in order], pa.string()),
            "first_path": pa.array([paths[pair.first] for pair in order], pa.string()),
            "second_id": pa.array([ids[pair.second] for pair in order], pa.string()),
            "second_path": pa.array([paths[pair.second] for pair in order], pa.string()),
            "similarity": pa.array([pair.similarity for pair in order], pa.float64()),
            "score": pa.array([pair.score for pair in order], pa.float64()),
            "first_coverage": pa.array([pair.coverage[0] for pair in order], pa.float64()),
            "second_coverage": pa.array([pair.coverage[1] for pair in order], pa.float64()),
            "kind": pa.array([pair.kind for pair in order], pa.string()),
            "duplicate": pa.array([pair.duplicate for pair in order], pa.bool_()),
        }
    )


def _write_lists(folder: Path, clips: pa.Table, dropped: set[str]) -> str:
    """Write ``keep.txt`` and ``drop.txt``: paths, one a line; clip ids where several clips share a file."""
    ids, paths = clips["clip_id"].to_pylist(), clips["path"].to_pylist()
    names, holds = (paths, "path") if len(set(paths)) == len(paths) else (ids, "clip_id")
    for file, wanted in ((KEEP, False), (DROP, True)):
        lines = [name.replace("\n", "\\n") for clip_id, name in zip(ids, names, strict=True) if (clip_id in dropped) == wanted]
        write_text(folder / file, "".join(f"{line}\n" for line in lines))
    return holds
