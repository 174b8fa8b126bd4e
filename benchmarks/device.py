"""How fast search and description are on a GPU: exact top-5 beside the rate of the bare matrix product, clap beside one core.

    python benchmarks/device.py [--references 1000000] [--queries 10000] [--dimension 1712] [--device cuda|cpu]
                                [--clips 512] [-o benchmarks/results/device.json]

Needs torch, transformers and faiss. Vectors are generated to look like mel descriptors (values in [-40, 0] dB, a spectrum
common to all, float16), a tenth of the queries being near-copies of references. The weights of clap are random, in the default
configuration, since speed does not depend on them. On the processor take small numbers: it computes as a GPU does, slowly.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from auscult.descriptors.clap import WINDOW_SAMPLES, ClapDescriptor
from auscult.devices import float32_products, torch_device
from auscult.search import top_k
from auscult.search.device import TorchExact
from auscult.search.exact import cosines, unit_rows
from report import print_table, write_json

K, SPARE, QUERY_BLOCK = 5, 8, 2048
CHECKED = 64


def make_vectors(references: int, queries: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """References (float16) and queries (float32); a tenth of the queries are references with noise."""
    rng = np.random.default_rng(0)
    made = np.empty((references, dimension), np.float16)
    for start in range(0, references, 20_000):
        made[start : start + 20_000] = _spectra(rng, len(made[start : start + 20_000]), dimension)
    asked = _spectra(rng, queries, dimension)
    copies = queries // 10
    sources = made[rng.integers(0, references, copies)].astype(np.float32)
    asked[:copies] = sources + rng.standard_normal((copies, dimension), dtype=np.float32)
    return made, asked


def _spectra(rng: np.random.Generator, rows: int, dimension: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, dimension), dtype=np.float32) * 6
    vectors += rng.standard_normal((rows, 1), dtype=np.float32) * 4
    vectors += np.linspace(-12, -28, dimension, dtype=np.float32)
    return np.clip(vectors, -40, 0, out=vectors)


def seconds(function, repeat: int = 1) -> float:
    """The best of several runs; the function leaves nothing under way."""
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return best


def product_rate(device, shape: tuple[int, int, int], kind: str) -> float:
    """Products and sums a second (n, m, d) of a matrix product alone, queued ten times."""
    import torch

    n, m, d = shape
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    with torch.inference_mode(), float32_products(tf32=kind == "tf32" and device.type == "cuda"):
        left = torch.randn(n, d, device=device).to(dtype)
        right = torch.randn(m, d, device=device).to(dtype)

        def ten() -> None:
            for _ in range(10):
                left @ right.T
            _wait(device)

        ten()
        return 10 * 2 * n * m * d / seconds(ten, 3)


def _wait(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exact_top(backend: TorchExact, queries: np.ndarray, references: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """What top_k does for one block of references that is ready on the device."""
    found = np.empty((len(queries), K), np.int64)

    def fill(start: int) -> None:
        block = queries[start : start + QUERY_BLOCK]
        units, query_norms = unit_rows(block)
        rough, index = backend.nearest(units, K + SPARE)
        row, column = np.nonzero(rough >= rough[:, K - 1 : K] - 2 * backend.slack)
        exact = np.full(rough.shape, -np.inf)
        exact[row, column] = backend.cosines(block, query_norms, references, norms, row, index[row, column])
        order = np.lexsort((index, -exact))[:, :K]
        best = np.take_along_axis(exact, order, 1)
        if not (best[:, -1] > rough[:, -1] + backend.slack).all():
            raise SystemExit("near-ties at the end of a list: ask top_k, which looks again")
        found[start : start + QUERY_BLOCK] = np.take_along_axis(index, order, 1)

    with ThreadPoolExecutor(backend.threads) as pool:
        list(pool.map(fill, range(0, len(queries), QUERY_BLOCK)))
    return found


def brute_force(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The k nearest in float64 on the processor."""
    _, query_norms = unit_rows(queries)
    parts = []
    for start in range(0, len(references), 20_000):
        wide = references[start : start + 20_000].astype(np.float64)
        parts.append(queries.astype(np.float64) @ wide.T / np.linalg.norm(wide, axis=1) / query_norms[:, None])
    return np.argsort(-np.round(np.concatenate(parts, 1), 12), axis=1, kind="stable")[:, :K]


