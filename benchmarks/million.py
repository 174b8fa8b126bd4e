"""Exact search of a store that exceeds the memory: 1,000,000 x 1712 float16 on disk, 10,000 queries, top-5.

    python benchmarks/million.py [--references 1000000] [--queries 10000] [--memory-gb 2.5] [-o benchmarks/results/million.json]

The bound is a bare float32 matrix product of the same size, in memory, nothing read and nothing kept. The store is written
first, in the format of real ones (3.2 GB), into a temporary folder; each contestant runs in a process of its own, so that its
peak memory is its own. The nearest of 32 queries are compared with float64 brute force.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from auscult.engine import GIB, Engine
from auscult.search import top_k
from auscult.search.blocks import as_blocks
from auscult.store import DescriptorStore
from generated_store import make_store, mel_like
from report import print_table, write_json

K, CHECKED, PRODUCT_ROWS = 5, 32, 65_536
DIMENSION = 1712


def queries_of(options: argparse.Namespace) -> np.ndarray:
    return mel_like(np.random.default_rng(1), options.queries, DIMENSION).astype(np.float32)


def run_search(options: argparse.Namespace) -> dict[str, object]:
    engine = Engine(memory_bytes=int(options.memory_gb * GIB))
    queries = queries_of(options)
    started = time.perf_counter()
    references = DescriptorStore.open(options.store).load(engine)
    opened = time.perf_counter() - started
    found = top_k(queries, references.vectors, k=K, engine=engine)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "open_s": opened, "peak_gb": peak, "equal": _equals_brute_force(queries, references, found)}


def _equals_brute_force(queries, references, found) -> bool:
    """Whether the lists of a few queries are those of float64 cosines of all references."""
    wide = queries[:CHECKED].astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    similarity = np.empty((CHECKED, len(references)))
    for block in as_blocks(references.vectors):
        rows = block.load().astype(np.float64)
        similarity[:, block.start : block.stop] = wide @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    return bool((np.argsort(-similarity, axis=1, kind="stable")[:, :K] == found.index[:CHECKED]).all())


def run_product(options: argparse.Namespace) -> dict[str, object]:
    queries = queries_of(options)
    block = mel_like(np.random.default_rng(2), min(PRODUCT_ROWS, options.references), DIMENSION).astype(np.float32)
    out = np.empty((len(queries) // 4 + 1, len(block)), np.float32)
    started = time.perf_counter()
    for start in range(0, options.references, len(block)):
        rows = block[: options.references - start]
        for top in range(0, len(queries), len(out)):
            part = queries[top : top + len(out)]
            np.matmul(part, rows.T, out=out[: len(part), : len(rows)])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


CONTESTANTS = {"auscult top-5, from disk": run_search, "matrix product, in memory": run_product}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--memory-gb", type=float, default=2.5)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", default="benchmarks/results/million.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(CONTESTANTS[options.one](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        store = make_store(Path(folder) / "store", options.references)
        size = sum(path.stat().st_size for path in (Path(folder) / "store").rglob("*") if path.is_file())
        print(f"{len(store.part_names)} shards, {size / 1e9:.2f} GB, written in {time.perf_counter() - started:.0f} s\n")
        results = {}
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--one", name, "--store", str(Path(folder) / "store")]
            for option in ("references", "queries", "memory_gb"):
                command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
            results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    bound = results["matrix product, in memory"]["seconds"]
    rows = [
        {
            "": name,
            "seconds": round(result["seconds"], 1),
            "speed / matrix product": round(bound / result["seconds"], 3),
            "goal": 0.9 if "auscult" in name else "",
            "peak GB": round(result["peak_gb"], 2),
            "of these, opening the store, s": round(result["open_s"], 1) if "open_s" in result else "",
            "check": {None: "", True: f"equal to float64 brute force on {CHECKED} queries", False: "WRONG"}[
                result.get("equal")
            ],
        }
        for name, result in results.items()
    ]
    print_table(rows)
    write_json(options.output, rows, vars(options) | {"store_bytes": size})


if __name__ == "__main__":
    main()
