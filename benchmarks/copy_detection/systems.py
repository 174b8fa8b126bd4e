"""auscult's own detector as a system of the benchmark, by the function that an audit calls, and the list of all systems."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import soxr

from auscult import detection
from auscult.alignment.candidates import candidates
from auscult.comparison import AuditConfig, level
from auscult.descriptors.contrast import SAMPLE_RATE, ContrastDescriptor, describe
from auscult.engine import Engine
from auscult.levels import LevelSet
from auscult.metrics.copy_detection import Prediction, Span
from auscult.store import CLIP_SCHEMA

from .baselines import Answer, System, baselines
from .sets import Benchmark
from .signals import Audio


def level_set(clips: Iterable[tuple[str, Audio]], rate: int) -> LevelSet:
    """Levels and table of named clips: what `load_levels` would read from a store of them."""
    levels, rows = [], []
    for name, audio in clips:
        levels.append(describe(soxr.resample(audio, rate, SAMPLE_RATE)))
        digest = hashlib.sha256(audio.tobytes()).hexdigest()
        times = {"start_s": 0.0, "duration_s": len(audio) / rate}
        rows.append({"clip_id": name, "path": name, "sha256": digest, "sample_digest": digest, "n_windows": 1, **times})
    return LevelSet(levels, pa.Table.from_pylist(rows, schema=CLIP_SCHEMA))


def reference_set(benchmark: Benchmark) -> LevelSet:
    """The references, described."""
    return level_set(((s.clip_id, s.audio) for s in benchmark.references), benchmark.rate)


def detect(benchmark: Benchmark, *, top: int, workers: int = 1) -> Answer:
    """auscult's detector with its defaults: candidates, scores, spans, p-values, threshold.

    The note says what its own threshold, from p-values at the default false-discovery rate, makes of the queries.
    """
    # the references' own scores among each other only fill a histogram here, since null clips are given: one will do
    config = AuditConfig(k=top, null_sample=1)
    comparison = detection.detect(
        level_set(((q.truth.query_id, q.audio) for q in benchmark.asked), benchmark.rate),
        reference_set(benchmark),
        level_set(((s.clip_id, s.audio) for s in benchmark.background), benchmark.rate),
        level_set(((s.clip_id, s.audio) for s in benchmark.null), benchmark.rate),
        config=config,
        spec=str(ContrastDescriptor().spec),
        engine=Engine(workers),
    )
    predictions = [
        Prediction(row["query_id"], row["reference_id"], row["score"], tuple(_span(span) for span in row["spans"]))
        for row in comparison.matches.to_pylist()
    ]
    flagged = comparison.queries.filter(pc.field("flagged"))
    named = dict(zip(flagged["query_id"].to_pylist(), flagged["reference_id"].to_pylist(), strict=True))
    truth = {t.query_id: t.reference_id for t in benchmark.truths}
    heard = {query: reference for query, reference in named.items() if query in truth}
    right = sum(truth[query] == reference for query, reference in heard.items())
    copies = sum(reference is not None for reference in truth.values())
    note = (
        f"auscult's own threshold in an audit of these queries (false-discovery rate {level(config):g}, {len(benchmark.null)} "
        f"null clips): tau = {comparison.threshold.tau:.3f}; {len(heard)} flagged, {len(heard) - right} of them wrongly, "
        f"{right / max(copies, 1):.3f} of the copies found. {comparison.threshold.explanation}"
    )
    return Answer(predictions, (note, *comparison.warnings))


def _span(span: dict[str, float]) -> Span:
    return Span(*(span[name] for name in ("query_start_s", "query_end_s", "reference_start_s", "reference_end_s")))


def listed(benchmark: Benchmark, *, workers: int = 1) -> set[str]:
    """The positives, reversed ones included, whose reference is among the candidates that the first stage passes on."""
    references = reference_set(benchmark)
    copies = [q for q in benchmark.asked if q.truth.reference_id is not None]
    queries = level_set(((q.truth.query_id, q.audio) for q in copies), benchmark.rate)
    found = candidates(queries.levels, references.levels, k=AuditConfig().candidates, engine=Engine(workers))
    row = {s.clip_id: i for i, s in enumerate(benchmark.references)}
    return {
        q.truth.query_id for q, kept in zip(copies, found.index, strict=True) if row[str(q.truth.reference_id)] in kept.tolist()
    }


def all_systems(*, clap: Path | None, top: int, workers: int = 1) -> tuple[dict[str, System], list[str]]:
    """The systems that can run here by name, and a note about each that cannot."""
    systems, notes = baselines(clap=clap, top=top)
    systems["auscult"] = partial(detect, top=top, workers=workers)
    return systems, notes
