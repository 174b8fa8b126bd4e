"""How fast exact search is: top-5 and self-join of 45,000 x 1712, beside faiss and a bare matrix product.

    python benchmarks/search.py [--rows 45000] [--dimension 1712] [-o benchmarks/results/search.json]

Vectors are generated to look like mel descriptors: values in [-40, 0] dB, a spectrum common to all, planted near-copies.
Each contestant runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from report import print_table, write_json

K = 5
PLANTED = 300
SAMPLE = 200


def make_vectors(rows: int, dimension: int) -> np.ndarray:
    """Smooth random dB spectrograms, 300 of the rows near-copies of others."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, dimension), dtype=np.float32) * 6
    vectors += rng.standard_normal((rows, 1), dtype=np.float32) * 4
    vectors += np.linspace(-12, -28, dimension, dtype=np.float32)
    np.clip(vectors, -40, 0, out=vectors)
    copies = rng.choice(rows, 2 * PLANTED, replace=False)
    vectors[copies[:PLANTED]] = vectors[copies[PLANTED:]] + rng.standard_normal((PLANTED, dimension), dtype=np.float32)
    return vectors


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def run_top_k(vectors: np.ndarray) -> dict[str, object]:
    from auscult.search import top_k

    groups = np.arange(len(vectors))
    started = time.perf_counter()
    found = top_k(vectors, vectors, k=K, exclude=(groups, groups))
    seconds = time.perf_counter() - started
    rows = np.random.default_rng(1).choice(len(vectors), min(SAMPLE, len(vectors)), replace=False)
    wide = vectors[rows].astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    similarity = np.concatenate(
        [wide @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T for b in _double_blocks(vectors)], axis=1
    )
    similarity[np.arange(len(rows)), rows] = -np.inf
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :K]
    return {"seconds": seconds, "equal": bool((expected == found.index[rows]).all())}


def _double_blocks(vectors: np.ndarray):
    for start in range(0, len(vectors), 2000):
        yield vectors[start : start + 2000].astype(np.float64)


def run_self_join(vectors: np.ndarray) -> dict[str, object]:
    from auscult.search import self_join

    started = time.perf_counter()
    pairs = self_join(vectors, threshold=0.99)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "pairs": len(pairs.first)}


def run_faiss(vectors: np.ndarray) -> dict[str, object]:
    import faiss

    units = unit(vectors)
    started = time.perf_counter()
    faiss.knn(units, units, K, metric=faiss.METRIC_INNER_PRODUCT)
    return {"seconds": time.perf_counter() - started}


def run_product(vectors: np.ndarray) -> dict[str, object]:
    units = unit(vectors)
    out = np.empty((4096, len(units)), np.float32)
    started = time.perf_counter()
    for start in range(0, len(units), 4096):
        block = units[start : start + 4096]
        np.matmul(block, units.T, out=out[: len(block)])
    return {"seconds": time.perf_counter() - started}


CONTESTANTS = {
    "auscult top-5": run_top_k,
    "auscult self-join": run_self_join,
    "faiss.knn top-5": run_faiss,
    "matrix product": run_product,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=45_000)
    parser.add_argument("--dimension", type=int, default=1712)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", default="benchmarks/results/search.json")
    options = parser.parse_args()
    if options.one:
        result = CONTESTANTS[options.one](make_vectors(options.rows, options.dimension))
        result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))
        return
    results = {}
    for name in CONTESTANTS:
        command = [sys.executable, __file__, "--one", name, "--rows", str(options.rows), "--dimension", str(options.dimension)]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    faiss_seconds = results["faiss.knn top-5"]["seconds"]
    rows = [
        {
            "": name,
            "seconds": round(result["seconds"], 1),
            "speed / faiss.knn": round(faiss_seconds / result["seconds"], 2),
            "peak GB": round(result["peak_gb"], 2),
            "check": _check(result),
        }
        for name, result in results.items()
    ]
    print_table(rows)
    write_json(options.output, rows, {"rows": options.rows, "dimension": options.dimension})


def _check(result: dict[str, object]) -> str:
    if "equal" in result:
        return f"equal to float64 brute force on {SAMPLE} rows: {'yes' if result['equal'] else 'NO'}"
    return f"{result['pairs']} pairs found, {PLANTED} planted" if "pairs" in result else ""


if __name__ == "__main__":
    main()
