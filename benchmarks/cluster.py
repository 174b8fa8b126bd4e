"""What a cluster costs and what it stands: two Ray nodes of one CPU each on this machine beside two local workers.

    python benchmarks/cluster.py [--clips 600] [--seconds 10] [--queries 2000] [--references 80000] [-o FILE.json]

Description: `index` of generated clips (10 s, 44.1 kHz, FLAC) with `mel`; the rate is that of the whole corpus less a first,
small one, so that starting processes is left out on both sides and stands in a row of its own. Search: top-5 of generated
vectors of 1712 values in blocks of 4000, which are read from disk as those of a store are; locally two threads work on one
block after the other. The second node is killed in the middle of each, and the results are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from auscult.cluster import connect
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.engine import Engine
from auscult.folders import file_digest
from auscult.indexing import index
from auscult.search import top_k
from auscult.search.blocks import Block
from describe import make_clips
from report import print_table, write_json

DIMENSION, BLOCK, K = 1712, 4000, 5
FEW = 64  # clips of the small corpus


def start_nodes() -> Any:
    """A cluster of two nodes of one CPU each."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*",  # what raylets say of the node that is killed
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    return cluster


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def described(folder: Path, store: Path, engine: Engine, **options: Any) -> dict[str, str]:
    """Index a folder anew; digests of the files of the store."""
    shutil.rmtree(store, ignore_errors=True)
    index(open_corpus(folder), store, descriptor=load_descriptor("mel"), engine=engine, **options)
    return {str(path.relative_to(store)): file_digest(path) for path in store.rglob("*") if path.is_file()}


def rates(root: Path, clips: int, engine: Engine, repeats: int) -> tuple[float, float]:
    """Clips per second without start-up, and the seconds that start-up takes: the best of some runs."""
    few, everything = (
        min(seconds(lambda name=name: described(root / name, root / "store", engine)) for _ in range(repeats))
        for name in ("few", "all")
    )
    rate = (clips - FEW) / (everything - few)
    return rate, few - FEW / rate


def describing(root: Path, clips: int, cluster: Any, engine: Engine, repeats: int) -> list[dict[str, Any]]:
    """Rows of the description."""
    local, local_start = rates(root, clips, Engine(2), repeats)
    there, there_start = rates(root, clips, engine, repeats)
    truth = described(root / "all", root / "store", Engine(2))
    at = random.Random(0).randrange(clips // 4, clips // 2)

    def kill(done: int, total: int, what: str) -> None:
        if done == at:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    begun = time.perf_counter()
    same = described(root / "all", root / "store", engine, progress=kill) == truth
    lost = time.perf_counter() - begun
    cluster.add_node(num_cpus=1)
    # with half of the CPUs from the kill on, the work itself takes this long; what is beyond was lost
    unavoidable = there_start + at / there + (clips - at) / (there / 2)
    return [
        {
            "what": "description (clips/s)",
            "2 local workers": round(local, 1),
            "2 nodes of 1 CPU": round(there, 1),
            "per core, of local": round(there / local, 2),
            "goal": 0.8,
            "start-up local (s)": round(local_start, 1),
            "start-up cluster (s)": round(there_start, 1),
            "node killed: same result": same,
            "time lost (s)": round(lost - unavoidable, 1),
        }
    ]


def write_blocks(folder: Path, rows: int) -> list[Block]:
    """Random references on disk, in half precision."""
    rng, blocks = np.random.default_rng(0), []
    for start in range(0, rows, BLOCK):
        path, stop = folder / f"{start}.npy", min(start + BLOCK, rows)
        np.save(path, rng.standard_normal((stop - start, DIMENSION), np.float32).astype(np.float16))
        blocks.append(Block(start, stop, partial(np.load, path)))
    return blocks


def searching(root: Path, queries: int, references: int, cluster: Any, engine: Engine, repeats: int) -> list[dict[str, Any]]:
    """Rows of the search."""
    ours = np.random.default_rng(1).standard_normal((queries, DIMENSION), np.float32)
    blocks = write_blocks(root, references)
    truth = top_k(ours, blocks, k=K)
    local = min(seconds(lambda: top_k(ours, blocks, k=K)) for _ in range(repeats))
    there = min(seconds(lambda: top_k(ours, blocks, k=K, engine=engine)) for _ in range(repeats))
    few = min(seconds(lambda: top_k(ours[:1], blocks[:2], k=K, engine=engine)) for _ in range(repeats))
    killed: list[int] = []

    def kill(done: int, total: int, what: str) -> None:
        if not killed and done >= total // 3:
            killed.append(done)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    begun = time.perf_counter()
    found = top_k(ours, blocks, k=K, engine=engine, progress=kill)
    lost = time.perf_counter() - begun - there * (1 / 3 + 4 / 3)
    cluster.add_node(num_cpus=1)
    pairs = queries * references / 1e6
    return [
        {
            "what": "search (million pairs/s)",
            "2 local workers": round(pairs / local, 1),
            "2 nodes of 1 CPU": round(pairs / (there - few), 1),
            "per core, of local": round(local / (there - few), 2),
            "goal": 0.8,
            "start-up local (s)": 0.0,
            "start-up cluster (s)": round(few, 1),
            "node killed: same result": bool(
                (found.index == truth.index).all() and (found.similarity == truth.similarity).all()
            ),
            "time lost (s)": round(lost, 1),
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--references", type=int, default=80_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("-o", "--output", default="benchmarks/results/cluster.json")
    options = parser.parse_args()
    begun = time.perf_counter()
    cluster = start_nodes()
    connect(cluster.address)
    print(f"two nodes started and checked in {time.perf_counter() - begun:.1f} s\n")
    engine = Engine(workers=2, ray=cluster.address)
    root = Path(tempfile.mkdtemp())
    try:
        make_clips(root / "all", options.clips, options.seconds, 2, "flac")
        make_clips(root / "few", FEW, options.seconds, 2, "flac")
        rows = describing(root, options.clips, cluster, engine, options.repeats)
        rows += searching(root, options.queries, options.references, cluster, engine, options.repeats)
    finally:
        shutil.rmtree(root)
    print_table(rows)
    write_json(options.output, rows, vars(options))


if __name__ == "__main__":
    main()
