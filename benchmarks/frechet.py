"""How fast the Frechet distance of large sets is, beside the matrix root of scipy that published code takes.

    python benchmarks/frechet.py [--rows 50000] [--dimension 2048] [--seed 0] [--interval] [-o benchmarks/results/frechet.json]

Two sets of float32 features as a classifier's layer gives them: correlated, behind a ReLU, some dimensions dead. Each
contestant runs in a process of its own and reads the sets from disk, so that its peak memory is its own:

- auscult: means and covariances streamed in blocks of 1,000 rows, then singular values of the product of Cholesky factors.
- scipy: as published, mean and numpy.cov of the whole array, then scipy.linalg.sqrtm of the product of the covariances.
- auscult with interval (``--interval``): the same as the first, and the bootstrap, as ``evaluate`` draws it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from auscult.metrics.frechet import evaluate, frechet_distance, moments
from report import print_table, write_json

BLOCK_ROWS = 1000
SETS = ("generated", "reference")


def make_sets(folder: Path, rows: int, dimension: int, seed: int) -> None:
    """Write both sets: a few common causes, noise, a ReLU."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((64, dimension), dtype=np.float32) * np.geomspace(1, 0.05, 64, dtype=np.float32)[:, None]
    threshold = rng.normal(0.5, 2, dimension).astype(np.float32)
    threshold[: dimension // 50] = 1e3  # these never fire
    for number, name in enumerate(SETS):
        features = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, dimension))
        for start in range(0, rows, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, rows)
            causes = rng.standard_normal((stop - start, 64), dtype=np.float32) + np.float32(0.1 * number)
            noise = rng.standard_normal((stop - start, dimension), dtype=np.float32)
            features[start:stop] = np.maximum(causes @ mixing + 0.3 * noise - threshold, 0)


def blocks(folder: Path, name: str) -> Iterator[np.ndarray]:
    """The rows of a set by reading: pages of a mapped file would count as memory of the process."""
    with open(folder / f"{name}.npy", "rb") as stream:
        np.lib.format.read_magic(stream)
        (_, dimension), _, dtype = np.lib.format.read_array_header_1_0(stream)
        while len(rows := np.fromfile(stream, dtype, BLOCK_ROWS * dimension)):
            yield rows.reshape(-1, dimension)


def run_auscult(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    first, second = (moments(blocks(folder, name)) for name in SETS)
    read = time.perf_counter()
    value = frechet_distance(first, second)
    return {"value": value, "moments_s": read - started, "root_s": time.perf_counter() - read}


def run_scipy(folder: Path) -> dict[str, float]:
    from scipy.linalg import sqrtm

    started = time.perf_counter()
    (mean, covariance), (mean_b, covariance_b) = (_whole(folder, name) for name in SETS)
    read = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the product is singular, as dead dimensions make it
        root = np.real(sqrtm(covariance @ covariance_b))
    value = float(np.sum((mean - mean_b) ** 2) + np.trace(covariance) + np.trace(covariance_b) - 2 * np.trace(root))
    return {"value": value, "moments_s": read - started, "root_s": time.perf_counter() - read}


def _whole(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    features = np.load(folder / f"{name}.npy")
    return features.mean(axis=0, dtype=np.float64), np.cov(features, rowvar=False)


def run_interval(folder: Path) -> dict[str, float]:
    clips = np.arange(np.load(folder / "generated.npy", mmap_mode="r").shape[0])
    started = time.perf_counter()
    found = evaluate(
        lambda: blocks(folder, SETS[0]), lambda: blocks(folder, SETS[1]), generated_clips=clips, reference_clips=clips
    )
    seconds = time.perf_counter() - started
    return {"value": found.value, "low": found.low, "high": found.high, "resamples": found.resamples, "interval_s": seconds}


AUSCULT, SCIPY, INTERVAL = "auscult", "numpy.cov and scipy.linalg.sqrtm", "auscult with interval"
MAKE = "sets"
CONTESTANTS = {AUSCULT: run_auscult, SCIPY: run_scipy, INTERVAL: run_interval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interval", action="store_true", help="also time the bootstrap interval (minutes)")
    parser.add_argument("--one", choices=[MAKE, *CONTESTANTS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", default="benchmarks/results/frechet.json")
    options = parser.parse_args()
    if options.one:
        _run_one(options)
        return
    names = [AUSCULT, SCIPY, *([INTERVAL] if options.interval else [])]
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own: a child's peak memory starts at that of the parent it is forked from
        _in_process(MAKE, Path(folder), options)
        results = {name: _in_process(name, Path(folder), options) for name in names}
    rows = [_row(name, result, results[SCIPY]) for name, result in results.items()]
    print_table(rows)
    write_json(options.output, rows, {"rows": options.rows, "dimension": options.dimension, "seed": options.seed})


def _run_one(options: argparse.Namespace) -> None:
    if options.one == MAKE:
        make_sets(options.folder, options.rows, options.dimension, options.seed)
        print("{}")
        return
    np.linalg.svd(np.eye(200))  # wakes the threads
    result = CONTESTANTS[options.one](options.folder)
    print(json.dumps(result | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def _in_process(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    given = {"rows": options.rows, "dimension": options.dimension, "seed": options.seed}
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _row(name: str, result: dict[str, float], scipy: dict[str, float]) -> dict[str, object]:
    timed = "moments_s" in result
    seconds = result["moments_s"] + result["root_s"] if timed else result["interval_s"]
    return {
        "": name,
        "seconds": round(seconds, 1),
        "moments (s)": round(result["moments_s"], 1) if timed else "",
        "root (s)": round(result["root_s"], 1) if timed else "",
        "speed / scipy": round((scipy["moments_s"] + scipy["root_s"]) / seconds, 1) if timed else "",
        "root alone": round(scipy["root_s"] / result["root_s"], 1) if timed else "",
        "peak GB": round(result["peak_gb"], 2),
        "value": f"{result['value']:.6f}",
        "off scipy's by": f"{abs(result['value'] / scipy['value'] - 1):.1e}",
        "interval": "" if timed else f"{result['low']:.4f} to {result['high']:.4f}, {result['resamples']} draws",
    }


if __name__ == "__main__":
    main()
