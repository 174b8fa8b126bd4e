"""The systems that auscult's detector is measured against: the paper's mel, CLAP, Chromaprint.

A system takes a benchmark and returns its best predictions of each query; all of them are asked about the same references.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import soundfile as sf
import soxr

from auscult.audio import cut_windows
from auscult.descriptors import load_descriptor
from auscult.descriptors.base import Descriptor
from auscult.metrics.copy_detection import Prediction
from auscult.search.exact import unit_rows
from auscult.similarity import background_bias

from .sets import Benchmark
from .signals import Audio


@dataclass(frozen=True)
class Answer:
    """What a system says: predictions, best first for each query, and notes for the page."""

    predictions: list[Prediction]
    notes: tuple[str, ...] = ()


System = Callable[[Benchmark], Answer]
FloatArray = npt.NDArray[np.float32]
Print = npt.NDArray[np.uint32]

MIN_OVERLAP = 8  # items, about 1 s of offsets (an item itself sees 2.6 s); 2 to 16 tried on seed 2: micro-AP 0.50-0.55, 8: 0.55
_BATCH = 32


def best_predictions(benchmark: Benchmark, scores: npt.NDArray[np.floating], top: int) -> list[Prediction]:
    """The `top` references of each query from a score matrix (queries, references); minus infinity is no prediction."""
    out = []
    for query, row in zip(benchmark.asked, scores, strict=True):
        for j in np.argsort(-row, kind="stable")[:top]:
            if np.isfinite(row[j]):
                out.append(Prediction(query.truth.query_id, benchmark.references[j].clip_id, float(row[j])))
    return out


def describe(clips: Sequence[Audio], rate: int, descriptor: Descriptor) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Vectors (windows, d) of all windows that are not silent, and the clip (windows,) of each."""
    parts: list[FloatArray] = []
    owner: list[int] = []
    waiting: list[FloatArray] = []
    for i, audio in enumerate(clips):
        mono = soxr.resample(audio, rate, descriptor.sample_rate_hz).astype(np.float32)
        for window in cut_windows(
            iter([mono]), window_samples=descriptor.window_samples, sample_rate_hz=descriptor.sample_rate_hz
        ):
            if window.samples.any():
                waiting.append(window.samples)
                owner.append(i)
        if len(waiting) >= _BATCH:  # padded windows of all clips would fill the memory
            parts.append(descriptor.describe(np.stack(waiting)))
            waiting = []
    if waiting:
        parts.append(descriptor.describe(np.stack(waiting)))
    return np.concatenate(parts), np.array(owner)


def nearest_vectors(benchmark: Benchmark, *, descriptor: Descriptor, normalized: bool, top: int) -> Answer:
    """Largest cosine of any window of the query with any of the reference.

    `normalized` subtracts half the mean cosine of a query's window with its 5 nearest background windows, the audit
    paper's score.
    """
    queries, query_of = describe([q.audio for q in benchmark.asked], benchmark.rate, descriptor)
    references, reference_of = describe([s.audio for s in benchmark.references], benchmark.rate, descriptor)
    cosine = unit_rows(queries)[0] @ unit_rows(references)[0].T
    if normalized:
        background, _ = describe([s.audio for s in benchmark.background], benchmark.rate, descriptor)
        cosine = cosine - background_bias(queries, background)[:, None]
    scores = np.full((len(benchmark.asked), len(benchmark.references)), -np.inf)
    np.maximum.at(scores, (query_of[:, None], reference_of[None, :]), cosine)
    return Answer(best_predictions(benchmark, scores, top))


def chromaprint(benchmark: Benchmark, *, program: str, top: int) -> Answer:
    """Best agreement of Chromaprint's fingerprints over all offsets: the share of equal bits where they overlap.

    A fingerprint holds 32 bits per 0.12 s. Clips under about 2.7 s have none, and pairs that overlap in fewer than
    `MIN_OVERLAP` items are not compared: such queries get no prediction, which counts as not found.
    """
    queries = fingerprints([q.audio for q in benchmark.asked], benchmark.rate, program)
    references = fingerprints([s.audio for s in benchmark.references], benchmark.rate, program)
    notes = tuple(
        f"Chromaprint: {sum(len(p) < MIN_OVERLAP for p in prints)} of {len(prints)} {name} are too short for it"
        for name, prints in (("queries", queries), ("references", references))
    )
    return Answer(best_predictions(benchmark, bit_agreements(queries, references), top), notes)


