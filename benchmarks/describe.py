"""How fast a corpus is described: `auscult index` beside decoding alone and beside the usual librosa loop.

    python benchmarks/describe.py [--clips 400] [--seconds 10] [--channels 2] [--workers 2] [-o FILE.json]

Generated clips (10 s, 44.1 kHz, pink noise bursts) as WAV, FLAC and Ogg Vorbis. All three contestants use the same
number of processes, each with one thread. Start-up of the processes is left out for all: the rate is that of a second,
larger corpus less that of a first, small one.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile as sf
from threadpoolctl import threadpool_limits

from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.engine import Engine
from auscult.indexing import index
from report import print_table, write_json

RATE_HZ = 44_100


def make_clips(folder: Path, count: int, seconds: float, channels: int, suffix: str) -> list[str]:
    """Write ``count`` different clips; returns their paths."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    n = round(seconds * RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal((channels, n))) / np.sqrt(np.maximum(np.arange(n // 2 + 1), 1))
    base = np.fft.irfft(spectrum, n).T
    base *= np.interp(np.linspace(0, 20, n), np.arange(21), rng.uniform(0.05, 1, 21))[:, None]
    base = 0.8 * base / np.abs(base).max()
    paths = []
    for number in range(count):
        path = folder / f"{number:05d}.{suffix}"
        sf.write(path, np.roll(base, number * 997, axis=0) * rng.uniform(0.3, 1), RATE_HZ)
        paths.append(str(path))
    return paths


def decode(paths: list[str]) -> None:
    """The bound: decoding to float32 and nothing else."""
    for path in paths:
        sf.read(path, dtype="float32")


def librosa_loop(paths: list[str]) -> None:
    """What most scripts do: load at 16 kHz, mel spectrogram in dB."""
    import librosa

    for path in paths:
        samples, _ = librosa.load(path, sr=16_000)
        mel = librosa.feature.melspectrogram(y=samples, sr=16_000, n_fft=2048, hop_length=1536, n_mels=16, pad_mode="constant")
        librosa.power_to_db(mel, ref=np.max, top_db=40)


def one_thread() -> None:
    """Initializer: as many processes as cores, one thread each."""
    threadpool_limits(1)


def clips_per_second(work, paths: list[str], workers: int) -> float:
    """Rate of a function over lists of paths in warm processes."""
    chunks = [paths[start : start + 8] for start in range(0, len(paths), 8)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        list(pool.map(work, chunks[: 2 * workers]))  # imports, caches
        started = time.perf_counter()
        list(pool.map(work, chunks))
        return len(paths) / (time.perf_counter() - started)


def index_seconds(folder: Path, workers: int) -> float:
    """Seconds of one `index` call, processes and finishing included."""
    with tempfile.TemporaryDirectory() as store:
        started = time.perf_counter()
        index(open_corpus(folder), Path(store) / "store", descriptor=load_descriptor("mel"), engine=Engine(workers))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", default="benchmarks/results/describe.json")
    options = parser.parse_args()
    rows = []
    for suffix, goal in (("flac", 0.70), ("ogg", 0.70), ("wav", 0.35)):
        root = Path(tempfile.mkdtemp())
        try:
            paths = make_clips(root / "all", options.clips, options.seconds, options.channels, suffix)
            make_clips(root / "few", 40, options.seconds, options.channels, suffix)
            decode(paths)  # into the page cache
            bound = clips_per_second(decode, paths, options.workers)
            usual = clips_per_second(librosa_loop, paths, options.workers)
            few, everything = (min(index_seconds(root / name, options.workers) for _ in range(2)) for name in ("few", "all"))
            ours = (options.clips - 40) / (everything - few)
            rows.append(
                {
                    "format": suffix,
                    "auscult clips/s": round(ours, 1),
                    "decoding alone": round(bound, 1),
                    "librosa loop": round(usual, 1),
                    "of the bound": round(ours / bound, 2),
                    "goal": goal,
                    "x librosa": round(ours / usual, 2),
                }
            )
        finally:
            shutil.rmtree(root)
    print_table(rows)
    write_json(options.output, rows, vars(options))


if __name__ == "__main__":
    main()
