"""How fast approximate search is, what it costs to build, and what it misses, beside exact search.

    python benchmarks/approximate.py [--rows 50000 200000] [--dimension 512] [--queries 2000] [--only exact ivf hnsw]
                                     [-o benchmarks/results/approximate.json]

Vectors are generated: 96 components whose variance falls as 1/j, with normal weights, mixed into all dimensions; noise a tenth
as strong as they are; a mean common to all of the length of a row. That is the kind of spectrum that descriptors of sounds
have: a few dozen directions hold nearly everything. Half of the queries are references with noise, half are new rows. Each
contestant runs in a process of its own, so that its peak memory is its own. Exact search here is brute force at the speed of
a matrix product: with few queries an index is not worth building.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from auscult.search import top_k
from auscult.search.approximate import prepare_approximate
from auscult.search.exact import unit_rows
from auscult.search.recall import approximate_top_k
from report import print_table, write_json

K = 5
RANK = 96
CONTESTANTS = ("exact", "ivf", "hnsw")


def make_vectors(rows: int, queries: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """References and queries: low rank plus noise plus a common mean, as said above."""
    rng = np.random.default_rng(0)
    rank = min(RANK, dimension)
    scale = 1 / np.sqrt(np.arange(1, rank + 1, dtype=np.float32))
    basis = np.linalg.qr(rng.standard_normal((dimension, rank)))[0].T.astype(np.float32) * scale[:, None]
    length = float(np.linalg.norm(scale))
    mean = rng.standard_normal(dimension, dtype=np.float32)
    mean *= length / np.linalg.norm(mean)

    def noise(n: int) -> np.ndarray:
        return rng.standard_normal((n, dimension), dtype=np.float32) * (0.1 * length / dimension**0.5)

    def some(n: int) -> np.ndarray:
        return rng.standard_normal((n, rank), dtype=np.float32) @ basis + mean + noise(n)

    references = some(rows)
    asked = np.concatenate(
        [references[rng.integers(0, rows, queries // 2)] + noise(queries // 2), some(queries - queries // 2)]
    )
    return references, asked


def run(name: str, rows: int, options: argparse.Namespace) -> dict[str, object]:
    """Build, search and recall of one contestant."""
    references, queries = make_vectors(rows, options.queries, options.dimension)
    units, _ = unit_rows(references)
    query_units, _ = unit_rows(queries)
    prepare = prepare_approximate(name)
    started = time.perf_counter()
    backend = prepare(units)
    built = time.perf_counter() - started
    started = time.perf_counter()
    backend.nearest(query_units, K + 8)
    asked = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before the index is written out to see its size
    size = _index_bytes(backend)
    del backend
    started = time.perf_counter()
    top_k(queries, references, k=K, prepare=prepare)
    whole = time.perf_counter() - started
    result = {
        "build_s": built,
        "queries_per_s": len(queries) / asked,
        "whole_s": whole,
        "index_gb": size / 2**30,
        "peak_gb": peak,
    }
    if name != "exact":
        result["recall"] = approximate_top_k(queries, references, k=K, prepare=prepare)[1].to_json()
    return result


def _index_bytes(backend) -> int:
    import faiss

    index = getattr(backend, "index", None)
    return backend.units.nbytes if index is None else len(faiss.serialize_index(index))


def _row(name: str, rows: int, result: dict) -> dict[str, object]:
    recall = result.get("recall")

    def share(part: str) -> str:
        return f"{recall[part]['share']:.3f} ({recall[part]['low']:.3f} to {recall[part]['high']:.3f})" if recall else "1"

    return {
        "": name,
        "references": rows,
        "build s": round(result["build_s"], 1),
        "queries/s": round(result["queries_per_s"]),
        "top_k s": round(result["whole_s"], 2),
        "index GB": round(result["index_gb"], 3),
        "peak GB": round(result["peak_gb"], 2),
        "planted found": share("overall"),
        "by exact search": recall["overall_exact"]["share"] if recall else "",
        "nearest as exact": share("first"),
        f"{K} nearest as exact": share("listed"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", default="benchmarks/results/approximate.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one[0], int(options.one[1]), options)))
        return
    table, recalls = [], []
    for rows in options.rows:
        for name in options.only:
            command = [sys.executable, __file__, "--one", name, str(rows)]
            command += ["--dimension", str(options.dimension), "--queries", str(options.queries)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            table.append(_row(name, rows, result))
            recalls.append({"search": name, "references": rows, "recall": result.get("recall")})
    print_table(table)
    facts = {"rows": options.rows, "dimension": options.dimension, "queries": options.queries, "recall": recalls}
    write_json(options.output, table, facts)


if __name__ == "__main__":
    main()
