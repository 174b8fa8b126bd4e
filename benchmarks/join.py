"""How fast the exact self-join is on mel descriptors with realistic spectra, beside brute force and faiss.

    python benchmarks/join.py [--rows 200000] [--threshold 0.5025] [--seed 0] [--esc10 ../shared/data/esc10]
                              [-o benchmarks/results/join.json]

The vectors are made of the real recordings of ESC-10 (see augmented.py); one in 400 is a near-copy of another. The rule is the
audit paper's: similarity less half of the mean similarity to the five nearest of 1,000 background vectors, above 0.5025
for both rows. Each contestant runs in a process of its own, so that its peak memory is its own:

- auscult: the self-join as it is, the vectors in memory; and again read from a file in blocks of 8,192 rows, with 1 GB.
- brute force: the same with the bound switched off, a triangle of BLAS tiles, as it runs where pruning does not pay.
- faiss.knn: the five nearest of every row, the whole square; it does less, since it keeps five and knows no biases.
- noise: the same number of rows (at most 20,000) of isotropic noise, on which nothing can be pruned: what trying costs.

Pairs are compared with those of brute force, one by one and to the last bit of their similarities.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from augmented import augmented_vectors
from auscult.engine import GIB, Engine
from auscult.search import Pairs, join, self_join
from auscult.search.blocks import Block
from auscult.similarity import background_bias
from report import print_table, write_json

K = 5
BACKGROUND = 1000
BLOCK_ROWS = 8192
NOISE_ROWS = 20_000
NEVER = 10**12


def make_set(folder: Path, source: Path, rows: int, seed: int) -> None:
    """Write vectors, their biases and the planted pairs."""
    vectors, planted = augmented_vectors(source, rows, seed)
    background, _ = augmented_vectors(source, BACKGROUND, seed + 1)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "planted.npy", planted)
    np.save(folder / "bias.npy", background_bias(vectors, background))


def run_join(folder: Path, threshold: float, least_rows: int | None = None) -> tuple[float, Pairs]:
    vectors, bias = np.load(folder / "vectors.npy"), np.load(folder / "bias.npy")
    if least_rows is not None:
        join.PRUNE_ROWS = least_rows
    started = time.perf_counter()
    pairs = self_join(vectors, threshold=threshold, bias=bias)
    return time.perf_counter() - started, pairs


def run_from_disk(folder: Path, threshold: float) -> tuple[float, Pairs]:
    file = folder / "vectors.npy"
    n = np.load(file, mmap_mode="r").shape[0]
    edges = [*range(0, n, BLOCK_ROWS), n]
    blocks = [Block(a, b, partial(_read, file, a, b)) for a, b in itertools.pairwise(edges)]
    started = time.perf_counter()
    pairs = self_join(blocks, threshold=threshold, bias=np.load(folder / "bias.npy"), engine=Engine(memory_bytes=GIB))
    return time.perf_counter() - started, pairs


def _read(file: Path, start: int, stop: int) -> np.ndarray:
    """Rows of an array file, by reading: pages of a mapped file would count as memory of the process."""
    with open(file, "rb") as stream:
        np.lib.format.read_magic(stream)
        (_, columns), _, dtype = np.lib.format.read_array_header_1_0(stream)
        stream.seek(start * columns * dtype.itemsize, 1)
        return np.fromfile(stream, dtype, (stop - start) * columns).reshape(-1, columns)


def run_faiss(folder: Path, threshold: float) -> tuple[float, None]:
    import faiss

    vectors = np.load(folder / "vectors.npy")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.perf_counter()
    faiss.knn(vectors, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)
    return time.perf_counter() - started, None


def run_noise(folder: Path, threshold: float, least_rows: int | None = None) -> tuple[float, Pairs]:
    if least_rows is not None:
        join.PRUNE_ROWS = least_rows
    shape = np.load(folder / "vectors.npy", mmap_mode="r").shape
    vectors = np.random.default_rng(0).standard_normal((min(shape[0], NOISE_ROWS), shape[1]), dtype=np.float32)
    self_join(vectors[:2000], threshold=0.1)  # wakes the threads
    started = time.perf_counter()
    pairs = self_join(vectors, threshold=0.1)
    return time.perf_counter() - started, pairs


JOIN, BRUTE, DISK, FAISS = "auscult self-join", "brute force triangle", "auscult self-join from disk, 1 GB", "faiss.knn top-5"
MAKE = "vectors"
CONTESTANTS = {
    JOIN: run_join,
    DISK: run_from_disk,
    BRUTE: partial(run_join, least_rows=NEVER),
    FAISS: run_faiss,
    "noise, auscult self-join": run_noise,
    "noise, brute force triangle": partial(run_noise, least_rows=NEVER),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--threshold", type=float, default=0.5025)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--esc10", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "esc10")
    parser.add_argument("--one", choices=[MAKE, *CONTESTANTS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", default="benchmarks/results/join.json")
    options = parser.parse_args()
    if options.one:
        _run_one(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own: a child's peak memory starts at that of the parent it is forked from
        _in_process(MAKE, Path(folder), options)
        results = {name: _in_process(name, Path(folder), options) for name in CONTESTANTS}
        planted = {tuple(sorted(pair)) for pair in np.load(Path(folder) / "planted.npy").tolist()}
        rows = _table(results, {name: Path(folder) / f"{name}.npz" for name in (JOIN, DISK, BRUTE)}, planted)
    print_table(rows)
    write_json(options.output, rows, {"rows": options.rows, "threshold": options.threshold, "seed": options.seed})


def _run_one(options: argparse.Namespace) -> None:
    if options.one == MAKE:
        make_set(options.folder, options.esc10, options.rows, options.seed)
        print("{}")
        return
    seconds, pairs = CONTESTANTS[options.one](options.folder, options.threshold)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {"seconds": seconds, "peak_gb": peak_gb}
    if pairs is not None:
        result |= {"pruned": pairs.pruned, "pairs": len(pairs.first)}
        found = {name: getattr(pairs, name) for name in ("first", "second", "similarity")}
        np.savez(options.folder / f"{options.one}.npz", **found)
    print(json.dumps(result))


def _in_process(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    given = {"rows": options.rows, "threshold": options.threshold, "seed": options.seed, "esc10": options.esc10}
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _table(
    results: dict[str, dict[str, float]], files: dict[str, Path], planted: set[tuple[int, ...]]
) -> list[dict[str, object]]:
    found = {name: dict(np.load(file)) for name, file in files.items()}
    rows = []
    for name, result in results.items():
        noise = name.startswith("noise")
        check = ""
        if name in found:
            pairs = set(zip(found[name]["first"].tolist(), found[name]["second"].tolist(), strict=True))
            equal = all(np.array_equal(found[name][key], found[BRUTE][key]) for key in found[BRUTE])
            check = f"equal to brute force: {'yes' if equal else 'NO'}; {len(pairs & planted)} of {len(planted)} planted"
        rows.append(
            {
                "": name,
                "seconds": round(result["seconds"], 2),
                "speed / faiss.knn": "" if noise else round(results[FAISS]["seconds"] / result["seconds"], 2),
                "speed / brute force": round(results["noise, " * noise + BRUTE]["seconds"] / result["seconds"], 2),
                "pruned": "" if "pruned" not in result else round(result["pruned"], 5),
                "pairs": result.get("pairs", ""),
                "peak GB": round(result["peak_gb"], 2),
                "check": check,
            }
        )
    return rows


if __name__ == "__main__":
    main()