def search_rows(options, device) -> list[dict[str, object]]:
    import faiss

    references, queries = make_vectors(options.references, options.queries, options.dimension)
    small = device.type == "cpu"
    square = (512, 512, 512) if small else (8192, 8192, 8192)
    shape = (256, 2048, options.dimension) if small else (QUERY_BLOCK, 1 << 17, options.dimension)
    rates = {kind: max(product_rate(device, one, kind) for one in (square, shape)) for kind in ("bf16", "tf32")}
    rows = [_row(f"{kind} product alone, best of {square} and {shape}", rate, rates["bf16"]) for kind, rate in rates.items()]
    work = 2 * len(references) * len(queries) * options.dimension

    units, norms = unit_rows(references)
    started = time.perf_counter()
    backend = TorchExact(units, options.device, "bf16")
    _wait(device)
    sent = time.perf_counter() - started
    exact_top(backend, queries[:QUERY_BLOCK], references, norms)  # the vectors as they are go to the device, kernels are chosen

    query_units, _ = unit_rows(queries)

    def nearest_only(backend: TorchExact = backend) -> None:
        for start in range(0, len(queries), QUERY_BLOCK):
            backend.nearest(query_units[start : start + QUERY_BLOCK], K + SPARE)

    rows.append(_row("13 nearest, references on the device", work / seconds(nearest_only, 3), rates["bf16"]))
    exactly = seconds(partial(exact_top, backend, queries, references, norms), 3)
    name = f"exact top-{K}, references on the device"
    rows.append(_row(name, work / exactly, rates["bf16"], "the target: a share of at least 0.5"))
    found = exact_top(backend, queries, references, norms)
    picked = np.random.default_rng(1).choice(len(queries), min(CHECKED, len(queries)), replace=False)
    same = (found[picked] == brute_force(queries[picked], references)).all()
    rows[-1]["note"] += f"; equal to float64 brute force on {len(picked)} queries: {'yes' if same else 'NO'}"
    del backend
    prepare = partial(TorchExact, device=options.device, precision="bf16")
    whole = seconds(lambda: top_k(queries, references, k=K, prepare=prepare))
    rows.append(
        _row("top_k as a whole", work / whole, rates["bf16"], f"{whole:.2f} s, of which {sent:.2f} s sending references")
    )
    few = query_units[:256]
    peer = seconds(lambda: faiss.knn(few, units, K, metric=faiss.METRIC_INNER_PRODUCT))
    rows.append(_row("faiss.knn on the processor", 2 * len(few) * len(units) * options.dimension / peer, rates["bf16"]))
    host = seconds(lambda: cosines(queries, norms, references, norms, *_some_pairs(queries, references)))
    rows.append({"": "float64 cosines of 20,000 pairs on the processor", "rate": f"{host:.3f} s", "share": "", "note": ""})
    return rows


def _some_pairs(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.integers(0, min(len(queries), len(references)), 20_000), rng.integers(0, len(references), 20_000)


def _row(name: str, rate: float, bound: float, note: str = "") -> dict[str, object]:
    return {"": name, "rate": f"{rate / 1e12:.3f} TFLOP/s", "share": round(rate / bound, 3), "note": note}


def save_model(folder: str) -> None:
    """clap in its default configuration with random weights; the text half, which is not used, is small."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ClapModel(ClapConfig(text_config=text)).save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(folder)


def clap_rows(options) -> list[dict[str, object]]:
    import torch

    rng = np.random.default_rng(3)
    windows = rng.standard_normal((max(options.clips, 4), WINDOW_SAMPLES), dtype=np.float32) * 0.1
    rates, vectors = {}, []
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        threads = torch.get_num_threads()
        for name, device, cores, few in (
            ("one core", "cpu", 1, windows[: min(8, len(windows))]),
            (options.device, options.device, threads, windows),
        ):
            torch.set_num_threads(cores)
            descriptor = ClapDescriptor(folder, device=device)
            vectors.append(descriptor.describe(few[:64])[:4])  # loads the model, chooses kernels
            rates[name] = len(few) / seconds(lambda few=few, descriptor=descriptor: descriptor.describe(few), 2)
    apart = float(np.abs(vectors[0] - vectors[1]).max())
    note = f"{rates[options.device] / rates['one core']:.1f} times one core (target on a GPU: 30); values differ by {apart:.1e}"
    return [
        {"": f"clap on {name}", "rate": f"{rate:.2f} clips/s", "share": "", "note": "" if name == "one core" else note}
        for name, rate in rates.items()
    ]


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=1712)
    parser.add_argument("--clips", type=int, default=512, help="windows that clap describes on the device; 0: none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--output", default="benchmarks/results/device.json")
    options = parser.parse_args()
    device = torch_device(options.device, "this benchmark")
    rows = search_rows(options, device) + (clap_rows(options) if options.clips else [])
    print_table(rows)
    facts = {"torch": torch.__version__}
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
    write_json(options.output, rows, {**vars(options), **facts})


if __name__ == "__main__":
    main()
