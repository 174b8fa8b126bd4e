"""What each step of the detector is worth, and what was tried instead: every variant scores every pair.

    python benchmarks/copy_detection/ablation.py [--esc10 ../shared/data/esc10] [--seed 5] [-o benchmarks/results/ablation.json]

Sets and measures are those of `run.py` without its distractors. All variants see the same levels. The windowed vectors are
what one would put into a nearest-neighbor index: a second of whitened contrast, every quarter second, votes for one offset.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder of the package, not the package itself

import numpy as np
import soxr
from scipy.ndimage import maximum_filter

from auscult.alignment.correlation import CHUNK, build_bank, chunk_starts, correlate, unit_rows
from auscult.alignment.parts import HYPOTHESES, PRIOR
from auscult.alignment.scoring import prepare_clips, score
from auscult.descriptors.contrast import (
    BANDS,
    SAMPLE_RATE,
    Frames,
    Levels,
    Whitening,
    active,
    contrast,
    describe,
    fingerprint,
    load_whitening,
    warp,
)
from auscult.metrics.copy_detection import Prediction, breakdown, evaluate
from copy_detection.dataset import Benchmark, Sizes, build, pool
from report import print_table, write_json

Print = Callable[[np.ndarray], Frames]
GROUPS = ("verbatim", "shift", "partial", "mix", "warp", "resynthesis", "chain")
PLAIN = ((1.0, 0.0),)
WINDOW, HOP = 31, 8  # frames of a windowed vector: one second, a quarter of a second
NEAREST = 10  # windows that vote for a query window


def with_matrix(matrix: np.ndarray) -> Print:
    """Fingerprints through another linear map than the one that ships."""
    whitening = Whitening(matrix.astype(np.float32))
    return lambda levels: fingerprint(levels, whitening)


def band_weights(levels: Sequence[Levels]) -> np.ndarray:
    """Each band divided by its own spread over the background: weighting by band, without mixing bands."""
    rows = np.concatenate([contrast(x)[active(x)] for x in levels])
    return np.diag(1 / np.maximum(rows.std(axis=0), 0.1))


def peak_map(levels: np.ndarray) -> Frames:
    """Spectral peaks as evidence: 1 where a level is the largest of 7 bands by 5 frames around, 0 elsewhere."""
    peaks = (levels == maximum_filter(levels, (5, 7))) & active(levels)[:, None]
    return peaks.astype(np.float32)


def whole(
    queries: Sequence[Levels], others: Sequence[Levels], describe_one: Print, hypotheses: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Largest z over lags and hypotheses, ``(queries, others)``."""
    bank = build_bank([describe_one(x) for x in others])
    edges = np.flatnonzero(np.diff(bank.owner, prepend=-1))
    tempos = sorted({tempo for tempo, _ in hypotheses})
    overlaps = [tempos.index(tempo) for tempo, _ in hypotheses]
    prior = np.array([1.0] + [PRIOR] * (len(hypotheses) - 1), np.float32)[:, None]
    out = np.full((len(queries), len(edges)), -np.inf, np.float32)
    for row, query in enumerate(queries):
        for start in chunk_starts(len(query)):
            piece = query[start : start + CHUNK]
            prints = [unit_rows(describe_one(warp(piece, tempo=t, pitch=p)))[:CHUNK] for t, p in hypotheses]
            peak = (correlate(prints, bank, overlaps=overlaps).max(axis=0) * prior).max(axis=0)
            out[row] = np.maximum(out[row], np.maximum.reduceat(peak, edges))
    return out


def votes(queries: Sequence[Levels], others: Sequence[Levels]) -> np.ndarray:
    """Windowed vectors with offset votes: summed cosines of the windows that agree on one offset, ``(queries, others)``."""

    def windows(levels: Levels) -> tuple[np.ndarray, np.ndarray]:
        frames = fingerprint(levels)
        starts = np.arange(0, max(len(frames) - WINDOW, 0) + 1, HOP)
        flat = np.stack([np.resize(frames[at : at + WINDOW], (WINDOW, BANDS)).ravel() for at in starts])
        return unit_rows(flat), starts

    described = [windows(x) for x in others]
    vectors = np.concatenate([v for v, _ in described])
    owner = np.repeat(np.arange(len(others)), [len(v) for v, _ in described])
    starts = np.concatenate([s for _, s in described])
    out = np.zeros((len(queries), len(others)), np.float32)
    for row, query in enumerate(queries):
        mine, at = windows(query)
        similarity = mine @ vectors.T
        best = np.argpartition(-similarity, NEAREST, axis=1)[:, :NEAREST]
        tally: dict[tuple[int, int], float] = {}
        for window, columns in enumerate(best):
            for column in columns:
                key = (int(owner[column]), round((starts[column] - at[window]) / HOP))
                tally[key] = tally.get(key, 0.0) + float(similarity[window, column])
        for (other, _), value in tally.items():
            out[row, other] = max(out[row, other], value / np.sqrt(len(mine)))
    return out


