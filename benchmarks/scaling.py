"""What a corpus of 50 thousand to 100 million clips takes, from rates measured on this machine and a stated model.

    python benchmarks/scaling.py [--results benchmarks/results] [--esc10 ../shared/data/esc10] [--core-hour 0.04] [-o FILE.json]

Reads the results of describe.py, million.py, join.py, detection.py and cluster.py, which have to be run before, and measures
the bytes of stores on the 240 recordings of ESC-10. The model, for clips of 10 s and n clips of training:

    store       bytes a second of sound, as measured, times 10 n
    describe    n / (clips a second and core)
    audit, mel  (10,000 generated + 5,000 + 5,000 training clips) x n pairs at the rate of exact search
    audit, contrast  (1,000 generated + 1,000 null clips) x n pairs at the rate of the first stage, and the second stage
    dedup, tau  20,000 x n pairs at the rate of exact search, n^2 / 2 at that of the pruned join
    dedup, gap  n^2 pairs at the rate of exact search, n^2 / 2 at that of the pruned join

Time on a cluster is core-hours over cores, less what the two-node cluster lost. Every number of core-hours scales from this
machine's cores; reading from remote storage, which depends on the network, is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.engine import Engine
from auscult.indexing import index
from report import print_table, write_json

CORES, CLIP_S = 2, 10.0
SIZES = (50_000, 1_000_000, 10_000_000, 100_000_000)
GENERATED, TRAINING_SAMPLE, HISTOGRAM = 10_000, 5_000, 20_000
CONTRAST_QUERIES = 2_000


def read(folder: Path, name: str) -> dict[str, Any]:
    """The JSON that another benchmark wrote."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path}: missing; run benchmarks/{name}.py first")
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def contrast_bytes_a_second(esc10: Path) -> float:
    """Bytes of a store of ``contrast``, which grows with the length of clips, for each second of sound."""
    with tempfile.TemporaryDirectory() as folder:
        store = index(
            open_corpus(esc10), Path(folder) / "store", descriptor=load_descriptor("contrast"), engine=Engine(workers=CORES)
        )
        return sum(path.stat().st_size for path in (Path(folder) / "store").rglob("*.parquet")) / store.card["audio_s"]


def core_seconds(rates: dict[str, float], n: int) -> dict[str, float]:
    """Core-seconds of each job for n training clips."""
    search, join = rates["search_core_s"], rates["join_core_s"]
    return {
        "index, mel": n * rates["mel_core_s"],
        "index, contrast": n * rates["contrast_core_s"],
        "audit, mel": (GENERATED + 2 * TRAINING_SAMPLE) * n * search,
        "audit, contrast": CONTRAST_QUERIES * (n * rates["first_stage_core_s"] + rates["second_stage_core_s"]),
        "dedup, tau given": min(HISTOGRAM, n) * n * search + n * n / 2 * join,
        "dedup, gap": n * n * search + n * n / 2 * join,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--esc10", type=Path, default=Path("../shared/data/esc10"))
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core for an hour, in any currency")
    parser.add_argument("-o", "--output", default="benchmarks/results/scaling.json")
    options = parser.parse_args()
    rates, facts = measured_rates(options)
    print_table([{"rate": name, "core-seconds": f"{value:.3g}"} for name, value in rates.items()])
    print()
    rows = []
    for n in SIZES:
        for job, seconds in core_seconds(rates, n).items():
            hours = seconds / 3600
            rows.append(
                {
                    "clips": f"{n:,}",
                    "job": job,
                    "core-hours": f"{hours:,.3g}" if hours < 100 else f"{hours:,.0f}",
                    "on 2 cores": _time(seconds / CORES),
                    "on 64 cores": _time(seconds / 64 / facts["cluster"]),
                    "cost": f"{hours * options.core_hour:,.2f}",
                }
            )
    stores = [
        {
            "clips": f"{n:,}",
            "mel, float32": _size(n * facts["mel_bytes"] * 2),
            "mel, float16": _size(n * facts["mel_bytes"]),
            "contrast": _size(n * CLIP_S * facts["contrast_bytes_a_second"]),
        }
        for n in SIZES
    ]
    print_table(stores)
    print()
    print_table(rows)
    write_json(
        options.output, rows, {key: str(value) for key, value in vars(options).items()} | {"rates": rates, "facts": facts}
    )


def measured_rates(options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Core-seconds of a clip or a pair, and the other facts of the model."""
    describe, million, detection, join, cluster = (
        read(options.results, name) for name in ("describe", "million", "detection", "join", "cluster")
    )
    flac = next(row for row in describe["rows"] if row["format"] == "flac")
    mel = CORES / flac["auscult clips/s"]
    contrast_ms, mel_ms = map(float, detection["rows"][0]["describe, ms: contrast / mel"].split(" / "))
    size, pairs = million["options"], join["options"]["rows"] ** 2 / 2
    rates = {
        "mel_core_s": mel,
        "contrast_core_s": mel + (contrast_ms - mel_ms) / 1000,
        "search_core_s": CORES * million["rows"][0]["seconds"] / (size["references"] * size["queries"]),
        "join_core_s": CORES * join["rows"][0]["seconds"] / pairs,
        "first_stage_core_s": CORES * detection["rows"][0]["microseconds a pair"] * 1e-6,
        "second_stage_core_s": CORES * detection["rows"][0]["ms a query"] * 1e-3,
    }
    facts = {
        "mel_bytes": size["store_bytes"] / size["references"],
        "contrast_bytes_a_second": contrast_bytes_a_second(options.esc10),
        "cluster": min(1.0, *(row["per core, of local"] for row in cluster["rows"])),
    }
    return rates, facts


def _time(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (float("inf"), 86_400, "days")):
        if seconds < limit:
            return f"{seconds / unit:,.0f} {name}"
    raise AssertionError


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size < 1e12 else f"{size / 1e12:,.1f} TB"


if __name__ == "__main__":
    main()
