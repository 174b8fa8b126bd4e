"""auscult's own detector as a system of the benchmark, and the list of all systems."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import soxr

from auscult.metrics.copy_detection import Prediction, Span

from .baselines import System, baselines
from .dataset import Benchmark
from .signals import Audio

CLOSE = 24  # references per query that are compared segment by segment


def detect(benchmark: Benchmark, *, top: int) -> list[Prediction]:
    """auscult's detector: a score for every pair, spans for the best."""
    features, scoring, spans = _detector()

    def levels(audio: Audio) -> object:
        return features.describe(soxr.resample(audio, benchmark.rate, features.SAMPLE_RATE).astype(np.float32))

    described = [levels(s.audio) for s in benchmark.references]
    references = scoring.prepare_clips(described)
    background = scoring.prepare_clips([levels(s.audio) for s in benchmark.background])
    out = []
    for query in benchmark.queries:
        heard = levels(query.audio)
        scores = scoring.score(heard, references, background, close=CLOSE)
        for place, j in enumerate(np.argsort(-scores.score, kind="stable")[:top]):
            found: tuple[Span, ...] = ()
            if place == 0:
                start = {name: int(getattr(scores, name)[j]) for name in ("hypothesis", "query_start", "reference_start")}
                found = tuple(
                    Span(s.query_start_s, s.query_end_s, s.reference_start_s, s.reference_end_s)
                    for s in spans.locate(heard, described[j], **start).spans
                )
            name = benchmark.references[j].clip_id
            out.append(Prediction(query.truth.query_id, name, float(scores.score[j]), found))
    return out


def _detector() -> tuple:  # type: ignore[type-arg]
    """Its modules features, scoring and spans: auscult's, or those of a package whose folder DETECTOR names."""
    package = "auscult.alignment"
    if folder := os.environ.get("DETECTOR"):
        sys.path.insert(0, str(Path(folder).parent))
        package = Path(folder).name
    return tuple(importlib.import_module(f"{package}.{name}") for name in ("features", "scoring", "spans"))


def all_systems(*, clap: Path | None, top: int) -> tuple[dict[str, System], list[str]]:
    """The systems that can run here by name, and a note about each that cannot."""
    systems, notes = baselines(clap=clap, top=top)
    try:
        _detector()
    except ModuleNotFoundError as error:
        notes.append(f"auscult's detector was left out: {error}")
    else:
        systems["auscult"] = partial(detect, top=top)
    return systems, notes
