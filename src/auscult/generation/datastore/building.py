"""Build a datastore: a corpus with captions -> descriptors -> keys -> each pair's neighbors, without what must not be seen.

Source: Yuan et al., "Retrieval-Augmented Text-to-Audio Generation", ICASSP 2024, which keeps 50 neighbors for each target. It
does not say whether keys are of captions or of sounds, and takes out the target only; here the duplicates of the target and
equal captions go too, since a model that is shown a copy of what it should produce learns to copy.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ...engine import HERE, Engine
from ...folders import Progress, atomic_file, building, file_digests, no_progress, write_card, write_table
from ...inputs import Source, describe_sources, input_facts, input_warnings, skipped_table, task_sources
from ...search.exact import FloatArray, IntArray
from ...search.nearest import TopK
from ...storage import local_path
from ...store import DescriptorStore
from ...vectors import Vectors
from ..gates import check
from .captioned import NO_CAPTION, SILENT, refuse_without_captions, usable_clips
from .duplicates import Known, duplicate_groups, read_duplicates
from .encoding import Encoders, Key, centered, choose_encoders, clip_vectors, mean_of
from .report import RetrievalReport, retrieval_gate, retrieval_report
from .search import Groups, nearest
from .store import CENTER, KEYS, KIND, NEIGHBORS, PAIRS, SKIPPED, Datastore

TEXTS_AT_ONCE = 1024
WINDOW_POLICY = "mean of the unit vectors of a clip's windows that are not silent, at unit length"
NO_DUPLICATES = (
    "No duplicates were given, so only clips of identical or overlapping audio count as duplicates of a target; its "
    "near-copies may be among its neighbors. Give --duplicates with a folder of auscult dedup of the same clips."
)
NO_THRESHOLD = (
    "The deduplication found no gap between copies and other clips, so of its finds only identical clips count as duplicates; "
    "look at its pairs, or give auscult dedup a --tau."
)


@dataclass(frozen=True)
class DatastoreConfig:
    """Settings of a datastore.

    Attributes
    ----------
    key
        What of a pair is compared with a query: its sound, its caption, or the mean of both.
    model
        What makes vectors: a CLAP model (a name on the Hugging Face hub or a folder) of sounds and captions; ``mel``, of sounds
        alone (``key="audio"``); ``hashed``, of captions by their words, without weights (``key="text"``). None: that of the
        store that is given, else ``laion/clap-htsat-unfused``. With CLAP and with ``hashed`` the query is the target's caption,
        with ``mel`` its sound.
    duration_s
        Window of ``mel`` in seconds.
    neighbors
        Kept for each pair.
    equal_captions
        Let pairs with a target's caption be its neighbors.
    """

    key: Key = "audio"
    model: str | None = None
    duration_s: float | None = None
    neighbors: int = 50
    equal_captions: bool = False

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ValueError(f"neighbors should be at least 1, got {self.neighbors}")


def build_datastore(
    source: Source,
    *,
    output: str | Path,
    duplicates: str | Path | None = None,
    together: Mapping[str, str] | None = None,
    config: DatastoreConfig | None = None,
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Datastore:
    """Build a datastore of a corpus's clips and their captions.

    Clips without a caption, unreadable and silent ones are in no pair; they are counted and listed in ``skipped.parquet``.

    Parameters
    ----------
    source
        The corpus, or its store.
    output
        Folder of the result. A run that was stopped is continued.
    duplicates
        Folder of a finished ``auscult dedup`` of the same clips.
    together
        By clip id: a name that clips share which count as duplicates though nobody would find them, such as takes of one
        recording.
    config, engine, overwrite, progress
        As in ``audit``.

    Raises
    ------
    CorpusError
        There are fewer than two pairs.
    StoreError
        The duplicates are of other clips.
    DescriptorMismatchError, ModelError, MissingExtraError, OutputFolderError, ValueError
        As in ``audit``, and where the model has no such keys.
    """
    config = config or DatastoreConfig()
    started = time.time()
    refuse_without_captions(source)
    known = None if duplicates is None else read_duplicates(duplicates)
    encoders = choose_encoders(source, config.key, config.model, config.duration_s, engine.device)
    task = {
        "config": dataclasses.asdict(config),
        "encoders": _specs(encoders),
        "sources": task_sources({"pairs": source}),
        "duplicates": None if known is None else known.digest,
        **(
            {}
            if together is None
            else {"together": xxhash.xxh3_64_hexdigest(json.dumps(dict(together), sort_keys=True).encode())}
        ),
    }
    with building(local_path(output), KIND, task=task, overwrite=overwrite) as folder:
        stores = describe_sources({"pairs": source}, folder / "stores", encoders.audio, engine=engine, progress=progress)
        vectors = stores["pairs"].load(engine)
        made = _make(vectors, known, together or {}, encoders, config, progress)
        _write(folder, made, pa.concat_tables([skipped_table(stores), made.left_out]))
        content = _card(folder, stores["pairs"], encoders, known, config, made)
        ended = {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": round(time.time() - started, 1)}
        write_card(folder, KIND, content | ended)
    return Datastore.load(output, device=engine.device)


def _make(
    vectors: Vectors,
    known: Known | None,
    together: Mapping[str, str],
    encoders: Encoders,
    config: DatastoreConfig,
    progress: Progress,
) -> Made:
    """Clips -> pairs -> keys -> neighbors."""
    clips, left_out = usable_clips(vectors)
    pairs = _pairs_table(vectors.clips.take(clips), known, together)
    captions = pairs["caption"].to_pylist()
    keys, queries, center = _keys(vectors, clips, captions, encoders, config.key, progress)
    clusters, equal = Groups.make(pairs["cluster_id"].to_numpy()), Groups.of_captions(captions)
    kinds = [clusters] if config.equal_captions else [clusters, equal]

    def hidden(row: int) -> IntArray:
        return np.unique(np.concatenate([kind.like(np.array([row])) for kind in kinds]))

    found = nearest(keys, queries, min(config.neighbors, len(keys) - 1), hidden=hidden, progress=progress)
    return Made(pairs, clusters, equal, keys, center, found, left_out)


def _specs(encoders: Encoders) -> dict[str, str | None]:
    return {"audio": str(encoders.audio.spec), "text": None if encoders.text is None else encoders.text.spec}


def _pairs_table(clips: pa.Table, known: Known | None, together: Mapping[str, str]) -> pa.Table:
    columns = ["clip_id", "path", "start_s", "duration_s", "caption", "labels", "sha256", "sample_digest"]
    groups = duplicate_groups(clips, known, together)
    return clips.select(columns).append_column("cluster_id", pa.array(groups, pa.int64()))


def _keys(
    vectors: Vectors, clips: IntArray, captions: list[str], encoders: Encoders, key: Key, progress: Progress
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Keys, what each target asks with, and what was taken off both."""
    if encoders.text is None:
        sounds = clip_vectors(vectors, clips)
        center = sounds.mean(axis=0, dtype=np.float64).astype(np.float32)
        keys = centered(sounds, center)
        return keys, keys, center
    parts = []
    for start in range(0, len(captions), TEXTS_AT_ONCE):
        parts.append(encoders.text.embed(captions[start : start + TEXTS_AT_ONCE]))
        progress(min(start + TEXTS_AT_ONCE, len(captions)), len(captions), "captions")
    texts = np.concatenate(parts)
    if key == "text":
        return texts, texts, None
    sounds = clip_vectors(vectors, clips)
    return (sounds if key == "audio" else mean_of(sounds, texts)), texts, None


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What is written: see the files of a datastore."""

    pairs: pa.Table
    clusters: Groups
    captions: Groups
    keys: FloatArray
    center: FloatArray | None
    found: TopK
    left_out: pa.Table


def _write(folder: Path, made: Made, skipped: pa.Table) -> None:
    write_table(folder / PAIRS, made.pairs)
    write_table(folder / SKIPPED, skipped)
    for name, array in ((KEYS, made.keys), (CENTER, made.center)):
        if array is not None:
            with atomic_file(folder / name) as handle:
                np.save(handle, array, allow_pickle=False)
    width = made.found.index.shape[1]
    columns: dict[str, npt.NDArray[Any]] = {
        "rows": made.found.index.astype(np.int32),
        "similarity": made.found.similarity,
    }
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width) for name, values in columns.items()}
    write_table(folder / NEIGHBORS, pa.table({"clip_id": made.pairs["clip_id"], **lists}))


def _card(
    folder: Path, store: DescriptorStore, encoders: Encoders, known: Known | None, config: DatastoreConfig, made: Made
) -> dict[str, Any]:
    """What ``card.json`` says; nothing if the neighbors are not free of what must not be among them."""
    clusters, facts = made.clusters.of, input_facts(store)
    report = retrieval_report(
        made.found.index,
        made.found.similarity,
        clusters=clusters,
        captions=made.captions.of,
        labels=[labels or [] for labels in made.pairs["labels"].to_pylist()],
    )
    check([retrieval_gate(report, equal_captions=config.equal_captions)])
    reasons = [row["reason"] for row in made.left_out.to_pylist()]
    names = [PAIRS, KEYS, NEIGHBORS, SKIPPED] + ([] if made.center is None else [CENTER])
    noted = input_warnings({"pairs": store}, padding=config.key != "text")
    return {
        "config": dataclasses.asdict(config),
        "encoders": _specs(encoders),
        "sample_rate_hz": encoders.audio.sample_rate_hz,
        "window_s": store.card["window_s"],
        "window_policy": None if config.key == "text" else WINDOW_POLICY,
        "centered": made.center is not None,
        "dimension": made.keys.shape[1],
        "inputs": {"pairs": facts},
        "duplicates": None if known is None else known.facts(),
        "counts": {
            "pairs": len(made.keys),
            "clusters": len(np.unique(clusters[clusters >= 0])),
            "in_clusters": int((clusters >= 0).sum()),
            "distinct_captions": len(np.unique(made.captions.of)),
            "without_caption": reasons.count(NO_CAPTION),
            "silent": reasons.count(SILENT),
            "skipped": facts["counts"]["skipped"] + len(reasons),
        },
        "report": dataclasses.asdict(report),
        "files": file_digests(folder, names),
        "warnings": [*noted, *_warnings(report, known, made, config.neighbors)],
    }


def _warnings(report: RetrievalReport, known: Known | None, made: Made, wanted: int) -> list[str]:
    """What to be careful about."""
    warnings = [NO_DUPLICATES] if known is None else []
    if known is not None and not known.card["threshold"]["separated"]:
        warnings.append(NO_THRESHOLD)
    if report.short and made.found.index.shape[1] == wanted:  # a small datastore cannot give as many to anybody
        warnings.append(
            f"{report.short:,} of {len(made.keys):,} targets have fewer than {made.found.index.shape[1]} neighbors, since too "
            "many pairs share their caption or are their duplicates."
        )
    return warnings
