"""auscult's own detector as a system of the benchmark, and the list of all systems."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import soxr

from auscult.alignment.scoring import prepare_clips, score
from auscult.alignment.spans import locate
from auscult.descriptors.contrast import SAMPLE_RATE, Levels, describe, fingerprint
from auscult.detection import CLOSE
from auscult.metrics.copy_detection import Prediction, Span

from .baselines import System, baselines
from .dataset import Benchmark
from .signals import Audio


def detect(benchmark: Benchmark, *, top: int) -> list[Prediction]:
    """auscult's detector: a score for every pair, spans for the best."""

    def levels(audio: Audio) -> Levels:
        return describe(soxr.resample(audio, benchmark.rate, SAMPLE_RATE).astype(np.float32))

    described = [levels(s.audio) for s in benchmark.references]
    references = prepare_clips([fingerprint(x) for x in described])
    background = prepare_clips([fingerprint(levels(s.audio)) for s in benchmark.background])
    out = []
    for query in benchmark.queries:
        heard = levels(query.audio)
        scores = score(heard, references, background, close=CLOSE)
        for place, j in enumerate(np.argsort(-scores.score, kind="stable")[:top]):
            found: tuple[Span, ...] = ()
            if place == 0:
                start = {name: int(getattr(scores, name)[j]) for name in ("hypothesis", "query_start", "reference_start")}
                found = tuple(
                    Span(s.query_start_s, s.query_end_s, s.reference_start_s, s.reference_end_s)
                    for s in locate(heard, described[j], **start).spans
                )
            name = benchmark.references[j].clip_id
            out.append(Prediction(query.truth.query_id, name, float(scores.score[j]), found))
    return out


def all_systems(*, clap: Path | None, top: int) -> tuple[dict[str, System], list[str]]:
    """The systems that can run here by name, and a note about each that cannot."""
    systems, notes = baselines(clap=clap, top=top)
    systems["auscult"] = partial(detect, top=top)
    return systems, notes
