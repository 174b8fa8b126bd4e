"""Does false-discovery control hold for the detector's own scores? Resampled audits of planted copies.

    python benchmarks/false_discovery.py [--esc10 ../shared/data/esc10] [--runs 200] [--seed 0]
        [-o benchmarks/results/false_discovery.json]

References and everything that is scored against them share no recording and no uploader: real clips (ESC-10, where the
folder is there) and synthesized ones. Each unrelated clip and each planted copy (verbatim under another gain, or shifted) is
scored once by `auscult.detection.detect`, against all references. A run then draws from these scores, without replacement:
null clips, unrelated queries, copies; takes p-values and the Benjamini-Hochberg list at 0.1; and counts the share of
unrelated clips in it and the share of copies found. A clip's score depends on no other query (tests hold that), so drawing
scores is drawing audits.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np

from auscult.calibration import fdr_threshold
from auscult.comparison import AuditConfig
from auscult.descriptors.contrast import SAMPLE_RATE
from auscult.detection import detect
from auscult.engine import Engine
from auscult.levels import LevelSet
from auscult.sounds import FAMILIES, synthesise
from copy_detection.dataset import read_esc10
from copy_detection.systems import level_set
from report import print_table, write_json

FDR = 0.1
NULL_CLIPS, UNRELATED, COPIES = 400, 150, (0, 5, 20, 50)  # of a run


def stock(esc10: Path, count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """(source, samples at 16 kHz) of real clips and of `count` synthesized ones, each of these its own source."""
    rng = np.random.default_rng([seed, 3])
    kinds = [kind for kind in FAMILIES if kind not in {"rain", "engine"}]  # steady sound is never planted
    made = [
        (f"synthetic-{n}", synthesise(kinds[n % len(kinds)], rng, duration_s=float(rng.uniform(2, 6))).samples)
        for n in range(count)
    ]
    real = [(s.source, s.audio) for s in read_esc10(esc10, SAMPLE_RATE)] if esc10.is_dir() else []
    return [(source, np.asarray(samples, np.float32)) for source, samples in real + made]


def deal(sounds: list[tuple[str, np.ndarray]], shares: dict[str, float], seed: int) -> dict[str, list[np.ndarray]]:
    """Whole sources to roles, by hash."""
    edges = np.cumsum(list(shares.values()))
    roles: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    for source, samples in sounds:
        place = int(hashlib.sha256(f"{seed}:{source}".encode()).hexdigest()[:8], 16) / 2**32
        roles[list(shares)[min(int(np.searchsorted(edges, place, side="right")), len(shares) - 1)]].append(samples)
    return roles


def copies_of(clips: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Half verbatim under another gain, half shifted by 0.1 to 1 s; all with noise 30 dB below."""
    rng = np.random.default_rng([seed, 4])
    out = []
    for number, clip in enumerate(clips):
        copy = clip * np.float32(rng.uniform(0.2, 0.9))
        if number % 2:
            copy = np.concatenate([np.zeros(int(rng.uniform(0.1, 1.0) * SAMPLE_RATE), np.float32), copy])[: len(clip)]
        level = float(np.sqrt(np.mean(copy**2))) * 10 ** (-30 / 20)
        out.append(copy + np.float32(level) * rng.standard_normal(len(copy)).astype(np.float32))
    return out


def resample(
    unrelated: np.ndarray, planted: np.ndarray, rng: np.random.Generator, *, null_clips: int, queries: int, copies: int
) -> tuple[float, float, float]:
    """(share of false alarms in the list, share of copies found, whether anything is flagged) of one run."""
    drawn = rng.permutation(len(unrelated))
    null, others = unrelated[drawn[:null_clips]], unrelated[drawn[null_clips : null_clips + queries]]
    chosen = planted[rng.choice(len(planted), copies, replace=False)]
    tau = fdr_threshold(np.concatenate([others, chosen]), null, FDR).tau
    false, true = int((others >= tau).sum()), int((chosen >= tau).sum())
    return false / max(false + true, 1), true / copies if copies else float("nan"), float(false + true > 0)


def pools(esc10: Path, synthesized: int, seed: int, workers: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Scores of unrelated clips and of planted copies against one set of references, and how many clips there were."""
    shares = {"references": 0.25, "background": 0.1, "unrelated": 0.65}
    roles = deal(stock(esc10, synthesized, seed), shares, seed)
    roles |= {"copies": copies_of(roles["references"][:120], seed)}
    sets = {
        name: level_set(((f"{name}-{n}", clip) for n, clip in enumerate(clips)), SAMPLE_RATE) for name, clips in roles.items()
    }
    config = AuditConfig(k=1, null_sample=1, tau=0.0, seed=seed)

    def top(queries: LevelSet) -> np.ndarray:
        found = detect(queries, sets["references"], sets["background"], config=config, spec="", engine=Engine(workers))
        scores = found.queries["score"].to_numpy()
        return scores[np.isfinite(scores)]

    return top(sets["unrelated"]), top(sets["copies"]), {name: len(clips) for name, clips in roles.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, default=Path("../shared/data/esc10"), help="recordings, if there")
    parser.add_argument("--synthesized", type=int, default=900, help="synthesized clips beside them")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", default="benchmarks/results/false_discovery.json")
    options = parser.parse_args()
    unrelated, copied, sizes = pools(options.esc10, options.synthesized, options.seed, options.workers)
    print(f"{sizes}; {options.runs} runs of {NULL_CLIPS} null clips and {UNRELATED} unrelated queries")
    rows = []
    for copies in COPIES:
        rng = np.random.default_rng([options.seed, copies])
        drawn = {"null_clips": NULL_CLIPS, "queries": UNRELATED, "copies": copies}
        runs = np.array([resample(unrelated, copied, rng, **drawn) for _ in range(options.runs)])
        error = runs[:, 0].std(ddof=1) / np.sqrt(len(runs))
        rows.append(
            {
                "copies among the queries": copies,
                "realized FDR (mean)": round(float(runs[:, 0].mean()), 3),
                "standard error": round(float(error), 3),
                "copies found": None if copies == 0 else round(float(np.nanmean(runs[:, 1])), 3),
                "runs that flag anything": round(float(runs[:, 2].mean()), 3),
            }
        )
    print_table(rows)
    write_json(options.output, rows, {**vars(options), "esc10": str(options.esc10), "sizes": sizes})


if __name__ == "__main__":
    main()
