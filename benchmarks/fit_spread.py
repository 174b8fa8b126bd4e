"""Fit `USUAL_SPREAD` of `src/auscult/alignment/scoring.py`: how far each part of a score spreads over background sound.

    python benchmarks/fit_spread.py [--esc10 ../shared/data/esc10] [--seeds 0 1] [--every 1] [--workers 2]

Builds the copy-detection benchmark of each seed without distractors and with 3 negatives to 10 positives, compares every query
with every background clip, and takes the median over queries of the standard deviation over clips, by part. Prints old and
new values side by side; nothing is written. The first values were fitted when the benchmark had fewer kinds. These seeds deal
the same recordings as any other: a result of another seed is one on other roles and transformations, not on other recordings.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from auscult.alignment import scoring
from auscult.alignment.parts import PART_NAMES
from auscult.descriptors.contrast import Levels, fingerprint
from copy_detection.dataset import Sizes, build, pool
from copy_detection.systems import level_set
from report import print_table

SIZES = Sizes(distractors=0, null_queries=0, negatives_per_positive=0.3)


def spreads(esc10: Path | None, *, seed: int, every: int, workers: int) -> np.ndarray:
    """Standard deviation of each part over the background, (queries, parts); silent and steady queries have none."""
    benchmark = build(pool(esc10, seed=seed), seed=seed, sizes=SIZES)
    background = level_set(((s.clip_id, s.audio) for s in benchmark.background), benchmark.rate)
    queries = level_set(((q.truth.query_id, q.audio) for q in benchmark.queries[::every]), benchmark.rate)
    clips = scoring.prepare_clips([fingerprint(levels) for levels in background.levels])

    def spread(levels: Levels) -> np.ndarray:
        # the background in the place of references: its parts are then in the result
        return scoring.score(levels, clips, clips).parts.std(axis=0)

    with ThreadPoolExecutor(workers) as workshop, threadpool_limits(1):
        found = np.array(list(workshop.map(spread, queries.levels)))
    print(f"seed {seed}: {len(found)} queries, {len(background.levels)} background clips")
    return found[found.min(axis=1) > 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, default=Path("../shared/data/esc10"), help="recordings; synthesized if absent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--every", type=int, default=1, help="use every so-manieth query only")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder = options.esc10 if options.esc10.is_dir() else None
    found = np.concatenate([spreads(folder, seed=seed, every=options.every, workers=options.workers) for seed in options.seeds])
    new = np.median(found, axis=0)
    print(f"{len(found)} queries with something to hear\n")
    print_table(
        [
            {"part": str(name), "old": f"{old:.2f}", "new": f"{value:.2f}", "change": f"{value / old - 1:+.1%}"}
            for name, old, value in zip(PART_NAMES, scoring.USUAL_SPREAD.tolist(), new.tolist(), strict=True)
        ]
    )
    print(f"\nUSUAL_SPREAD = np.array([{', '.join(f'{value:.2f}' for value in new)}], np.float32)")


if __name__ == "__main__":
    main()
