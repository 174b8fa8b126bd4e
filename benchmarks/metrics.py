"""Whether the metrics order real recordings and their degradations as a listener would: ESC-10, folds 1-3.

    python benchmarks/metrics.py ../shared/data/esc10 [-o benchmarks/results/metrics] [--backend clap ...]

The reference is fold 1. Evaluated are the two other folds as they are; fold 2 with white noise added at five levels; through an
Opus encoder at its lowest bit rate; without what lies above 3 kHz; and as silence. All by what ``auscult evaluate`` runs. No
listener was asked: the order that is expected is that more noise, a narrower band and a lower bit rate are worse.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile as sf
import soxr

from auscult.corpus import Clip, open_corpus
from auscult.engine import Engine
from auscult.metrics.evaluation import EvaluateConfig, Evaluation, System, evaluate
from auscult.metrics.results import write_evaluation
from esc10 import write_folds
from report import print_table, write_json

NOISE_DB = (40, 30, 20, 10, 0)  # signal to noise
LOW_PASS_HZ = 3000
OPUS_HZ = 48_000
METRICS = ("fad", "fad_infinity", "fd", "fd_infinity", "kad", "precision", "recall", "density", "coverage", "is")

Change = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def noisy(snr_db: float) -> Change:
    """White noise, so many dB below the clip's own power."""

    def change(samples: np.ndarray, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
        power = float(np.mean(samples.astype(np.float64) ** 2))
        return samples + np.sqrt(power / 10 ** (snr_db / 10)) * rng.standard_normal(len(samples))

    return change


def low_bitrate(samples: np.ndarray, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Through libsndfile's Opus encoder at its lowest bit rate (6 kbit/s)."""
    held = io.BytesIO()
    sf.write(held, soxr.resample(samples, rate_hz, OPUS_HZ), OPUS_HZ, format="OGG", subtype="OPUS", compression_level=1.0)
    held.seek(0)
    decoded = soxr.resample(sf.read(held, dtype="float32")[0], OPUS_HZ, rate_hz)[: len(samples)]
    return np.pad(decoded, (0, len(samples) - len(decoded)))


def low_passed(samples: np.ndarray, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Butterworth of the tenth order, forwards and backwards."""
    return scipy.signal.sosfiltfilt(scipy.signal.butter(10, LOW_PASS_HZ, fs=rate_hz, output="sos"), samples)


def silent(samples: np.ndarray, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Zeros."""
    return np.zeros_like(samples)


CHANGES: dict[str, Change] = {
    **{f"noise {snr} dB": noisy(snr) for snr in NOISE_DB},
    "Opus 6 kbit/s": low_bitrate,
    f"below {LOW_PASS_HZ // 1000} kHz": low_passed,
    "silence": silent,
}


def degrade(manifest: Path, folder: Path, change: Change, seed: int) -> Path:
    """Write the changed clips of a manifest as FLAC."""
    folder.mkdir(parents=True)
    for number, clip in enumerate(open_corpus(manifest)):
        assert isinstance(clip, Clip)
        samples, rate_hz = sf.read(clip.path, dtype="float32")
        changed = change(samples, rate_hz, np.random.default_rng([seed, number]))
        sf.write(folder / f"{clip.clip_id}.flac", np.clip(changed, -1, 1), rate_hz, subtype="PCM_24")
    return folder


def make_systems(source: Path, folder: Path, seed: int) -> tuple[dict[str, System], Path]:
    """The systems by name, and the manifest of the reference."""
    folds = write_folds(source, folder / "folds")
    systems = {"fold 2": folds["2"], "fold 3": folds["3"]}
    for name, change in CHANGES.items():
        systems[name] = degrade(folds["2"], folder / re.sub(r"\W+", "-", name), change, seed)
    return {name: System(open_corpus(place)) for name, place in systems.items()}, folds["1"]


def rows_of(evaluation: Evaluation, label: str) -> list[dict[str, object]]:
    """A row for each system, and one for each bracket."""
    rows = []
    shown = [metric for metric in METRICS if f"{metric}_{label}" in evaluation.results[0].scores]
    for result in evaluation.results:
        row: dict[str, object] = {"set": result.name}
        for metric in shown:
            score = result.scores[f"{metric}_{label}"]
            value = "-" if score.value is None else f"{score.value:.3g}"
            row[metric] = value if score.low is None else f"{value} [{score.low:.3g}, {score.high:.3g}]"
        rows.append(row)
    for bracket in ("floor", "noise", "silence"):
        values = {metric: getattr(evaluation.results[0].scores[f"{metric}_{label}"], bracket) for metric in shown}
        rows.append({"set": f"bracket: {bracket}", **{m: "-" if v is None else f"{v:.3g}" for m, v in values.items()}})
    return rows


def misordered(evaluation: Evaluation, label: str) -> list[str]:
    """Pairs of neighbors on the scale of rising noise that a metric has the wrong way round."""
    scale = ["fold 2", *(f"noise {snr} dB" for snr in NOISE_DB)]
    scores = {result.name: result.scores for result in evaluation.results}
    wrong = []
    for metric in METRICS:
        key = f"{metric}_{label}"
        for better, worse in itertools.pairwise(scale):
            one, other = scores[better].get(key), scores[worse].get(key)
            if one is None or other is None or one.value is None or other.value is None:
                continue
            if (one.value < other.value) == bool(one.higher_is_better):
                wrong.append(f"{metric}: {worse} before {better}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="folder of ESC-10 with esc10.csv")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/metrics"))
    parser.add_argument("--backend", action="append", help="as of auscult evaluate (default: logmel)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.output
    shutil.rmtree(folder / "sets", ignore_errors=True)
    systems, reference = make_systems(options.source, folder / "sets", options.seed)
    config = EvaluateConfig(backends=tuple(options.backend or ["logmel"]), seed=options.seed)
    evaluation = evaluate(systems, open_corpus(reference), config=config, cache=folder / "cache", engine=Engine(1))
    write_evaluation(evaluation, folder / "metrics.json")
    tables = []
    for label in evaluation.card["backends"]:
        rows = rows_of(evaluation, label)
        print(f"\n{label}, {evaluation.card['seconds']} s for all\n")
        print_table(rows)
        print("\nthe wrong way round on the scale of noise: " + ("; ".join(misordered(evaluation, label)) or "none"))
        tables += [{"backend": label, **row} for row in rows]
    write_json(folder / "table.json", tables, {"backends": list(config.backends), "seed": options.seed})


if __name__ == "__main__":
    main()
