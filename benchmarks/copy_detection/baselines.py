"""The systems that auscult's detector is measured against: the paper's mel, CLAP, Chromaprint.

A system takes a benchmark and returns its best predictions of each query.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
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
from auscult.search import unit_rows
from auscult.similarity import background_bias

from .dataset import Benchmark
from .signals import Audio

System = Callable[[Benchmark], list[Prediction]]
FloatArray = npt.NDArray[np.float32]

MIN_OVERLAP = 8  # items, about 1 s of offsets (an item itself sees 2.6 s); 2 to 16 tried on seed 2: micro-AP 0.50-0.55, 8: 0.55
_BATCH = 32


def best_predictions(benchmark: Benchmark, scores: npt.NDArray[np.floating], top: int) -> list[Prediction]:
    """The `top` references of each query from a score matrix (queries, references); minus infinity is no prediction."""
    out = []
    for query, row in zip(benchmark.queries, scores, strict=True):
        for j in np.argsort(-row, kind="stable")[:top]:
            if np.isfinite(row[j]):
                out.append(Prediction(query.truth.query_id, benchmark.references[j].clip_id, float(row[j])))
    return out


def describe(clips: Sequence[Audio], rate: int, descriptor: Descriptor) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Vectors (windows, d) of all windows that are not silent, and the clip (windows,) of each."""
    windows: list[FloatArray] = []
    owner: list[int] = []
    for i, audio in enumerate(clips):
        mono = soxr.resample(audio, rate, descriptor.sample_rate_hz).astype(np.float32)
        for window in cut_windows(
            iter([mono]), window_samples=descriptor.window_samples, sample_rate_hz=descriptor.sample_rate_hz
        ):
            if window.samples.any():
                windows.append(window.samples)
                owner.append(i)
    parts = [descriptor.describe(np.stack(windows[i : i + _BATCH])) for i in range(0, len(windows), _BATCH)]
    return np.concatenate(parts), np.array(owner)


def nearest_vectors(benchmark: Benchmark, *, descriptor: Descriptor, normalized: bool, top: int) -> list[Prediction]:
    """Largest cosine of any window of the query with any of the reference.

    `normalized` subtracts half the mean cosine of a query's window with its 5 nearest background windows, the audit
    paper's score.
    """
    queries, query_of = describe([q.audio for q in benchmark.queries], benchmark.rate, descriptor)
    references, reference_of = describe([s.audio for s in benchmark.references], benchmark.rate, descriptor)
    cosine = unit_rows(queries)[0] @ unit_rows(references)[0].T
    if normalized:
        background, _ = describe([s.audio for s in benchmark.background], benchmark.rate, descriptor)
        cosine = cosine - background_bias(queries, background)[:, None]
    scores = np.full((len(benchmark.queries), len(benchmark.references)), -np.inf)
    np.maximum.at(scores, (query_of[:, None], reference_of[None, :]), cosine)
    return best_predictions(benchmark, scores, top)


def chromaprint(benchmark: Benchmark, *, program: str, top: int) -> list[Prediction]:
    """Best agreement of Chromaprint's fingerprints over all offsets: the share of equal bits where they overlap.

    A fingerprint holds 32 bits per 0.12 s. Clips under about 2.7 s have none, and pairs that overlap in fewer than
    `MIN_OVERLAP` items are not compared: such queries get no prediction, which counts as not found.
    """
    queries = fingerprints([q.audio for q in benchmark.queries], benchmark.rate, program)
    references = fingerprints([s.audio for s in benchmark.references], benchmark.rate, program)
    for name, prints in (("queries", queries), ("references", references)):
        print(f"Chromaprint: {sum(len(p) < MIN_OVERLAP for p in prints)} of {len(prints)} {name} are too short for it")
    scores = np.array([[bit_agreement(q, r) for r in references] for q in queries])
    return best_predictions(benchmark, scores, top)


def fingerprints(clips: Sequence[Audio], rate: int, program: str) -> list[npt.NDArray[np.uint32]]:
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


def bit_agreement(query: npt.NDArray[np.uint32], reference: npt.NDArray[np.uint32]) -> float:
    """Largest share of equal bits over all offsets that overlap in `MIN_OVERLAP` items; minus infinity if none does."""
    if min(len(query), len(reference)) < MIN_OVERLAP:
        return -np.inf
    signs = [2.0 * np.unpackbits(x[:, None].view(np.uint8), axis=1).astype(np.float32) - 1 for x in (query, reference)]
    agreement = (1 + signs[0] @ signs[1].T / 32) / 2
    offsets = range(MIN_OVERLAP - len(query), len(reference) - MIN_OVERLAP + 1)
    return max(float(np.diagonal(agreement, offset).mean()) for offset in offsets)


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
