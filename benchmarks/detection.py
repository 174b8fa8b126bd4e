"""How fast the two-stage detector is: candidate search and alignment from levels in memory.

    python benchmarks/detection.py [--queries 200] [--references 4500] [--workers 2] [-o benchmarks/results/detection.json]

References and queries are levels of 10 s of synthesized sounds, all cut anew. Prints the time of the first stage, of the
second, and of finding the spans of what is listed: what an audit does for its generated clips, from levels in memory. (It
does the same for null clips, and for up to 250 training clips.) Also describes clips by `contrast` and `mel`, decoding and
resampling left out.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from auscult.alignment.candidates import candidates
from auscult.alignment.scoring import prepare_clips, score
from auscult.alignment.spans import locate
from auscult.descriptors.contrast import ContrastDescriptor, Levels, describe, fingerprint
from auscult.descriptors.mel import MelDescriptor
from auscult.detection import BACKGROUND_CLIPS, CLOSE
from auscult.engine import Engine
from auscult.sounds import FAMILIES, synthesise
from report import print_table, write_json

LISTED = 5  # matches of each query, as an audit lists them


def make_levels(count: int, seed: int) -> list[Levels]:
    """Levels of ``count`` clips of 10 s: halves of 60 synthesized clips in random pairs, rolled by a random lag."""
    rng = np.random.default_rng(seed)
    families = list(FAMILIES)
    stock = [describe(synthesise(families[n % 14], rng, duration_s=5.0).samples.astype(np.float32)) for n in range(60)]
    pairs = rng.integers(0, len(stock), (count, 2))
    return [np.roll(np.concatenate([stock[a], stock[b]])[:313], int(rng.integers(313)), axis=0) for a, b in pairs]


def describing_ms() -> dict[str, float]:
    """Milliseconds a clip of 10 s, one thread."""
    samples = synthesise("speech", np.random.default_rng(0), duration_s=12.0).samples.astype(np.float32)
    result = {}
    with threadpool_limits(1):
        for descriptor in (MelDescriptor(), ContrastDescriptor()):
            window = samples[None, : descriptor.window_samples]
            descriptor.describe(window)
            started = time.perf_counter()
            for _ in range(50):
                descriptor.describe(window)
            result[descriptor.spec.name] = (time.perf_counter() - started) / 50 * 1e3
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--references", type=int, default=4500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", default="benchmarks/results/detection.json")
    options = parser.parse_args()
    references, queries = make_levels(options.references, 0), make_levels(options.queries, 1)
    background = prepare_clips([fingerprint(x) for x in make_levels(BACKGROUND_CLIPS, 2)])
    started = time.perf_counter()
    found = candidates(queries, references, k=100, engine=Engine(options.workers))
    first = time.perf_counter() - started

    def second(job: tuple[Levels, np.ndarray]) -> list[tuple[int, dict[str, int]]]:
        clips = prepare_clips([fingerprint(references[row]) for row in job[1]])
        scores = score(job[0], clips, background, close=CLOSE)
        best = np.argsort(-scores.score, kind="stable")[:LISTED]
        names = ("hypothesis", "query_start", "reference_start")
        return [(int(job[1][at]), {name: int(getattr(scores, name)[at]) for name in names}) for at in best]

    def third(job: tuple[Levels, list[tuple[int, dict[str, int]]]]) -> None:
        for row, place in job[1]:
            locate(job[0], references[row], **place)

    with ThreadPoolExecutor(options.workers) as pool, threadpool_limits(1):
        started = time.perf_counter()
        listed = list(pool.map(second, zip(queries, found.index, strict=True)))
        second_s = time.perf_counter() - started
        started = time.perf_counter()
        list(pool.map(third, zip(queries, listed, strict=True)))
        third_s = time.perf_counter() - started
    pair_us = first / (options.queries * options.references) * 1e6
    query_ms = second_s / options.queries * 1e3
    milliseconds = describing_ms()
    rows = [
        {
            "queries x references": f"{options.queries:,} x {options.references:,}",
            "first stage, s": round(first, 1),
            "microseconds a pair": round(pair_us, 1),
            "second stage, s": round(second_s, 1),
            "ms a query": round(query_ms, 0),
            f"spans of {LISTED} matches a query, s": round(third_s, 1),
            "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "in all, min": round((first + second_s + third_s) / 60, 1),
            "describe, ms: contrast / mel": f"{milliseconds['contrast']:.2f} / {milliseconds['mel']:.2f}",
        }
    ]
    print_table(rows)
    write_json(options.output, rows, vars(options))


if __name__ == "__main__":
    main()