def fingerprints(clips: Sequence[Audio], rate: int, program: str) -> list[Print]:
    """Raw fingerprints (items,) uint32 of the program ``fpcalc``; empty where it finds the clip too short."""
    out = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        for audio in clips:
            sf.write(path, audio, rate, subtype="PCM_16")
            done = subprocess.run(
                [program, "-raw", "-json", "-length", "0", str(path)], capture_output=True, text=True, check=False
            )
            if not done.stdout and "Empty fingerprint" not in done.stderr:
                raise RuntimeError(f"{program} failed: {done.stderr.strip()}")
            out.append(np.array(json.loads(done.stdout)["fingerprint"] if done.stdout else [], np.uint32))
    return out


def bit_agreements(queries: Sequence[Print], references: Sequence[Print]) -> npt.NDArray[np.float32]:
    """Largest share of equal bits over all offsets that overlap in `MIN_OVERLAP` items, (queries, references).

    Minus infinity where none does. References lie end to end in one array, with gaps so long that no query reaches from one
    into the next: one matrix product and one sum along diagonals compare a query with all of them.
    """
    gap = max((len(q) for q in queries), default=0)
    sizes = np.array([len(r) + gap for r in references])
    signs = np.zeros((int(sizes.sum()) + gap, 32), np.float32)
    starts = gap + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    for start, reference in zip(starts, references, strict=True):
        signs[start : start + len(reference)] = _signs(reference)
    heard = np.concatenate([[0], np.cumsum(np.abs(signs[:, 0]))])
    out = np.full((len(queries), len(references)), -np.inf, np.float32)
    for row, query in enumerate(queries):
        n = len(query)
        if n < MIN_OVERLAP:
            continue
        products = _signs(query) @ signs.T
        total = sum(products[i, i : len(signs) - n + 1 + i] for i in range(n))
        overlap = heard[n:] - heard[:-n]
        agreement = np.where(overlap >= MIN_OVERLAP, (1 + total / (32 * np.maximum(overlap, 1))) / 2, -np.inf)
        # a reference answers for the offsets from its gap on to its last item
        out[row] = np.maximum.reduceat(agreement, starts - gap)
    return out


def _signs(fingerprint: Print) -> FloatArray:
    """Bits (items, 32) as -1 and 1."""
    return 2 * np.unpackbits(fingerprint[:, None].view(np.uint8), axis=1).astype(np.float32) - 1


def baselines(*, clap: Path | None, top: int) -> tuple[dict[str, System], list[str]]:
    """The systems that can run here by name, and a note about each that cannot."""
    mel = load_descriptor("mel")
    systems: dict[str, System] = {
        "mel (paper), raw": partial(nearest_vectors, descriptor=mel, normalized=False, top=top),
        "mel (paper), normalized": partial(nearest_vectors, descriptor=mel, normalized=True, top=top),
    }
    notes = []
    if program := shutil.which("fpcalc"):
        systems["Chromaprint"] = partial(chromaprint, program=program, top=top)
    else:
        notes.append("Chromaprint was left out: the program fpcalc is not there (Debian: libchromaprint-tools)")
    if clap is None:
        notes.append("CLAP was left out: give a folder with its weights as --clap FOLDER")
    else:
        from auscult.descriptors.clap import ClapDescriptor  # torch and transformers, an extra

        model: Descriptor = ClapDescriptor(str(clap))
        systems["CLAP, raw"] = partial(nearest_vectors, descriptor=model, normalized=False, top=top)
        systems["CLAP, normalized"] = partial(nearest_vectors, descriptor=model, normalized=True, top=top)
    return systems, notes
