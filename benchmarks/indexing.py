"""What the store costs beside describing: time a clip for files, listings and shards, and the time to resume after a kill.

    python benchmarks/indexing.py [--files 100000] [-o benchmarks/results/indexing.json]

Small WAV files (0.1 s at 8 kHz) are generated into a temporary folder. The bound is the same decoding and describing of the
same files in a loop in memory, without listing, states and shards. Then a run is killed near its end, and the next one timed
until its first new clip and until it is done. Each contestant runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf

from report import print_table, write_json

RATE_HZ = 8000
A_FOLDER = 1000  # files in each folder
TARGET_MS, TARGET_RESUME_S = 1.0, 10.0


def make_files(folder: Path, count: int) -> None:
    """Noise with an id in its first samples, so that no two files are equal."""
    noise = (np.random.default_rng(0).standard_normal(RATE_HZ // 10) * 3000).astype(np.int16)
    for number in range(count):
        if number % A_FOLDER == 0:
            (folder / f"{number // A_FOLDER:04d}").mkdir(parents=True)
        noise[:2] = divmod(number, 30_000)
        sf.write(folder / f"{number // A_FOLDER:04d}" / f"{number:07d}.wav", noise, RATE_HZ)


def descriptor():
    from auscult.descriptors import load_descriptor

    return load_descriptor("mel", duration_s=0.1)


def run_bound(source: Path, _: Path) -> dict[str, object]:
    """Decode and describe the same files; only the walk that lists them is not timed."""
    from auscult.corpus import Clip
    from auscult.describing import describe_item

    chosen = descriptor()
    clips = [Clip(str(path.relative_to(source)), str(path)) for path in sorted(source.rglob("*.wav"))]
    started = time.perf_counter()
    for clip in clips:
        describe_item((clip, "", ""), chosen)
    return {"seconds": time.perf_counter() - started}


def run_index(source: Path, store: Path) -> dict[str, object]:
    """Print the time of the first described clip as it comes, for the one who kills."""
    from auscult.corpus import open_corpus
    from auscult.indexing import index

    chosen = descriptor()
    started = time.perf_counter()
    first: list[float] = []

    def progress(done: int, total: int | None, what: str) -> None:
        if done == 1:
            first.append(time.perf_counter() - started)
        if done % 100 == 0:
            print(done, flush=True)

    counts = index(open_corpus(source), store, descriptor=chosen, progress=progress).card["counts"]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "first": first[0] if first else seconds, "clips": counts["clips"]}


CONTESTANTS = {"bound": run_bound, "index": run_index}


def start(name: str, source: Path, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--one", name, str(source), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, float]:
    """The result of a contestant: the last line that it prints."""
    text, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{process.args}: failed with {process.returncode}")
    return json.loads(text.splitlines()[-1])


def kill_near_the_end(source: Path, store: Path, files: int, share: float) -> int:
    """Start an index run and kill it when it has described that share of the files; returns how many it had."""
    with start("index", source, store) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= share * files:
                os.kill(process.pid, signal.SIGKILL)
                return int(line)
    raise SystemExit("the run ended before it could be killed; give more --files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kill-at", type=float, default=0.99, help="share of the files that are described before the kill")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "SOURCE", "STORE"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", default="benchmarks/results/indexing.json")
    options = parser.parse_args()
    if options.one:
        name, source, store = options.one
        print(json.dumps(CONTESTANTS[name](Path(source), Path(store))))
        return
    with tempfile.TemporaryDirectory(prefix="auscult-") as folder:
        source = Path(folder) / "audio"
        make_files(source, options.files)
        bound = finished(start("bound", source, Path()))["seconds"]
        whole = finished(start("index", source, Path(folder) / "store"))
        again = finished(start("index", source, Path(folder) / "store"))["seconds"]
        killed_at = kill_near_the_end(source, Path(folder) / "killed", options.files, options.kill_at)
        resumed = finished(start("index", source, Path(folder) / "killed"))
        equal = parts(Path(folder) / "store") == parts(Path(folder) / "killed")
    overhead_ms = 1e3 * (whole["seconds"] - bound) / options.files
    rows = [
        row("decode and describe in memory", bound, options.files),
        row("index", whole["seconds"], options.files),
        row("overhead of index", overhead_ms * options.files / 1e3, options.files, target(overhead_ms, TARGET_MS, "ms a clip")),
        row("index again, nothing new", again, options.files),
        row(f"resume, killed at {killed_at:,}: first new clip", resumed["first"], options.files),
        row(
            "resume: done, parts " + ("as uninterrupted" if equal else "DIFFER"),
            resumed["seconds"],
            options.files,
            target(resumed["seconds"], TARGET_RESUME_S, "s"),
        ),
    ]
    print_table(rows)
    write_json(options.output, rows, {"files": options.files, "kill_at": options.kill_at})


def parts(store: Path) -> list[str]:
    """Names of a store's shards, which hold their digests."""
    return sorted(path.name for path in (store / "vectors").iterdir())


def row(what: str, seconds: float, files: int, check: str = "") -> dict[str, object]:
    return {"": what, "seconds": round(seconds, 2), "ms a clip": round(1e3 * seconds / files, 3), "target": check}


def target(value: float, limit: float, unit: str) -> str:
    return f"< {limit:g} {unit}: {'met' if value < limit else 'MISSED'}"


if __name__ == "__main__":
    main()
