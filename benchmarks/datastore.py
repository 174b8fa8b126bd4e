"""How long retrieval from a datastore takes at the size of AudioCaps: free prompts one by one, and neighbors of targets.

    python benchmarks/datastore.py [--pairs 50000] [--dimension 512] [--targets 5000] [-o benchmarks/results/datastore.json]

Keys are generated, in clusters, as many values as CLAP's; captions are AudioCaps's where they are beside the project, else
generated. The peers hide nothing from a query: a bare product with a partition, and faiss's flat index. One prompt is asked at
a time, as in sampling. The row of the text encoder is a network of the size of CLAP's with random weights, which take as long.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from auscult.generation.datastore import Datastore, Exclusion
from auscult.generation.datastore.search import Groups, nearest
from report import print_table, write_json

K, KEPT, PROMPTS, CHECKED = 10, 50, 200, 50
AUDIOCAPS = Path(__file__).parents[2] / "shared" / "data" / "audiocaps" / "train.csv"


def make_captions(pairs: int) -> list[str]:
    if AUDIOCAPS.is_file():
        with open(AUDIOCAPS, encoding="utf-8") as handle:
            real = [row["caption"] for row in csv.DictReader(handle)]
        return [real[number % len(real)] for number in range(pairs)]
    return [f"sound {number // 2} of a kind" for number in range(pairs)]


def make_keys(rng: np.random.Generator, pairs: int, dimension: int) -> np.ndarray:
    centers = rng.normal(size=(pairs // 100 + 1, dimension))
    keys = centers[rng.integers(len(centers), size=pairs)] + 0.7 * rng.normal(size=(pairs, dimension))
    return (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)


def make_datastore(captions: list[str], keys: np.ndarray, text: str) -> Datastore:
    n = len(captions)
    ids = [f"clip-{number}" for number in range(n)]
    clusters = np.full(n, -1)
    clusters[:264] = np.arange(264) // 3  # as many clips in clusters as the audit paper found in AudioCaps, 3 in each
    pairs = pa.table(
        {
            "clip_id": ids,
            "path": ids,
            "start_s": np.zeros(n),
            "duration_s": np.full(n, 10.0),
            "caption": captions,
            "labels": pa.array([None] * n, pa.list_(pa.string())),
            "cluster_id": clusters,
        }
    )
    none = np.full((n, 1), -1, np.int32)
    return Datastore(Path("generated"), {"encoders": {"audio": "", "text": text}}, pairs, keys, None, none, np.ones((n, 1)))


def milliseconds(ask: Callable[[int], object], times: int = PROMPTS) -> dict[str, object]:
    ask(0)  # the first one reads tables and loads the encoder
    taken = []
    for number in range(times):
        started = time.perf_counter()
        ask(number)
        taken.append(1e3 * (time.perf_counter() - started))
    return {"median ms": round(float(np.median(taken)), 2), "95 % ms": round(float(np.quantile(taken, 0.95)), 2)}


def measure_prompts(rng: np.random.Generator, captions: list[str], keys: np.ndarray) -> list[dict[str, object]]:
    import faiss

    store = make_datastore(captions, keys, "clap")
    queries = keys[rng.integers(len(keys), size=PROMPTS)] + 0.05 * rng.normal(size=(PROMPTS, keys.shape[1])).astype(np.float32)
    flat = faiss.IndexFlatIP(keys.shape[1])
    flat.add(keys)
    targets = [Exclusion((f"clip-{number}",)) for number in rng.integers(len(keys), size=PROMPTS)]

    def bare(number: int) -> np.ndarray:
        return np.argpartition(keys @ queries[number], len(keys) - K)[-K:]

    rows = [
        ("vector", lambda number: store.retrieve(queries[number : number + 1], K)),
        ("vector, a target excluded", lambda number: store.retrieve(queries[number : number + 1], K, exclude=targets[number])),
        ("peer: product and partition", bare),
        ("peer: faiss flat", lambda number: flat.search(queries[number : number + 1], K)),
    ]
    shape = f"{keys.shape[0]} x {keys.shape[1]}"
    result = [{"what": what, "keys": shape, **milliseconds(ask)} for what, ask in rows]
    words = make_datastore(captions, np.zeros((0, 0), np.float32), "hashed/1(dimension=64,seed=0)")
    hashed = np.concatenate([words.encode(captions[at : at + 1000]) for at in range(0, len(captions), 1000)])
    words = make_datastore(captions, hashed, words.card["encoders"]["text"])
    prompts = [f"{captions[number]} in the distance" for number in rng.integers(len(captions), size=PROMPTS)]
    asked = milliseconds(lambda number: words.retrieve([prompts[number]], K))
    return [*result, {"what": "text, hashed", "keys": f"{hashed.shape[0]} x {hashed.shape[1]}", **asked}, measure_clap_texts()]


def measure_clap_texts() -> dict[str, object]:
    import torch
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    model = ClapTextModelWithProjection(ClapTextConfig()).eval()
    tokens = torch.randint(5, 1000, (PROMPTS, 14))  # AudioCaps's captions have 9 words
    with torch.inference_mode():
        return {"what": "CLAP's text encoder alone", "keys": "", **milliseconds(lambda number: model(tokens[[number]]), 30)}


def measure_neighbors(rng: np.random.Generator, captions: list[str], keys: np.ndarray, targets: int) -> dict[str, object]:
    equal = Groups.of_captions(captions)
    chosen = np.sort(rng.choice(len(keys), min(targets, len(keys)), replace=False))
    started = time.perf_counter()
    found = nearest(keys, keys[chosen], KEPT, hidden=lambda query: equal.like(chosen[query : query + 1]))
    seconds = time.perf_counter() - started
    wrong = 0
    for query in rng.choice(len(chosen), min(CHECKED, len(chosen)), replace=False):
        cosines = keys.astype(np.float64) @ keys[chosen[query]].astype(np.float64)
        cosines[equal.like(chosen[query : query + 1])] = -np.inf
        best = np.sort(cosines)[::-1][:KEPT]
        wrong += int(not np.allclose(best, found.similarity[query], atol=1e-6))  # keys have length 1 up to rounding
    each = round(1e3 * seconds / len(chosen), 2)
    return {"targets": len(chosen), "seconds": round(seconds, 1), "ms each": each, f"wrong of {CHECKED} checked": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--targets", type=int, default=5_000)
    parser.add_argument("-o", "--output", default="benchmarks/results/datastore.json")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    captions, keys = make_captions(options.pairs), make_keys(rng, options.pairs, options.dimension)
    rows = measure_prompts(rng, captions, keys)
    print_table(rows)
    print()
    neighbors = measure_neighbors(rng, captions, keys, options.targets)
    print_table([neighbors])
    write_json(options.output, [*rows, neighbors], vars(options))


if __name__ == "__main__":
    main()