def standardized(z: np.ndarray, references: int) -> np.ndarray:
    """In standard deviations of the same query's values on the background, which follows the references."""
    null = z[:, references:]
    return (z[:, :references] - null.mean(axis=1, keepdims=True)) / (null.std(axis=1, keepdims=True) + 0.1)


def shipped(queries: Sequence[Levels], references: Sequence[Levels], background: Sequence[Levels]) -> np.ndarray:
    """The detector's own score, every reference scanned."""
    prepared, unrelated = (prepare_clips([fingerprint(x) for x in clips]) for clips in (references, background))
    return np.stack([score(query, prepared, unrelated).score for query in queries])


def predictions(benchmark: Benchmark, scores: np.ndarray, top: int) -> list[Prediction]:
    """The best references of each query."""
    out = []
    for query, row in zip(benchmark.queries, scores, strict=True):
        for column in np.argsort(-row, kind="stable")[:top]:
            out.append(Prediction(query.truth.query_id, benchmark.references[column].clip_id, float(row[column])))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, default=Path("../shared/data/esc10"), help="recordings; synthesized if absent")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--positives-per-kind", type=int, default=5)
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/ablation.json"))
    options = parser.parse_args()
    folder = options.esc10 if options.esc10.is_dir() else None
    sizes = Sizes(positives_per_kind=options.positives_per_kind, chains=30, distractors=0)
    benchmark = build(pool(folder, seed=options.seed), seed=options.seed, sizes=sizes)

    def heard(audio: np.ndarray) -> Levels:
        return describe(soxr.resample(audio, benchmark.rate, SAMPLE_RATE).astype(np.float32))

    queries = [heard(query.audio) for query in benchmark.queries]
    references = [heard(sound.audio) for sound in benchmark.references]
    background = [heard(sound.audio) for sound in benchmark.background]
    others, n = references + background, len(references)
    eye = with_matrix(np.eye(BANDS))
    white = with_matrix(load_whitening().matrix)
    variants: dict[str, Callable[[], np.ndarray]] = {
        "local contrast, every lag": lambda: whole(queries, others, eye, PLAIN)[:, :n],
        "the same, by background": lambda: standardized(whole(queries, others, eye, PLAIN), n),
        "bands weighted, by background": lambda: standardized(
            whole(queries, others, with_matrix(band_weights(background)), PLAIN), n
        ),
        "spectral peaks, by background": lambda: standardized(whole(queries, others, peak_map, PLAIN), n),
        "windowed vectors with offset votes": lambda: votes(queries, others)[:, :n],
        "whitened, every lag": lambda: whole(queries, others, white, PLAIN)[:, :n],
        "whitened, by background": lambda: standardized(whole(queries, others, white, PLAIN), n),
        "+ tempo and pitch": lambda: standardized(whole(queries, others, white, HYPOTHESES), n),
        "+ best stretch (the detector)": lambda: shipped(queries, references, background),
    }
    rows = []
    for name, variant in variants.items():
        started = time.perf_counter()
        found = predictions(benchmark, variant(), options.top)
        seconds = time.perf_counter() - started
        overall = evaluate(benchmark.truths, found, resamples=2)
        groups = breakdown(benchmark.truths, found, by=lambda t: t.group)
        row = {
            "variant": name,
            "micro-AP": f"{overall['micro_ap'].value:.3f}",
            "recall at 90 %": f"{overall['recall_at_precision'].value:.3f}",
        }
        row |= {group: f"{groups[group]['micro_ap'].value:.3f}" for group in GROUPS if group in groups}
        rows.append(row | {"seconds": f"{seconds:.0f}"})
        print(rows[-1], flush=True)
    print_table(rows)
    write_json(options.output, rows, {"seed": options.seed, "top": options.top, "esc10": folder is not None})


if __name__ == "__main__":
    main()
